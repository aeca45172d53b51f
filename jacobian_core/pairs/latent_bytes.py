"""Sums of active latents as bytes: in the headers of the files that hold entries and sums of pairs until a run ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jacobian_core.numerics.latent_sums import LatentSums, added_up, of_codes
from jacobian_core.numerics.pair_digits import Digits

_DIGITS = ("activation", "margin")


def of_codes_table(latents: pa.Table) -> LatentSums:
    """The rows of `latents`, added up by latent."""
    is_out = pc.equal(latents.column("side"), pa.scalar("out")).to_numpy()
    latent, activation, margin = (latents.column(name).to_numpy() for name in ("latent", "activation", "margin"))
    return added_up([of_codes(is_out, latent, activation, margin)])


def table_of(sums: LatentSums) -> pa.Table:
    """Sums as a table: digits that were carried have a column for each of their places."""
    columns = {"key": sums.key, "n_tokens": sums.n_tokens, "largest": sums.largest}
    for name, digits in zip(_DIGITS, (sums.activation, sums.margin), strict=True):
        columns |= {f"{name}@{place}": digits[place].astype(np.int32) for place in sorted(digits)}
    return pa.table(columns)


def packed(table: pa.Table) -> bytes:
    """A table of sums as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue().to_pybytes())


def unpacked(content: bytes) -> LatentSums:
    """Sums from their bytes."""
    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    key, n_tokens, largest = (table.column(name).to_numpy() for name in ("key", "n_tokens", "largest"))

    def digits(of: str) -> Digits:
        places = {int(name.removeprefix(f"{of}@")): name for name in table.column_names if name.startswith(f"{of}@")}
        return {place: table.column(name).to_numpy().astype(np.int64) for place, name in places.items()}

    return LatentSums(key, n_tokens, largest, digits("activation"), digits("margin"))


def merged(contents: Sequence[bytes]) -> bytes:
    """The bytes of what several add up to; none where these are none."""
    return packed(table_of(added_up([unpacked(content) for content in contents]))) if all(contents) else b""
