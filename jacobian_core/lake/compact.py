"""Merge a finished run's small parts into large ones, without a moment in which a reader sees rows missing or doubled.

A run has a part a table and block; after a month that is 100,000 files of a megabyte, and every query opens them all.
Compaction writes the same rows in the same order into parts of millions of rows under new names, and then replaces the
run's manifest: one rename, before which readers open the old files and after which the new ones. The old files stay for
a while (`retention.sweep_lake`), since a reader that has listed them may still open them. The price: the run is twice
on the disk meanwhile, and a large part that is lost later takes the whole run's blocks with it, not one block.

New names are a hash of what is merged. So an attempt that was killed leaves files that no manifest names, and the next
attempt writes the same bytes to the same places.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import BLOCK_TABLES, TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo, RunManifest, to_json
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.place import place
from jacobian_core.lake.publish import discard, publishing
from jacobian_core.lake.runs import sweep
from jacobian_core.lake.validate import check_part, open_part

log = logging.getLogger(__name__)

PART_ROWS = 50_000_000
"""Rows at which a merged part is closed: about 200 MB of entries."""
LOCK_SECONDS = 60.0
_HEX_DIGITS = 12
_NOTHING_CHANGED = "Nothing was changed. Check the run with `jacobian verify`."


@dataclass(frozen=True)
class Compaction:
    """Files and bytes of a run's block tables before and after compaction; the same if nothing was done."""

    run_id: str
    parts_before: int
    parts_after: int
    bytes_before: int
    bytes_after: int
    rows: int

    @property
    def done(self) -> bool:
        """Whether anything was merged."""
        return self.parts_before != self.parts_after


@contextmanager
def maintaining(lake: Lake) -> Iterator[None]:
    """Be the only one who compacts, prunes or sweeps this lake; runs and readers go on meanwhile.

    In a store several may: a manifest that another has replaced is not replaced again, and what is removed has not been
    named for a while.
    """
    lock = lake.root / "_work" / "maintenance.lock"
    files.make_folder(lock.parent)
    with files.exclusive(lock, LOCK_SECONDS):
        yield


def compact_run(lake: Lake, run_id: str, part_rows: int = PART_ROWS) -> Compaction:
    """Merge the parts of a finished run's block tables into parts of about `part_rows` rows; returns what changed.

    A part is closed with the source that brings it to `part_rows`, so a compacted run stays as it is. Raises LakeError
    where the run is not finished, where a part is not what its record says, or where the lake can't be written; the run
    is then as it was.
    """
    with maintaining(lake):
        manifest = lake.manifest(run_id)
        if manifest is None:
            raise LakeError(f"{lake.root}: run {run_id} is not finished.", "Finish it with `jacobian run`.")
        sweep(lake, run_id)
        named = manifest.all_parts()
        before = {table: named[table] for table in BLOCK_TABLES if table in named}
        groups = {table: row_groups(parts, part_rows) for table, parts in before.items()}
        after = before
        if any(len(group) > 1 for table in groups for group in groups[table]):
            after = _merge_all(lake, manifest, groups)
        flat_before, flat_after = _flat(before), _flat(after)
        return Compaction(
            run_id=run_id,
            parts_before=len(flat_before),
            parts_after=len(flat_after),
            bytes_before=sum(part.bytes for part in flat_before),
            bytes_after=sum(part.bytes for part in flat_after),
            rows=sum(part.rows for part in flat_after),
        )


def row_groups(parts: Sequence[PartInfo], part_rows: int) -> list[list[PartInfo]]:
    """Parts cut, in their order, into groups that become one part each; what a group becomes is never merged again."""
    groups: list[list[PartInfo]] = []
    full = True
    for part in parts:
        if full:
            groups.append([])
        groups[-1].append(part)
        full = sum(each.rows for each in groups[-1]) >= part_rows
    return groups


def _flat(parts: dict[str, list[PartInfo]]) -> list[PartInfo]:
    return [part for table in parts for part in parts[table]]


