"""Publish what was written: all parts of a block, then its marker; or one part of a run-level table.

On a disk, a lock per run makes two workers on one block harmless: the second finds the marker and the same bytes, and
does nothing. The lock is held for renames and fsyncs only (milliseconds), never while data are computed or encoded.

In a store there is no lock. Parts never replace other bytes (`place`), a marker is put only where there is none, and it
is taken back if the run turns out to be finished: so of two workers one publishes the block, the other finds the same
bytes, or is refused; and one that slept until the run was finished changes nothing. This rests on reads that see every
earlier write, and on conditional PUTs. Without the latter, two workers that put different bytes within the milliseconds
between a look and a PUT can leave a part that is not what its marker says; `verify` finds it. Same bytes do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import pyarrow as pa

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import BLOCK_TABLES, TABLES, block_tables
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest, Totals, to_json
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.lake.place import place, restore
from jacobian_core.lake.work_files import SummedEntries

ROWS_OF_TOTAL = {
    "tokens": "tokens",
    "documents": "documents",
    "latents": "latents",
    "entries_stored": "jacobian_entries",
}
"""Totals that equal the row count of a table."""
_SUMMED = ("entries_total", "entries_stored")
_FSUMMED = ("abs_sum_total", "abs_sum_stored", "sq_sum_total")
TOTALLED_COLUMNS = (*_SUMMED, *_FSUMMED)
"""Columns of `tokens` whose sums are totals of a block."""
_ACTIVE = ("in_active", "out_active")
READ_COLUMNS = (*TOTALLED_COLUMNS, *_ACTIVE)
"""Columns of `tokens` that the totals need."""


def block_totals(tables: Mapping[str, pa.Table]) -> Totals:
    """Row counts and sums of a block's tables; float sums are correctly rounded (`math.fsum`), hence checkable."""
    return totals_of(tables["tokens"], {name: table.num_rows for name, table in tables.items()})


def totals_of(tokens: pa.Table, rows: Mapping[str, int]) -> Totals:
    """Totals from `tokens` (its `READ_COLUMNS` suffice) and the row count of each table that there is a part of."""
    totals: Totals = {total: rows.get(table, 0) for total, table in ROWS_OF_TOTAL.items()}
    if "latents" not in rows:
        totals["latents"] = sum(int(tokens.column(name).to_numpy().sum(dtype=np.int64)) for name in _ACTIVE)
    for name in _SUMMED:
        totals[name] = int(tokens.column(name).to_numpy().sum(dtype=np.int64))
    for name in _FSUMMED:
        totals[name] = math.fsum(tokens.column(name).to_numpy())
    return totals


def merge_totals(blocks: Sequence[BlockMarker]) -> Totals:
    """Totals of several blocks: integers added, floats by `math.fsum`, so in any order the same."""
    names = sorted({name for block in blocks for name in block.totals})
    merged: Totals = {}
    for name in names:
        values = [block.totals[name] for block in blocks if name in block.totals]
        whole = [value for value in values if isinstance(value, int)]
        merged[name] = sum(whole) if len(whole) == len(values) else math.fsum(values)
    return merged


