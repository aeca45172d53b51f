"""A run's results for people: the reports as files of the lake, tables of the UI and text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import ui

if TYPE_CHECKING:
    import pyarrow as pa

    from jacobian_core.pipeline import ArtifactRef, QualityReport, RunRef

RUN_REPORTS = ("threshold_fractions", "mean_max_aggregates", "sparsity", "convergence", "data_quality")
"""Reports that every run ends with, the answer first."""
_ID_CHARACTERS = 12


def run_note(run: RunRef, artifact: ArtifactRef) -> str:
    """What is about to run, in one line."""
    wanted = "all" if run.tokens_wanted is None else f"{run.tokens_wanted:,}"
    state = {"new": "new", "resume": "continued", "done": "already done: nothing to compute"}[run.state]
    return (
        f"run {run.run_id} ({state}): {wanted} tokens of {len(run.shards)} shards, "
        f"pair {artifact.locator} {artifact.digest[:_ID_CHARACTERS]}"
    )


def quality_note(gate: QualityReport) -> str:
    """The outcome of the quality gate in one line."""
    return f"quality: FVU {gate.fvu_in:.3f} in, {gate.fvu_out:.3f} out, on {gate.tokens:,} tokens"


def run_reports(lake: str, run_id: str, names: tuple[str, ...] = RUN_REPORTS) -> dict[str, pa.Table]:
    """The reports of one run, computed from the lake."""
    from jacobian_core import reports, warehouse

    with warehouse.connect(Path(lake), [run_id]) as connection:
        return {name: reports.run_report(connection, name, {"run_id": run_id}) for name in names}


def write_run_reports(lake: str, run_id: str, facts: dict[str, object]) -> list[str]:
    """Write the run's reports (Parquet and CSV) and leave them in the UI; returns the files written."""
    from jacobian_core import reports

    tables = run_reports(lake, run_id)
    written = [str(p) for name, table in tables.items() for p in reports.write_report(Path(lake), run_id, name, table)]
    rows: dict[str, list[dict[str, Any]]] = {name: table.to_pylist() for name, table in tables.items()}
    for name, found in rows.items():
        ui.leave_table(run_id, name, found)
    ui.leave_page(run_id, ui.run_page(f"Run {run_id}", facts, rows))
    return written