def _merge_all(lake: Lake, manifest: RunManifest, groups: dict[str, list[list[PartInfo]]]) -> dict[str, list[PartInfo]]:
    """Write the merged parts, give them their names and replace the manifest; returns the parts by table."""
    config, prepared = _lake_config(lake, manifest), list[PreparedPart]()
    named: dict[str, list[PreparedPart | PartInfo]] = {}
    try:
        for table, of_table in groups.items():
            named[table] = []
            for group in of_table:
                if len(group) > 1:
                    prepared.append(_merge(lake, manifest.run_id, table, group, config))
                named[table].append(prepared[-1] if len(group) > 1 else group[0])
        _check_rows(manifest, {table: [_info(part) for part in parts] for table, parts in named.items()})
        placed = dict(zip(prepared, place(lake, prepared), strict=True))
    finally:
        discard(prepared)
    after = {
        table: [placed[part] if isinstance(part, PreparedPart) else part for part in parts]
        for table, parts in named.items()
    }
    _replace(lake, manifest, after)
    return after


def _info(part: PreparedPart | PartInfo) -> PartInfo:
    return part.info if isinstance(part, PreparedPart) else part


def _lake_config(lake: Lake, manifest: RunManifest) -> LakeConfig:
    """How the run's files are written, as its request said."""
    asked = manifest.config.get("lake")
    try:
        return LakeConfig.model_validate(asked if isinstance(asked, dict) else {})
    except ValidationError:
        log.warning("run %s: its lake settings are of another version; the defaults are used", manifest.run_id)
        return LakeConfig(root=str(lake.root))


def _merge(lake: Lake, run_id: str, table: str, group: Sequence[PartInfo], config: LakeConfig) -> PreparedPart:
    """The rows of several parts, in their order, as one checked part under a temporary name."""
    settings = f"{config.row_group_rows} {config.compression_level}"
    name = hashlib.sha256("\n".join([settings, *(part.sha256 for part in group)]).encode()).hexdigest()[:_HEX_DIGITS]
    with PartWriter(lake, TABLES[table], run_id, f"compact-{name}", config) as writer:
        for part in group:
            place_of = lake.root / part.path
            if files.size_of(place_of) != part.bytes:
                raise _not_as_recorded(place_of)
            with files.on_disk(place_of) as path:
                _check_source(path, run_id, table, part)
                _copy_rows(path, writer)
        return writer.finish()


def _copy_rows(path: Path, writer: PartWriter) -> None:
    with open_part(path) as file, files.lake_errors(path, "read the file"):
        for number in range(file.num_row_groups):
            try:
                writer.write(file.read_row_group(number))
            except pa.ArrowException as error:
                raise LakeError(f"{path}: can't be read: {error}.", _NOTHING_CHANGED) from error


def _check_source(path: Path, run_id: str, table: str, part: PartInfo) -> None:
    """A damaged part must not get a new, fitting digest."""
    if files.sha256_of(path) != part.sha256:
        raise _not_as_recorded(path)
    check_part(path, TABLES[table], run_id, None, part.rows)


def _not_as_recorded(path: LakePath) -> LakeError:
    return LakeError(f"{path}: missing, or not what the run's manifest says.", _NOTHING_CHANGED)


def _check_rows(manifest: RunManifest, after: dict[str, list[PartInfo]]) -> None:
    named = manifest.all_parts()
    for table, parts in after.items():
        wanted, found = (sum(part.rows for part in each) for each in (named[table], parts))
        if wanted != found:
            raise LakeError(f"{manifest.run_id}: {table} has {wanted} rows, merged {found}.", _NOTHING_CHANGED)


def _replace(lake: Lake, manifest: RunManifest, after: dict[str, list[PartInfo]]) -> None:
    """Let the manifest name the merged parts; blocks keep their totals and seconds."""
    blocks = [block.model_copy(update={"parts": {}}) for block in manifest.blocks]
    merged = manifest.model_copy(update={"blocks": blocks, "parts": manifest.parts | after})
    path = lake.manifest_path(manifest.run_id)
    version = files.version_of(path)
    with publishing(lake, manifest.run_id) as current:
        if current != manifest or not files.write_over(path, to_json(merged), version):
            raise LakeError(f"run {manifest.run_id} was changed meanwhile.", "Start the same command again.")
