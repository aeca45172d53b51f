"""Compaction, pruning and export of a lake: what the commands and the maintenance flow have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    from jacobian_core.errors import LakeError
    from jacobian_core.lake.compact import Compaction
    from jacobian_core.lake.export import Export
    from jacobian_core.lake.retention import Pruning, Sweep


def compact_lake(
    lake: LakePath, run: str | None, part_rows: int | None = None
) -> tuple[list[Compaction], list[LakeError]]:
    """Compact one run, or every finished one, and refresh the warehouse; returns what was done and what failed.

    With `run`, its LakeError is raised; else one run's failure does not keep back the others.
    """
    from flows.results import choose_run
    from jacobian_core.errors import LakeError
    from jacobian_core.lake.compact import PART_ROWS, compact_run
    from jacobian_core.lake.files import is_file
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql.warehouse_file import build_warehouse

    opened = Lake.open(lake)
    rows = PART_ROWS if part_rows is None else part_rows
    if run is not None:
        done, failures = [compact_run(opened, choose_run(lake, run), rows)], list[LakeError]()
    else:
        done, failures = [], []
        for run_id in opened.runs():
            if not is_file(opened.manifest_path(run_id)):
                continue  # a run in progress is compacted when it is finished
            try:
                done.append(compact_run(opened, run_id, rows))
            except LakeError as error:
                failures.append(error)
    if any(each.done for each in done):
        try:
            build_warehouse(opened)
        except LakeError as error:  # of another run's files: what was merged stays merged
            failures.append(error)
    return done, failures


def sweep(lake: LakePath, grace_seconds: float | None = None) -> Sweep:
    """Remove what has been replaced or pruned for long enough."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.retention import GRACE_SECONDS, sweep_lake

    return sweep_lake(Lake.open(lake), GRACE_SECONDS if grace_seconds is None else grace_seconds)


def prune_lake(lake: LakePath, keep: int | None, runs: list[str], really: bool) -> Pruning:
    """Take runs out of a lake, or say which; ConfigError where nothing says which."""
    from flows.results import choose_run
    from jacobian_core.errors import ConfigError
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.retention import prune

    if keep is None and not runs:
        raise ConfigError("prune needs --keep or --run.", "--keep 3 keeps the newest three runs of each name.")
    return prune(Lake.open(lake), keep, [choose_run(lake, run) for run in runs], dry_run=not really)


def export(lake: LakePath, run: str, folder: Path) -> Export:
    """Write a run as a folder of its own."""
    from flows.results import choose_run
    from jacobian_core.lake.export import export_run
    from jacobian_core.lake.layout import Lake

    return export_run(Lake.open(lake), choose_run(lake, run), folder)
