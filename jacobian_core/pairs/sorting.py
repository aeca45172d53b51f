"""Make the rows of a finished block (`rows.py`) from its published parts.

Entries are moved row by row, one active output latent at one token, so no entry is sorted: a stable sort of the rows'
output latents, a 32nd of the entries, is all. The files take 6 bytes an entry while the run goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, Shaped

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.publish import publishing
from jacobian_core.lake.validate import open_part
from jacobian_core.numerics.masses import changes
from jacobian_core.pairs.latent_bytes import packed
from jacobian_core.pairs.rows import (
    CODES_SUFFIX,
    DIGEST_DIGITS,
    HEADER,
    LATENTS_HEADER,
    ROWS_SUFFIX,
    VERSION,
    Facts,
    open_rows,
    rows_folder,
    rows_name,
)

_BATCH_ENTRIES = 1 << 15
_NARROW = 1 << 16
ENTRY_COLUMNS = ("token_id", "out_latent", "in_latent", "value")
CODE_COLUMNS = ("token_id", "side", "latent")
Metadata = dict[bytes | str, bytes | str]


def gather_rows(lake: Lake, run_id: str, block_id: str) -> None:
    """Make a finished block's rows while its run goes on, so that its end does not have to."""
    marker = lake.marker(run_id, block_id)
    if marker is not None:
        make_rows(lake, run_id, rows_folder(lake, run_id), marker)


def make_rows(lake: Lake, run_id: str, folder: Path, marker: BlockMarker) -> bool:
    """Make the rows of a finished block, unless they are there; returns whether its parts were read.

    Raises LakeError where a part can't be read or the files can't be written.
    """
    with open_rows(folder, marker) as found:
        if found is not None:
            return False
    if marker.entries_sha256 is not None:
        problem = f"{folder}: the entries of block {marker.block_id} are gone; the run does not keep entries."
        raise LakeError(problem, "Start the same command again: the block is computed anew.")
    dropped = marker.totals["entries_stored"] != marker.totals["entries_total"]
    codes = _Part(lake, marker, "latents") if dropped else None
    tokens, entries = (_Part(lake, marker, name) for name in ("tokens", "jacobian_entries"))
    _, made = encode_rows(rows_name(marker), marker.entries_digest, tokens, entries, codes)
    if not lake.locks or folder != rows_folder(lake, run_id):
        _write_all(folder, made)
        return True
    with publishing(lake, run_id) as manifest:
        if manifest is None:  # otherwise the run was published meanwhile, and its work folder is gone
            _write_all(folder, made)
    return True


def forget_rows(lake: Lake, run_id: str) -> None:
    """Remove the rows of a run that is finished, wherever they are."""
    files.remove_tree(rows_folder(lake, run_id))


def _write_all(folder: Path, made: dict[str, bytes]) -> None:
    for name, content in made.items():
        files.write_atomic(folder / name, content)


@runtime_checkable
class Columns(Protocol):
    """Something that has columns, such as a table."""

    def column(self, name: str, /) -> Any:
        """A column."""


@dataclass(frozen=True)
class _Part:
    """A block's part, of which a column is read when it is asked for: all at once would be most of the memory here."""

    lake: Lake
    marker: BlockMarker
    table: str

    def column(self, name: str) -> Any:
        path = self.lake.root / self.marker.parts[self.table].path
        with open_part(path) as file, files.lake_errors(path, "read the file"):
            try:
                return file.read(columns=[name]).column(name)
            except pa.ArrowException as error:
                raise LakeError(f"{path}: can't be read: {error}.", "Try `jacobian verify`.") from error


