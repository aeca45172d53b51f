"""The main flow: artifact, quality gate, then stage and compute block by block, publish, report.

The lake, not Prefect, knows what is done: a block that is done already returns at once, so a run that was stopped
anywhere continues with the same request.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.futures import PrefectFuture

from flows import json_log, runners, ui
from flows.drift import BlockWatch, leave_recorded
from flows.progress import Meter
from flows.results import quality_note, run_facts, run_note, skipped_note
from flows.retrying import RETRY_SECONDS, is_network_failure
from flows.steps import accumulate, compute, fetch, open_groups, publish, quality, report, resolve, stage
from flows.wandb_log import wandb_listeners
from jacobian_core.config import RunConfig
from jacobian_core.lake.paths import lake_path

if TYPE_CHECKING:
    from jacobian_core.step_values import BlockRef, BlockResult, RunRef

FAILURES = 3
"""Failed blocks after which a run submits no more."""

_RUNNER: Any = runners.task_runner()


@flow(name="jacobian-run", flow_run_name="{config.name}", task_runner=_RUNNER, persist_result=False)
def jacobian_run(config: RunConfig) -> str:
    """Turn a corpus, a language model and an SAE pair into a run of the lake; returns the run id.

    The same request again does no new work. Raises the JacobianFlowsError of the step that failed.
    """
    return whole_run(config, _compute_all)


def whole_run(config: RunConfig, compute_all: Callable[[RunRef, Meter], dict[str, int]]) -> str:
    """Every step of a run; `compute_all` stages and computes the blocks, and returns what was skipped and why."""
    meter, complete = Meter(ui.UiProgress(), *json_log.listeners(), *wandb_listeners(config)), False
    try:
        artifact = fetch(config)
        run = resolve(config, artifact)
        meter.note(run_note(run, artifact))
        if run.state != "done":
            meter.note(quality_note(quality(run)))
            meter.begin(run.tokens_wanted)
            skipped = compute_all(run, meter)
            meter.note(skipped_note(skipped))
            for group in open_groups(run):
                accumulate(run, group)
            publish(run, skipped)
            leave_recorded(run)
        meter.summary(run_facts(lake_path(run.lake), run.run_id))
        report(run)
        complete = True
        return str(run.run_id)
    finally:
        meter.close(complete)


def _compute_all(run: RunRef, meter: Meter) -> dict[str, int]:
    """Stage and compute every block; returns what was skipped and why. The first failure is raised at the end."""
    skipped: Counter[str] = Counter()
    watch = BlockWatch(run, meter)

    def count(done: BlockResult) -> None:
        meter.add(done.tokens, done.entries_stored, done.bytes, done.fresh)
        watch.add(done.block_id)

    with closing(staged_blocks(run, skipped)) as blocks:
        failures = compute_each(run, (block.block_id for block in blocks), runners.in_flight(), count)
    if failures:
        meter.note(f"{len(failures)} blocks failed; the others are kept, and the same request computes only what lacks")
        raise failures[0]
    return dict(skipped)


def compute_each(
    run: RunRef, block_ids: Iterable[str], at_once: int, count: Callable[[BlockResult], None] | None = None
) -> list[Exception]:
    """Submit blocks, so many at a time, and `count` what is done; returns the failures, of which a few end it.

    Where the network fails, such as a Prefect server that is being restarted, a block is submitted again after a while.
    """
    in_flight: deque[tuple[str, PrefectFuture[Any]]] = deque()
    failures: list[Exception] = []
    waits: dict[str, Iterator[float]] = {}

    def submit(block_id: str) -> None:
        with runners.on_device():
            in_flight.append((block_id, compute.submit(run, block_id)))

    def collect(limit: int) -> None:
        while len(in_flight) > limit:
            block_id, future = in_flight.popleft()
            try:
                done = future.result()
            except Exception as error:
                wait = next(waits.setdefault(block_id, iter(RETRY_SECONDS)), None)
                if wait is None or not is_network_failure(error):
                    failures.append(error)
                    continue
                time.sleep(wait)
                submit(block_id)
            else:
                if count is not None:
                    count(done)

    try:
        for block_id in block_ids:
            collect(at_once - 1)
            if len(failures) >= FAILURES:
                break
            submit(block_id)
    finally:
        collect(0)  # what was submitted is finished and counted, whatever stops the run
    return failures


def staged_blocks(run: RunRef, skipped: Counter[str]) -> Generator[BlockRef]:
    """The run's blocks in corpus order; while a staged batch of them is handed out, the next one is being staged."""
    shards, cursor, budget = deque(run.shards), None, run.tokens_wanted

    def begin() -> PrefectFuture[Any] | None:
        return stage.submit(run, shards[0], cursor, budget) if shards and budget != 0 else None

    staging = begin()
    try:
        while staging is not None:
            batch = staging.result()
            cursor = batch.next_cursor
            if cursor is None:
                shards.popleft()
            budget = None if budget is None else max(0, budget - batch.tokens)
            staging = begin()
            skipped.update(batch.skipped)
            yield from batch.blocks
    finally:
        if staging is not None:
            staging.wait()
