"""What a lake no longer needs, and when it may go: files that were merged into larger ones, and runs that were pruned.

A reader lists a run's files once and opens them later, so nothing goes at the moment when it is no longer named: what
compaction replaced and what `prune` took out of the catalogue stay on the disk for `GRACE_SECONDS`, and the next sweep
removes them. A reader that holds a list for longer gets "no such file", never wrong rows. Nothing but the file system
says what is due (a manifest's time, a tombstone's), so a sweep that was killed is continued by the next one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jacobian_core.contracts import TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.compact import maintaining
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import RunManifest
from jacobian_core.lake.paths import LakePath
from jacobian_core.sql.warehouse_file import build_warehouse

log = logging.getLogger(__name__)

GRACE_SECONDS = 3600.0
"""How long files stay that no record names any more."""
_TOMBSTONE = ".removed-"


@dataclass(frozen=True)
class Pruning:
    """What was (or would be) taken out of a lake: run ids, and the bytes of their parts."""

    runs: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int
    dry_run: bool


@dataclass(frozen=True)
class Sweep:
    """What a sweep removed, and what still waits for its time; files with their bytes."""

    removed: int = 0
    removed_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0


def prune(lake: Lake, keep: int | None = None, runs: Iterable[str] = (), dry_run: bool = True) -> Pruning:
    """Take finished runs out of the lake: those named, and of each name all but the `keep` newest.

    Runs in progress stay. The catalogue forgets a run at once and atomically; `sweep_lake` removes its files later.
    Raises LakeError where a named run is not finished, and removes nothing then.
    """
    with maintaining(lake):
        manifests = [manifest for manifest in map(lake.manifest, lake.runs()) if manifest is not None]
        chosen = _chosen(lake, manifests, keep, list(runs))
        gone = [manifest for manifest in manifests if manifest.run_id in chosen]
        if not dry_run and gone:
            for manifest in gone:
                _forget(lake, manifest.run_id)
            build_warehouse(lake)
    return Pruning(
        runs=tuple(manifest.run_id for manifest in gone),
        kept=tuple(manifest.run_id for manifest in manifests if manifest.run_id not in chosen),
        bytes=sum(part.bytes for manifest in gone for parts in manifest.all_parts().values() for part in parts),
        dry_run=dry_run,
    )


def _chosen(lake: Lake, manifests: list[RunManifest], keep: int | None, named: list[str]) -> set[str]:
    finished = {manifest.run_id for manifest in manifests}
    if unfinished := sorted(set(named) - finished):
        problem = f"{lake.root}: there is no finished run {unfinished[0]}."
        raise LakeError(problem, "`jacobian runs` lists the runs; one in progress is finished by `jacobian run`.")
    chosen = set(named)
    if keep is not None:
        by_name: dict[str, list[RunManifest]] = {}
        for manifest in sorted(manifests, key=lambda each: (each.created_utc, each.run_id), reverse=True):
            by_name.setdefault(manifest.run_id.rpartition("-")[0], []).append(manifest)
        chosen |= {manifest.run_id for same in by_name.values() for manifest in same[max(0, keep) :]}
    return chosen


def _forget(lake: Lake, run_id: str) -> None:
    """Make a run's manifest its tombstone: one rename, or in a store a copy and then the removal that counts."""
    path = lake.manifest_path(run_id)
    tombstone = path.with_name(_TOMBSTONE + path.name)
    if isinstance(path, Path) and isinstance(tombstone, Path):
        with files.lake_errors(path, "prune the run"):
            os.utime(path)  # the grace begins now
        files.rename(path, tombstone)
        files.fsync_folder(path.parent)
    else:
        files.write_atomic(tombstone, files.read_bytes(path) or b"")
        files.remove(path)


@dataclass
class _Due:
    """Files to remove, and what is not due yet."""

    paths: list[LakePath] = field(default_factory=list)
    folders: list[LakePath] = field(default_factory=list)
    tombstones: list[LakePath] = field(default_factory=list)
    waiting: list[LakePath] = field(default_factory=list)


def sweep_lake(lake: Lake, grace_seconds: float = GRACE_SECONDS) -> Sweep:
    """Remove what has not been named for `grace_seconds`: merged parts, and the files of pruned runs.

    The warehouse is built first, so that it lists nothing that goes. Raises LakeError where files can't be removed.
    """
    with maintaining(lake):
        due, now = _Due(), time.time()
        for run_id in lake.runs():
            _replaced_parts(lake, run_id, now - grace_seconds, due)
        for tombstone in files.list_folder(lake.root / "runs"):
            if tombstone.name.startswith(_TOMBSTONE):
                _pruned_run(lake, tombstone, now - grace_seconds, due)
        if due.paths:
            build_warehouse(lake)
        removed = sum(size or 0 for size in files.sizes_of(due.paths))
        for path in due.paths:
            if not files.is_folder(lake.work_folder(_run_of(path))):  # it began again while the sweep went on
                files.remove(path)
        for folder in due.folders:
            files.remove_empty(folder)  # a run that has begun again meanwhile keeps what it has put there
        for tombstone in due.tombstones:  # last: a sweep that is killed before is continued
            files.remove(tombstone)
        waiting = sum(size or 0 for size in files.sizes_of(due.waiting))
    if due.paths:
        log.info("%s: %d files removed, %d bytes", lake.root, len(due.paths), removed)
    return Sweep(len(due.paths), removed, len(due.waiting), waiting)


def _replaced_parts(lake: Lake, run_id: str, before: float, due: _Due) -> None:
    """The parts of a finished run that its manifest does not name: merged ones, or those of a killed compaction."""
    manifest = lake.manifest(run_id)
    if manifest is None or files.is_folder(lake.work_folder(run_id)):
        return
    named = {part.path for parts in manifest.all_parts().values() for part in parts}
    since = files.modified(lake.manifest_path(run_id))
    for path in _part_files(lake, run_id):
        if lake.relative(path) not in named:
            (due.paths if max(since, files.modified(path)) <= before else due.waiting).append(path)


def _pruned_run(lake: Lake, tombstone: LakePath, before: float, due: _Due) -> None:
    run_id = tombstone.name.removeprefix(_TOMBSTONE).removesuffix(".json")
    if run_id in lake.runs():  # it was started again, over the files that were there
        due.tombstones.append(tombstone)
    elif files.modified(tombstone) <= before:
        due.folders += [lake.part_path(table, run_id, "x").parent for table in TABLES]
        due.folders.append(lake.report_folder(run_id))
        due.paths += [path for folder in due.folders for path in files.list_folder(folder)]
        due.tombstones.append(tombstone)
    else:
        due.waiting += _part_files(lake, run_id)


def _part_files(lake: Lake, run_id: str) -> list[LakePath]:
    folders = [lake.part_path(table, run_id, "x").parent for table in TABLES]
    return [path for folder in folders for path in files.list_folder(folder) if not files.is_temporary(path)]


def _run_of(path: LakePath) -> str:
    """The run of a part or a report, from its folder's name."""
    return path.parent.name.removeprefix("run_id=")