@dataclass(frozen=True)
class BlockNotes:
    """What a marker says beside its parts: seconds by stage, how well the SAEs fitted, entries that are not kept."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    summed: SummedEntries | None = None


def publish_block(
    lake: Lake, run_id: str, block_id: str, parts: Sequence[PreparedPart], totals: Totals, notes: BlockNotes
) -> BlockMarker:
    """Give a block's parts their names, then write its marker; returns the marker that stands.

    A block that is already published with the same bytes stays as it is. Raises LakeError where it was published with
    other bytes (`withdraw_block` comes first then), where a part or a total does not fit, or where writing fails; until
    the marker is written no reader sees any of it. All temporary files are gone afterwards in every case.
    """
    try:
        marker = _marker_of(run_id, block_id, parts, totals, notes)
        _check_whole(marker, parts)
        with publishing(lake, run_id) as manifest:
            existing = _standing(lake, manifest, marker, parts)
            if existing is not None:
                return existing
            placed = zip(parts, place(lake, parts), strict=True)
            marker = marker.model_copy(update={"parts": {part.table: info for part, info in placed}})
            for file in notes.summed.files if notes.summed else ():
                file.place()
            fresh = files.write_new(lake.marker_path(run_id, block_id), to_json(marker))
            return marker if fresh and lake.locks else _agreed(lake, marker, parts, notes, fresh)
    finally:
        discard(parts)
        for file in notes.summed.files if notes.summed else ():
            file.discard()


def _marker_of(
    run_id: str, block_id: str, parts: Sequence[PreparedPart], totals: Totals, notes: BlockNotes
) -> BlockMarker:
    return BlockMarker(
        run_id=run_id, block_id=block_id, parts={part.table: part.info for part in parts}, totals=totals,
        seconds=dict(notes.seconds), quality=dict(notes.quality),
        entries_sha256=notes.summed.sha256 if notes.summed else None,
        keeps_latents=notes.summed is None or notes.summed.keeps_latents,
    )  # fmt: skip


def _standing(
    lake: Lake, manifest: RunManifest | None, marker: BlockMarker, parts: Sequence[PreparedPart]
) -> BlockMarker | None:
    """The block's marker if it is published, its files healed; LakeError if they have other bytes or can't be added."""
    existing = published_block(lake, manifest, marker.run_id, marker.block_id)
    if existing is not None:
        _keep(lake, existing, marker, parts)
    elif manifest is not None:
        problem = f"{lake.manifest_path(marker.run_id)}: the run is finished, without a block {marker.block_id}."
        raise LakeError(problem, "A finished run takes no more blocks: start a new run.")
    return existing


def _agreed(
    lake: Lake, marker: BlockMarker, parts: Sequence[PreparedPart], notes: BlockNotes, fresh: bool
) -> BlockMarker:
    """The marker that stands, where others may have published the block or the whole run in the meantime."""
    manifest = lake.manifest(marker.run_id)
    if fresh and manifest is None:
        return marker
    for file in notes.summed.files if notes.summed and manifest is not None else ():
        files.remove(file.path)
    if fresh:
        files.remove(lake.marker_path(marker.run_id, marker.block_id))
    existing = _standing(lake, manifest, marker, parts)
    if existing is None:
        problem = f"run {marker.run_id}: block {marker.block_id} was taken back while it was published."
        raise LakeError(problem, "Start the same command again.")
    return existing


def _check_whole(marker: BlockMarker, parts: Sequence[PreparedPart]) -> None:
    where = f"run {marker.run_id}, block {marker.block_id}"
    if strangers := [p.path.name for p in parts if (p.run_id, p.block_id) != (marker.run_id, marker.block_id)]:
        raise LakeError(f"{where}: {strangers[0]} belongs to another block.", _OUR_FAULT)
    missing = [table for table in tables_of(marker) if table not in marker.parts]
    if missing or len(parts) != len(tables_of(marker)):
        raise LakeError(f"{where}: needs one part of each table, and has none of {missing} or several.", _OUR_FAULT)
    if problems := row_problems(marker) + total_problems(marker.totals):
        raise LakeError(f"{where}: {problems[0]}.", _OUR_FAULT)


_OUR_FAULT = "The program that made the block breaks the contract; nothing was published."


def tables_of(marker: BlockMarker) -> tuple[str, ...]:
    """The tables that a block has a part of."""
    return block_tables(marker.keeps)


def row_problems(marker: BlockMarker) -> list[str]:
    """Where a block's totals contradict the row counts of its parts."""
    return [
        f"total {total} is {marker.totals.get(total)}, but {table} has {marker.parts[table].rows} rows"
        for total, table in ROWS_OF_TOTAL.items()
        if table in marker.parts and marker.totals.get(total) != marker.parts[table].rows
    ]


def total_problems(totals: Totals) -> list[str]:
    """What can't be, whatever the text: sums that are not finite or negative, more stored than there was."""
    problems = [f"total {name} is {value}" for name, value in totals.items() if not 0 <= value < math.inf]
    for stored, total in (("entries_stored", "entries_total"), ("abs_sum_stored", "abs_sum_total")):
        if totals.get(stored, 0) > totals.get(total, 0) * (1 + 1e-9):
            problems.append(f"total {stored} is {totals[stored]}, more than {total} = {totals.get(total)}")
    return problems


def published_block(lake: Lake, manifest: RunManifest | None, run_id: str, block_id: str) -> BlockMarker | None:
    """The marker that stands for a block, in the manifest of a finished run or on its own."""
    if manifest is None:
        return lake.marker(run_id, block_id)
    return next((block for block in manifest.blocks if block.block_id == block_id), None)


def _keep(lake: Lake, existing: BlockMarker, marker: BlockMarker, parts: Sequence[PreparedPart]) -> None:
    """Leave a published block as it is, or heal its files with the same bytes; LakeError if the bytes differ."""
    if not existing.same_data(marker):
        differing = [table for table, info in marker.parts.items() if existing.parts.get(table) != info] or ["totals"]
        problem = f"run {marker.run_id}: block {marker.block_id} is published already, with other {differing[0]}."
        remedy = "Let all workers use the same versions and the same kind of device; the published block stands."
        raise LakeError(problem, remedy)
    if not existing.compacted and not intact(lake, existing.parts.values()):
        for part in parts:
            restore(lake, part, existing.parts[part.table])


