"""Re-check a whole lake: is every file that the records name there, unchanged, and what its contract says?

Everything is read once more (a core hashes, decodes and checks 50 to 100 MB a second), so this is a command, not a
step of each run. Invariants between tables are the SQL checks' business (`checks.run_checks`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pyarrow as pa

from jacobian_core.contracts import LATER_TABLES, TABLES, Table
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest, parts_by_table
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.publish import (
    READ_COLUMNS,
    ROWS_OF_TOTAL,
    TOTALLED_COLUMNS,
    merge_totals,
    row_problems,
    tables_of,
    totals_of,
)
from jacobian_core.lake.runs import temporary_files
from jacobian_core.lake.validate import Key, check_part, check_part_rows, open_part

Severity = Literal["error", "warning"]

KeyRange = tuple[Key, Key]

_AGAIN = "Start the run again: it finds this, and computes only that block anew."
_REDO = "Remove the file and start the run again: only its block is computed anew."
_RESTORE = "Restore it from a copy, or start the run in a new lake."
_CLEAR = "No reader opens it: it can be removed."
_CLEARED = "Start the run again: it clears the folder and does no work."


@dataclass(frozen=True)
class Finding:
    """Something in the lake that is not as it should be; an 'error' means that data are wrong or missing.

    `path` is relative to the lake; `run_id` is '' where the finding belongs to no run.
    """

    severity: Severity
    run_id: str
    path: str
    what: str
    remedy: str


def verify_lake(lake: Lake, run_id: str | None = None) -> list[Finding]:
    """Check one run, or all runs and what belongs to none; an empty list is a clean lake.

    Raises LakeError only where the lake itself can't be opened, or has no such run.
    """
    Lake.open(lake.root)
    if run_id is None:
        findings = [finding for each in lake.runs() for finding in _verify_run(lake, each)]
        return findings + _strangers(lake)
    if run_id not in lake.runs():
        raise LakeError(f"{lake.root}: no run {run_id}.", "`jacobian runs` lists the runs.")
    return _verify_run(lake, run_id)


@dataclass
class _RunCheck:
    """Collects the findings of one run."""

    lake: Lake
    run_id: str
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, path: LakePath | str, what: str, remedy: str) -> None:
        where = path if isinstance(path, str) else self.lake.relative(path)
        self.findings.append(Finding(severity, self.run_id, where, what.removeprefix(f"{path}: "), remedy))

    def refused(self, path: LakePath, error: LakeError) -> None:
        self.add("error", path, error.problem, error.remedy)


def _verify_run(lake: Lake, run_id: str) -> list[Finding]:
    check = _RunCheck(lake, run_id)
    try:
        manifest = lake.manifest(run_id)
    except LakeError as error:
        check.refused(lake.manifest_path(run_id), error)
        return check.findings
    blocks = manifest.blocks if manifest else _read_markers(check)
    for block in blocks:
        if not block.compacted:
            _check_totals(check, block)
    if manifest and any(block.compacted for block in blocks):
        _check_compacted_totals(check, manifest)
    block_of = {part.path: block.block_id for block in blocks for part in block.parts.values()}
    named = parts_by_table(blocks, manifest.parts if manifest else None)
    for table, parts in named.items():
        _check_table(check, table, parts, block_of)
    _check_temporaries(check, finished=manifest is not None)
    if manifest:
        _check_manifest_totals(check, manifest)
        _check_leftovers(check, {part.path for parts in named.values() for part in parts})
    return check.findings


def _read_markers(check: _RunCheck) -> list[BlockMarker]:
    """The readable markers of a run in progress; its request is tried too."""
    lake, markers = check.lake, []
    try:
        lake.request(check.run_id)
    except LakeError as error:
        check.refused(lake.request_path(check.run_id), error)
    for block_id in lake.done_blocks(check.run_id):
        try:
            marker = lake.marker(check.run_id, block_id)
        except LakeError as error:
            check.refused(lake.marker_path(check.run_id, block_id), error)
            continue
        if marker is not None:
            markers.append(marker)
    return markers


def _check_totals(check: _RunCheck, block: BlockMarker) -> None:
    """A block has a part of each table, and its totals are those of its parts, to the last bit."""
    where = f"block {block.block_id}"
    missing = tuple(table for table in tables_of(block) if table not in block.parts)
    for table in missing if missing != LATER_TABLES else ():
        check.add("error", where, f"has no part of {table}", _RESTORE)
    for problem in row_problems(block):
        check.add("error", where, problem, _RESTORE)
    if "tokens" not in block.parts:
        return
    path = check.lake.root / block.parts["tokens"].path
    try:
        with open_part(path) as file, files.lake_errors(path, "read the file"):
            rows = {table: part.rows for table, part in block.parts.items()}
            actual = totals_of(file.read(columns=list(READ_COLUMNS)), rows)
    except (LakeError, KeyError, pa.ArrowException):
        return  # `_check_table` says what is wrong with the part
    for name, value in actual.items():
        if block.totals.get(name) != value:
            what = f"total {name} is recorded as {block.totals.get(name)}, its parts give {value}"
            check.add("error", where, what, _RESTORE)


def _check_compacted_totals(check: _RunCheck, manifest: RunManifest) -> None:
    """The merged parts hold every block's rows, in the blocks' order, and these give the blocks' totals."""
    lake, named = check.lake, manifest.all_parts()
    kept = {table for block in manifest.blocks for table in tables_of(block)}
    for total, table in ROWS_OF_TOTAL.items():
        if table not in kept:
            continue
        rows = sum(part.rows for part in named.get(table, []))
        if rows != manifest.totals.get(total):
            what = f"total {total} is {manifest.totals.get(total)}, but {table} has {rows} rows"
            check.add("error", lake.manifest_path(check.run_id), what, _RESTORE)
    read = []
    for part in named.get("tokens", []):
        path = lake.root / part.path
        try:
            with open_part(path) as file, files.lake_errors(path, "read the file"):
                read.append(file.read(columns=list(READ_COLUMNS)))
        except (LakeError, KeyError, pa.ArrowException):
            return  # `_check_table` says what is wrong with the part
    if not read:
        return
    tokens, start = pa.concat_tables(read), 0
    for block in manifest.blocks:
        rows = int(block.totals.get("tokens", 0))
        actual = totals_of(tokens.slice(start, rows), {})
        start += rows
        for name in TOTALLED_COLUMNS:
            if block.totals.get(name) != actual[name]:
                what = f"total {name} is recorded as {block.totals.get(name)}, its rows give {actual[name]}"
                check.add("error", f"block {block.block_id}", what, _RESTORE)


