"""The lake: where each file is, and which files belong to which run.

The catalogue is the manifests of finished runs and the markers of finished blocks. Readers open exactly the files that
these name, never a glob, so they see no half-published block, and replacing one record swaps a run's files at once. The
price is one small file read per finished block of a run in progress (about 10,000 a second).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.manifest import (
    NAME_PATTERN,
    SCHEMA_VERSION,
    BlockMarker,
    PartInfo,
    RunManifest,
    RunRequest,
    check_schema_version,
    from_json,
    parts_by_table,
)
from jacobian_core.lake.paths import LakePath, lake_path

LAKE_FORMAT = "jacobian-flows lake"
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True)
class RunFiles:
    """The published parts of one run by table, in the order of their blocks."""

    parts: dict[str, list[PartInfo]]
    complete: bool


class Lake:
    """Paths and records under one root folder. The constructor touches no file; see `create` and `open`."""

    def __init__(self, root: LakePath | str) -> None:
        self.root = lake_path(root)

    def __repr__(self) -> str:
        return f"Lake({str(self.root)!r})"

    # ---- opening

    @classmethod
    def create(cls, root: LakePath | str) -> Lake:
        """Open the lake at `root`, made first where there is nothing; LakeError if that is no place for a lake."""
        lake = cls(root)
        files.make_folder(lake.root)
        if files.read_bytes(lake.description_path) is None:
            # Names with a leading '_' or '.' may be there before the lake: the local server keeps its state there.
            others = [p.name for p in files.list_folder(lake.root) if p.name[0] not in "._"]
            if others and files.read_bytes(lake.description_path) is None:  # else another worker made it meanwhile
                problem = f"{lake.root}: not a lake (no lake.json, but {others[0]!r})."
                raise LakeError(problem, "Choose an empty or new folder with `--lake`.")
            if not others:
                content = {"format": LAKE_FORMAT, "schema_version": SCHEMA_VERSION}
                files.write_new(lake.description_path, json.dumps(content).encode() + b"\n")
        return cls.open(root)

    @classmethod
    def open(cls, root: LakePath | str) -> Lake:
        """Open an existing lake; LakeError where there is none, or one of another schema version."""
        lake = cls(root)
        data = files.read_bytes(lake.description_path)
        if data is None:
            raise LakeError(
                f"{lake.root}: no lake here.", "Start a run with `jacobian run`, or give the right `--lake`."
            )
        try:
            content = json.loads(data)
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("format") != LAKE_FORMAT:
            problem = f"{lake.description_path}: does not describe a {LAKE_FORMAT}."
            raise LakeError(problem, "Give the right `--lake`, or restore the file.")
        check_schema_version(content.get("schema_version"), lake.description_path)
        return lake

    # ---- paths

    @property
    def locks(self) -> bool:
        """Whether workers can keep each other out: on a disk, and not in a store."""
        return isinstance(self.root, Path)

    @property
    def description_path(self) -> LakePath:
        """`lake.json`: format and schema version."""
        return self.root / "lake.json"

    @property
    def warehouse_path(self) -> LakePath:
        """The DuckDB file of views and macros."""
        return self.root / "warehouse.duckdb"

    def part_path(self, table: str, run_id: str, block_id: str) -> LakePath:
        """The part of a table for one block, or for a whole run (such as block_id 'active' of pair_stats)."""
        return self.root / _safe(table) / f"run_id={_safe(run_id)}" / f"part-{_safe(block_id)}.parquet"

    def work_folder(self, run_id: str) -> LakePath:
        """Everything of a run in progress but its parts; gone when the run is published."""
        return self.root / "_work" / _safe(run_id)

    def request_path(self, run_id: str) -> LakePath:
        """Identity and configuration of a run in progress."""
        return self.work_folder(run_id) / "request.json"

    def lock_path(self, run_id: str) -> LakePath:
        """Held while files of the run are published."""
        return self.work_folder(run_id) / "publish.lock"

    def staged_path(self, run_id: str, block_id: str) -> LakePath:
        """A tokenised block that waits to be computed."""
        return self.work_folder(run_id) / "staged" / f"{_safe(block_id)}.arrow"

    def distrusted_folder(self, run_id: str) -> LakePath:
        """A file for each shard that was changed while the run read it, named as its blocks' ids begin."""
        return self.work_folder(run_id) / "distrusted"

    def marker_path(self, run_id: str, block_id: str) -> LakePath:
        """Says that a block is done; written after all of its parts."""
        return self.work_folder(run_id) / "done" / f"{_safe(block_id)}.json"

    def manifest_path(self, run_id: str) -> LakePath:
        """Says that a run is done; written last."""
        return self.root / "runs" / f"{_safe(run_id)}.json"

    def report_folder(self, run_id: str) -> LakePath:
        """Where the reports of a run are written."""
        return self.root / "reports" / _safe(run_id)

    def relative(self, path: LakePath) -> str:
        """A path inside the lake as the records write it."""
        return path.relative_to(self.root).as_posix()

    # ---- records

    def runs(self) -> list[str]:
        """The ids of all runs, finished or in progress, sorted."""
        finished = {p.stem for p in files.list_folder(self.root / "runs") if p.suffix == ".json" and _is_name(p.stem)}
        going = {p.name for p in files.list_folder(self.root / "_work") if _is_name(p.name)}
        return sorted(finished | {run_id for run_id in going if files.is_file(self.request_path(run_id))})

    def manifest(self, run_id: str) -> RunManifest | None:
        """The manifest of a finished run; None while there is none; LakeError if it is damaged."""
        path = self.manifest_path(run_id)
        data = files.read_bytes(path)
        return None if data is None else from_json(RunManifest, data, path)

    def request(self, run_id: str) -> RunRequest | None:
        """What a run in progress was asked; None if there is no such run, or it is finished and cleared away."""
        path = self.request_path(run_id)
        data = files.read_bytes(path)
        return None if data is None else from_json(RunRequest, data, path)

    def marker(self, run_id: str, block_id: str) -> BlockMarker | None:
        """The marker of one block of a run in progress; None where the block is not done."""
        path = self.marker_path(run_id, block_id)
        data = files.read_bytes(path)
        return None if data is None else from_json(BlockMarker, data, path)

    def block(self, run_id: str, block_id: str) -> BlockMarker | None:
        """The marker of one block of a run, finished or in progress; None where the block is not done."""
        marker = self.marker(run_id, block_id)
        manifest = self.manifest(run_id) if marker is None else None
        return next((b for b in manifest.blocks if b.block_id == block_id), None) if manifest else marker

    def markers(self, run_id: str) -> list[BlockMarker]:
        """The finished blocks of a run, finished or in progress, sorted by block id."""
        manifest = self.manifest(run_id)
        if manifest is not None:
            return manifest.blocks
        paths = [self.marker_path(run_id, block_id) for block_id in self.done_blocks(run_id)]
        read = zip(paths, files.read_all(paths), strict=True)
        found = [None if data is None else from_json(BlockMarker, data, path) for path, data in read]
        manifest = self.manifest(run_id)  # the run may have been published, and its markers removed, while we read
        return manifest.blocks if manifest is not None else [marker for marker in found if marker is not None]

    def done_blocks(self, run_id: str) -> list[str]:
        """The ids of the finished blocks of a run in progress, sorted; their markers are not opened."""
        folder = self.work_folder(run_id) / "done"
        return [p.stem for p in files.list_folder(folder) if p.suffix == ".json" and _is_name(p.stem)]

    def catalogue(self) -> dict[str, RunFiles]:
        """The published files of every run."""
        return {run_id: self.run_files(run_id) for run_id in self.runs()}

    def run_files(self, run_id: str) -> RunFiles:
        """The published files of one run; none where there is no such run."""
        manifest = self.manifest(run_id)
        if manifest is None:
            blocks = self.markers(run_id)
            manifest = self.manifest(run_id)
            if manifest is None:
                return RunFiles(parts_by_table(blocks), complete=False)
        return RunFiles(manifest.all_parts(), complete=True)


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _safe(name: str) -> str:
    """Refuse a name that could leave its folder; ids and tables are made of a-z, 0-9, '-' and '_'."""
    if not _is_name(name):
        problem = f"{name!r} is not a valid name of a table, run or block."
        raise LakeError(problem, "Names have 1 to 80 of a-z, 0-9, '-' and '_'; `jacobian runs` lists the runs.")
    return name