def publish_part(lake: Lake, part: PreparedPart) -> PartInfo:
    """Give one part of a run-level table its name; the run's manifest must then name it.

    Raises LakeError where the run is finished and its manifest names other bytes.
    """
    try:
        with publishing(lake, part.run_id) as manifest:
            if manifest is None:
                return place(lake, [part])[0]
            named = manifest.all_parts().get(part.table, [])
            found = next((info for info in named if info.content == part.info.content), None)
            if found is None:
                problem = f"{part.path}: run {part.run_id} is finished, with other bytes in this table."
                raise LakeError(problem, "A finished run does not change: start a new run.")
            if not intact(lake, [found]):
                restore(lake, part, found)
            return found
    finally:
        discard([part])


def withdraw_block(lake: Lake, run_id: str, block_id: str) -> None:
    """Take back a block of a run in progress, so that it can be published anew; readers no longer see it."""
    with publishing(lake, run_id) as manifest:
        if manifest is not None:
            raise LakeError(
                f"run {run_id} is finished: block {block_id} can't be withdrawn.",
                "A finished run does not change: start a new run.",
            )
        path = lake.marker_path(run_id, block_id)
        files.remove(path)
        if files.is_folder(path.parent):
            files.fsync_folder(path.parent)


@contextmanager
def publishing(lake: Lake, run_id: str, beginning: bool = False) -> Iterator[RunManifest | None]:
    """Be the only one (on a disk) who publishes files of the run; yields its manifest if it is finished already.

    Raises LakeError where the run was never begun, unless it is `beginning`.
    """
    folder = lake.work_folder(run_id)
    with ExitStack() as held:
        if lake.locks and files.is_folder(folder):
            try:
                held.enter_context(files.exclusive(lake.lock_path(run_id)))
            except LakeError:
                if files.is_folder(folder):
                    raise
        begun = beginning or _begun(lake, run_id)  # before the manifest: the run may end between the two looks
        manifest = lake.manifest(run_id)
        if manifest is None and not begun:
            raise LakeError(f"{lake.root}: run {run_id} was not begun.", "Start it with `jacobian run`.")
        yield manifest


def _begun(lake: Lake, run_id: str) -> bool:
    """Whether the run has a place to work in. In a store its request is that: nothing else is put before."""
    return files.is_folder(lake.work_folder(run_id)) if lake.locks else files.is_file(lake.request_path(run_id))


def intact(lake: Lake, parts: Iterable[PartInfo]) -> bool:
    """Whether every part is there in its full size; what is inside is checked by `verify_lake`."""
    named = list(parts)
    return files.sizes_of([lake.root / part.path for part in named]) == [part.bytes for part in named]


def discard(parts: Sequence[PreparedPart]) -> None:
    """Remove the temporary files of parts that were not published."""
    for part in parts:
        with suppress(LakeError):
            part.discard()


class BlockWriter:
    """Writes all tables of one block and publishes them; a context manager that leaves nothing unpublished behind.

        with BlockWriter(lake, run_id, block_id, config) as block:
            block.write("tokens", tokens)      # each table any number of times, or never: then its part has no rows
            marker = block.publish(seconds)

    Raises LakeError as `PartWriter` and `publish_block` do.
    """

    def __init__(
        self, lake: Lake, run_id: str, block_id: str, config: LakeConfig, tables: Sequence[str] = BLOCK_TABLES
    ) -> None:
        self._lake, self._run_id, self._block_id = lake, run_id, block_id
        self._writers = {name: PartWriter(lake, TABLES[name], run_id, block_id, config) for name in tables}
        self._tokens = [TABLES["tokens"].schema().empty_table().select(READ_COLUMNS)]
        self._open = ExitStack()
        self._prepared: list[PreparedPart] = []

    def __enter__(self) -> BlockWriter:
        with ExitStack() as opening:
            for writer in self._writers.values():
                opening.enter_context(writer)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        discard(self._prepared)
        self._open.__exit__(kind, error, trace)

    def write(self, table: str, data: pa.Table) -> None:
        """Check rows and add them to a table's part."""
        self._writers[table].write(data)
        if table == "tokens":
            self._tokens.append(data.select(READ_COLUMNS))

    def publish(
        self,
        seconds: Mapping[str, float],
        quality: Mapping[str, float] | None = None,
        summed: SummedEntries | None = None,
    ) -> BlockMarker:
        """Publish the block: what its stages took, how the SAEs fitted, and its entries if it has no part of them."""
        if not self._prepared:
            self.finish()
        rows = {part.table: part.info.rows for part in self._prepared}
        totals = totals_of(pa.concat_tables(self._tokens), rows)
        notes = BlockNotes(seconds, quality or {}, summed)
        return publish_block(self._lake, self._run_id, self._block_id, self._prepared, totals, notes)

    def finish(self) -> None:
        """Write what is left of every part, and make the files durable: no rows can be added any more."""
        for writer in self._writers.values():
            self._prepared.append(writer.finish())