def _check_manifest_totals(check: _RunCheck, manifest: RunManifest) -> None:
    for name, value in merge_totals(manifest.blocks).items():
        if manifest.totals.get(name) != value:
            what = f"total {name} is recorded as {manifest.totals.get(name)}, the blocks give {value}"
            check.add("error", check.lake.manifest_path(check.run_id), what, _RESTORE)


def _check_table(check: _RunCheck, table: str, parts: list[PartInfo], block_of: dict[str, str]) -> None:
    """Every part is as recorded and as contracted, and no two of them overlap in their keys."""
    if table not in TABLES:
        check.add("error", table, "is not a table of the contract", "Update jacobian-flows.")
        return
    ranges: list[tuple[tuple[Key, Key], str]] = []
    for part in parts:
        path = check.lake.root / part.path
        try:
            keys = _check_file(check, path, part, TABLES[table], block_of.get(part.path))
        except LakeError as error:
            check.refused(path, error)
            continue
        if keys is not None:
            ranges.append((keys, part.path))
    ranges.sort()
    for (before, _), (after, path_after) in pairwise(ranges):
        if after[0] <= before[1]:
            what = f"its first key {after[0]} is not beyond {before[1]} of the part before: rows may be doubled"
            check.add("error", path_after, what, _RESTORE)


def _check_file(
    check: _RunCheck, path: LakePath, part: PartInfo, table: Table, block_id: str | None
) -> KeyRange | None:
    """Check one part; returns its first and last key. Raises LakeError with the first thing that is wrong."""
    folder = check.lake.part_path(table.name, check.run_id, "x").parent
    if path.parent != folder:
        raise LakeError(f"{path}: is not in {check.lake.relative(folder)}, so queries show another run id.", _RESTORE)
    size = files.size_of(path)
    if size != part.bytes:
        what = "missing" if size is None else f"{size} bytes, recorded as {part.bytes}"
        raise LakeError(f"{path}: {what}.", _AGAIN)
    with files.on_disk(path) as copy:
        if files.sha256_of(copy) != part.sha256:
            raise LakeError(f"{copy}: its SHA-256 is not the recorded one: the file was changed.", _REDO)
        check_part(copy, table, check.run_id, block_id, part.rows)
        return check_part_rows(copy, table)


def _check_temporaries(check: _RunCheck, finished: bool) -> None:
    for path in temporary_files(check.lake, check.run_id):
        if finished or files.is_stale(path):
            check.add("warning", path, "temporary file that was left behind", _CLEAR)


def _check_leftovers(check: _RunCheck, named: set[str]) -> None:
    """What a finished run should not have: parts that its manifest does not name, and a work folder."""
    lake = check.lake
    if files.is_folder(lake.work_folder(check.run_id)):
        check.add("warning", lake.work_folder(check.run_id), "work folder of a finished run", _CLEARED)
    for table in TABLES:
        for path in files.list_folder(lake.part_path(table, check.run_id, "x").parent):
            if not files.is_temporary(path) and lake.relative(path) not in named:
                check.add("warning", path, "not named by the run's manifest", _CLEAR)


def _strangers(lake: Lake) -> list[Finding]:
    """Parts of runs that the lake does not know, and temporary files outside of any run."""
    check, known = _RunCheck(lake, ""), {f"run_id={run_id}" for run_id in lake.runs()}
    for table in TABLES:
        for folder in files.list_folder(lake.root / table):
            if folder.name not in known:
                check.add("warning", folder, "belongs to no run of this lake", _CLEAR)
    for path in files.list_folder(lake.root):
        if files.is_temporary(path) and files.is_stale(path):
            check.add("warning", path, "temporary file that was left behind", _CLEAR)
    return check.findings
