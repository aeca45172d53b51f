"""Sums by pair over a group of blocks, in a file: what takes the place of their rows where entries are not kept.

Sums are exact (digits of 32 bits at fixed places, `numerics/pair_digits.py`), so files can be summed again, in any
grouping. A file is a record batch for every few output latents, in their order, so that a strip is read without the
rest; a pair takes about 20 bytes. The digits' places are fixed before the first batch is written, by the sizes of the
values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from jacobian_core.errors import LakeError
from jacobian_core.numerics.pair_digits import Digits, PairDigits, highest_place, lowest_place
from jacobian_core.pairs.rows import HEADER, Facts

SUMS_SUFFIX = ".sums"
VERSION = 1
_BATCH_CELLS = 1 << 19
_SUMS = ("sum", "sum_abs", "sum_sq")


class SumsFile:
    """An open file of sums; see `open_sums`."""

    def __init__(self, header: dict[str, Any], reader: Any) -> None:
        self._header, self._reader = header, reader

    @property
    def facts(self) -> Facts:
        """What is known of the summed entries."""
        return Facts.of(self._header)

    def pairs(self, outs: range, n_in: int) -> Iterator[PairDigits]:
        """The pairs of these output latents; cells begin with the first of them."""
        step = int(self._header["batch_outs"])
        for number in range(outs.start // step, min(-(-outs.stop // step), self._reader.num_record_batches)):
            yield _pairs(self._reader.get_batch(number), outs, n_in)


@contextmanager
def open_sums(path: Path) -> Iterator[SumsFile]:
    """Open a file of sums; LakeError where it can't be read."""
    try:
        with pa.OSFile(str(path), "r") as file, pa.ipc.open_file(file) as reader:
            header = json.loads((reader.schema.metadata or {}).get(HEADER, b"{}"))
            if header.get("version") != VERSION:
                raise ValueError("it has another version")
            yield SumsFile(header, reader)
    except (OSError, pa.ArrowException, ValueError) as error:
        problem = f"{path}: the sums can't be read ({error})."
        raise LakeError(problem, "Remove the file and start the same command again.") from error


def _pairs(batch: Any, outs: range, n_in: int) -> PairDigits:
    out = batch.column("out_latent").to_numpy()
    wanted = slice(*np.searchsorted(out, [outs.start, outs.stop]))

    def column(name: str) -> Int64[np.ndarray, "rows"]:
        found: Int64[np.ndarray, "rows"] = batch.column(name).to_numpy()[wanted].astype(np.int64)
        return found

    def digits(of: str) -> Digits:
        names = [name for name in batch.schema.names if name.startswith(f"{of}@")]
        found = {int(name.partition("@")[2]): column(name) for name in names}
        return {place: digit for place, digit in found.items() if digit.any()}

    n_stored = column("n_stored")
    n_coactive = column("n_coactive") if "n_coactive" in batch.schema.names else n_stored
    cell = (column("out_latent") - outs.start) * n_in + column("in_latent")
    value = batch.column("value").to_numpy()[wanted]
    return PairDigits(cell, n_coactive, n_stored, value, digits("sum"), digits("sum_abs"), digits("sum_sq"))


class SumsWriter:
    """Writes the sums of entries with these facts into an open file, strip by strip in their order.

    A strip is `outs` output latents, the last one less.
    """

    def __init__(self, file: Any, facts: Facts) -> None:
        self.outs = max(1, _BATCH_CELLS // facts.widths[1])
        self._n_in = facts.widths[1]
        self._schema = _schema(facts, {"version": VERSION, "batch_outs": self.outs, **facts.record()})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(file, self._schema, options=options)

    def write(self, pairs: PairDigits, first: int) -> None:
        """Write the strip that begins with output latent `first`."""
        out = pairs.cell // self._n_in
        columns: dict[str, Any] = {
            "out_latent": first + out, "in_latent": pairs.cell - out * self._n_in, "n_coactive": pairs.n_coactive,
            "n_stored": pairs.n_stored, "value": pairs.value,
        }  # fmt: skip
        for name in _SUMS:
            columns |= {f"{name}@{place}": digit for place, digit in getattr(pairs, name).items()}
        if unknown := [name for name in columns if "@" in name and name not in self._schema.names]:
            raise OverflowError(f"sums have digits at {unknown}, where none were expected")
        none = np.zeros(len(pairs.cell), np.int32)
        arrays = [pa.array(columns.get(field.name, none)).cast(field.type) for field in self._schema]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file; the file itself stays open."""
        self._writer.close()


def _schema(facts: Facts, header: dict[str, Any]) -> pa.Schema:
    """The columns of sums; `n_coactive` only where it is not `n_stored`, and a column for each digit that can be."""
    fields: list[tuple[str, Any]] = [
        ("out_latent", pa.uint32()),
        ("in_latent", pa.uint16() if facts.widths[1] <= 1 << 16 else pa.uint32()),
        *([("n_coactive", pa.int64())] if facts.thresholded else []),
        ("n_stored", pa.int64()),
        ("value", pa.float32()),
    ]
    for name in _SUMS if facts.largest else ():
        square = name == "sum_sq"
        places = range(highest_place(facts.tokens, facts.largest, square), lowest_place(facts.smallest, square) - 1, -1)
        fields += [(f"{name}@{place}", pa.int32()) for place in places]
    return pa.schema(fields, metadata={HEADER: json.dumps(header).encode()})