def encode_rows(
    name: str,
    digest: str | None,
    tokens: Columns,
    entries: Columns,
    codes: Columns | None,
    latents: pa.Table | None = None,
) -> tuple[str, dict[str, bytes]]:
    """The digest of a block's entries (without one, that of its rows, which ends the name), and its files by name.

    `codes` is the block's `latents` where entries were dropped, else None; `latents` are its sums by latent
    (`latent_bytes.py`) where nothing else is kept of these.
    """
    token_ids = tokens.column("token_id").to_numpy()
    starts, key, count = _rows_of(tokens, entries, dropped=codes is not None)
    in_ = entries.column("in_latent").to_numpy()
    if codes is None:
        row_key, begins, inputs, lists = key, starts, in_, None
    else:
        row_key, inputs, lists = _coded(token_ids, codes)
        begins = np.append(starts, count)[np.searchsorted(key, row_key)]
    row_out, offsets = row_key & 0xFFFFFFFF, np.append(begins, count)
    widths = [int(side.max()) + 1 if len(side) else 0 for side in (row_out, inputs)]
    in_ = in_.astype(np.uint16 if widths[1] <= _NARROW else np.uint32)
    del inputs
    value = entries.column("value").to_numpy()
    magnitude = np.abs(value)
    facts = Facts(
        len(token_ids), float(magnitude.max(initial=0)), float(magnitude.min(initial=math.inf, where=magnitude > 0)),
        (widths[0], widths[1]), codes is not None,
    )  # fmt: skip
    del magnitude
    table = pa.table(
        {
            "out_latent": row_out.astype(np.uint32),
            "token": (row_key >> 32).astype(np.int32),
            "in_latent": _lists(offsets, in_),
            "value": _lists(offsets, value),
        }
    )
    order = np.argsort(row_out, kind="stable")
    del in_, value
    cuts = _cuts(np.diff(offsets)[order])
    if digest is None:
        table, order = table.take(order), np.arange(len(order))
        digest = _digest_of(table, lists, latents)
        name = f"{name}-{digest[:DIGEST_DIGITS]}"
    header = {
        "version": VERSION, "entries_sha256": digest, **facts.record(),
        "first_out_latents": table.column("out_latent").to_numpy()[order[cuts[:-1]]].tolist(),
    }  # fmt: skip
    metadata: Metadata = {HEADER: json.dumps(header).encode()}
    if latents is not None:
        metadata[LATENTS_HEADER] = packed(latents)
    made = (
        {}
        if lists is None
        else {f"{name}{CODES_SUFFIX}": _encode(lists, np.arange(lists.num_rows), [0, lists.num_rows], {})}
    )
    return digest, made | {f"{name}{ROWS_SUFFIX}": _encode(table, order, cuts, metadata)}  # last: it vouches


def _rows_of(tokens: Columns, entries: Columns, dropped: bool) -> tuple[Any, Any, int]:
    """Where rows begin, their token's ordinal << 32 | output latent, and how many entries there are."""
    out = entries.column("out_latent").to_numpy()
    new = changes(out)
    if dropped:
        ids = entries.column("token_id").to_numpy()
        starts = np.flatnonzero(new | changes(ids))
        return starts, np.searchsorted(tokens.column("token_id").to_numpy(), ids[starts]) << 32 | out[starts], len(out)
    ends = np.cumsum(tokens.column("entries_total").to_numpy(), dtype=np.int64)  # 8 bytes an entry need not be read
    new[ends[ends < len(out)]] = True
    starts = np.flatnonzero(new)
    return starts, np.searchsorted(ends, starts, "right") << 32 | out[starts], len(out)


def _digest_of(*tables: pa.Table | None) -> str:
    """SHA-256 of the values of tables, and of where each row of them begins."""
    found = hashlib.sha256()
    for table in [table for table in tables if table is not None]:
        for name in table.column_names:
            column: Any = table.column(name).combine_chunks()
            found.update(f"{name} {len(column)} {column.type}\n".encode())
            for array in (column.offsets, column.values) if isinstance(column, pa.ListArray) else (column,):
                found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _coded(token_ids: Int64[np.ndarray, "tokens"], codes: Columns) -> tuple[Any, Any, pa.Table]:
    """The key of every active output latent, all active input latents, and these as a list a token."""
    side = codes.column("side").to_numpy(zero_copy_only=False) == "out"
    token = np.searchsorted(token_ids, codes.column("token_id").to_numpy())
    latent = codes.column("latent").to_numpy()
    offsets = np.searchsorted(token[~side], np.arange(len(token_ids) + 1))
    lists = pa.table({"in_latent": _lists(offsets, latent[~side])})
    return token[side] << 32 | latent[side], latent[~side], lists


def _lists(offsets: Int64[np.ndarray, "rows_plus_1"], values: Shaped[np.ndarray, "values"]) -> Any:
    """An array cut into lists at `offsets`."""
    of_type: Any = pa.ListArray
    return of_type.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _cuts(lengths: Int64[np.ndarray, "rows"]) -> list[int]:
    """Row numbers at which record batches begin, and the end: batches of about `_BATCH_ENTRIES` entries."""
    if not len(lengths):
        return [0]
    ends = np.cumsum(lengths)
    inner = np.searchsorted(ends, np.arange(_BATCH_ENTRIES, int(ends[-1]), _BATCH_ENTRIES))
    return [int(cut) for cut in np.unique(np.concatenate([[0], inner, [len(lengths)]]))]


def _encode(table: pa.Table, order: Int64[np.ndarray, "rows"], cuts: list[int], metadata: Metadata) -> bytes:
    """An Arrow file of a table's rows in some order, a record batch at a time."""
    schema = table.schema.with_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for start, stop in pairwise(cuts):
            for batch in table.take(order[start:stop]).cast(schema).combine_chunks().to_batches():
                writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())
