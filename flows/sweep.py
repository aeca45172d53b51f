"""The sweep flow: every cell of a sweep as a run of its own, then their figures on one page.

A cell whose run is done is passed over at once, so a sweep that was stopped continues with the same request; a cell
that fails is noted and does not stop the others. One cell after another: each uses the whole device.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE

from flows import json_log, ui
from flows.progress import Meter
from flows.run import jacobian_run
from flows.steps import fetch, resolve
from flows.train_pair import train_pair
from jacobian_core.errors import JacobianFlowsError, SweepError

if TYPE_CHECKING:
    from jacobian_core.config import RunConfig
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sweep.cells import Cell
    from jacobian_core.sweep.record import SweepRecord
    from jacobian_core.sweep.trained import TrainedPlace

_NAMED_FAILURES = 3


@flow(name="jacobian-sweep", flow_run_name="{sweep}", persist_result=False)
def sweep(sweep: str = "demo-layers", lake: str = "lake", settings: list[str] | None = None) -> str:
    """Run every cell of a sweep (its name, or the path of its file); returns the sweep's id.

    `settings` are `group.key=value` overrides of every run. Raises ConfigError for a sweep that makes no runs, and
    SweepError at the end where some cells failed.
    """
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sweep.cells import expand
    from jacobian_core.sweep.config import load_sweep
    from jacobian_core.sweep.record import begin_sweep

    config, base = load_sweep(sweep)
    cells = expand(config, base, lake, settings or ())
    opened = Lake.create(cells[0].config.lake.root)
    record = begin_sweep(opened, config, cells)
    meter = Meter(ui.UiProgress(), *json_log.listeners())
    meter.note(f"sweep {record.sweep_id}: {len(cells)} runs")
    for number, cell in enumerate(cells, start=1):
        meter.note(f"[{number} of {len(cells)}] {cell.label}")
        record = _attempt(opened, record, cell, meter)
    page = report(str(opened.root), record.sweep_id)
    meter.note(f"page: {page}")
    _raise_failures(record)
    return record.sweep_id


def _attempt(lake: Lake, record: SweepRecord, cell: Cell, meter: Meter) -> SweepRecord:
    """Run one cell and write down what became of it."""
    from jacobian_core.sweep.record import write_sweep

    try:
        training, run_id = _run(lake, record, cell, meter)
        record = record.with_cell(cell.label, state="complete", run_id=run_id, training=training, problem="")
    except Exception as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        problem = str(error) if isinstance(error, JacobianFlowsError) else f"{type(error).__name__}: {error}"
        meter.note(f"{cell.label} failed: {problem}")
        record = record.with_cell(cell.label, state="failed", problem=" ".join(problem.split()))
    write_sweep(lake, record)
    return record


def was_interrupted(error: Exception) -> bool:
    """Whether it is what DuckDB makes of a signal: someone wants to stop, and no cell has failed."""
    return isinstance(error, RuntimeError) and str(error) == "Query interrupted"


def _run(lake: Lake, record: SweepRecord, cell: Cell, meter: Meter) -> tuple[str | None, str]:
    """The digest of the cell's training, where it has one, and the id of its finished run."""
    from jacobian_core.resources import cache_folder
    from jacobian_core.sweep.record import done_before
    from jacobian_core.sweep.trained import place_of

    place, config = place_of(cell, cache_folder()), cell.config
    with tags("sweep", *cell.tags):
        if place is not None:
            known = None if place.is_made else done_before(lake, record, cell.label, place.digest)
            if known is not None:
                return place.digest, known
            _make(place, meter)
            config = config.model_copy(update={"sae": place.sae})
        run_id = _published(lake, config) or str(jacobian_run(config))
        return (place.digest if place else None), run_id


def _published(lake: Lake, config: RunConfig) -> str | None:
    """The id of the cell's run if that is done and has its page: nothing is to be done then, not even reports."""
    from jacobian_core.lake.files import is_file
    from jacobian_core.page.write import PAGE_NAME

    run = resolve(config, fetch(config))
    done = run.state == "done" and is_file(lake.report_folder(run.run_id) / PAGE_NAME)
    return str(run.run_id) if done else None


def _make(place: TrainedPlace, meter: Meter) -> None:
    """Train the pair, unless it is there; a killed training continues from its checkpoint."""
    from jacobian_core.sweep.trained import alone, forget_checkpoint

    with ExitStack() as held:
        if not place.is_made:
            held.enter_context(alone(place))
        if place.is_made:
            return
        figures = train_pair(place.training)
        forget_checkpoint(place)
        found = figures["held_out"]
        meter.note(
            f"trained the pair on {figures['tokens']:,} tokens in {figures['seconds']} s: "
            f"FVU {found['fvu_in']:.3f} in, {found['fvu_out']:.3f} out"
        )


@task(name="sweep-report", task_run_name="sweep-report", persist_result=False, cache_policy=NO_CACHE)
def report(lake: str, sweep_id: str) -> str:
    """The figures of every finished cell as tables and as a page, in the lake and in the UI; returns the page."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.page.sweep import write_sweep_page
    from jacobian_core.sweep.figures import answers_table, gather_figures, write_tables
    from jacobian_core.sweep.record import choose_sweep

    opened = Lake.open(lake)
    record = choose_sweep(opened, sweep_id)
    cells = gather_figures(opened, record)
    write_tables(opened, record, cells)
    page = write_sweep_page(opened, record, cells)
    ui.leave_table(sweep_id, "sweep answers", answers_table(cells).to_pylist())
    ui.leave_pictures(sweep_id, page.images)
    return str(page.path)


def _raise_failures(record: SweepRecord) -> None:
    failed = record.of_state("failed")
    if failed:
        named = "; ".join(f"{cell.label}: {cell.problem}" for cell in failed[:_NAMED_FAILURES])
        more = f"; and {len(failed) - _NAMED_FAILURES} more" if len(failed) > _NAMED_FAILURES else ""
        problem = f"{len(failed)} of {len(record.cells)} runs of the sweep failed: {named}{more}."
        raise SweepError(problem, "The same command tries these again, and nothing that is done.")
