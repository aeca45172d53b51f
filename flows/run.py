"""The main flow: artifact, quality gate, then stage and compute block by block, publish, report.

Between tasks go ids, paths and counts. The lake, not Prefect, knows what is done: a block that is done already returns
at once, so a run that was stopped anywhere continues with the same request.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows import ui
from flows.progress import Meter
from flows.results import publish_reports, quality_note, run_note
from flows.retrying import RETRY_SECONDS, is_transient
from jacobian_core.config import RunConfig

if TYPE_CHECKING:
    from jacobian_core.pipeline import ArtifactRef, BlockResult, QualityReport, RunRef, RunSummary, StagedBatch

BATCH_BLOCKS = 8
"""Blocks that are staged at once; the next batch is staged while this one is computed."""
IN_FLIGHT = 2
"""Compute tasks submitted at a time: one computes, one waits its turn so that no time passes between them."""
FAILURES = 3
"""Failed blocks after which a run submits no more."""

_RUNNER: Any = ThreadPoolTaskRunner(max_workers=IN_FLIGHT + 1)
_computing = threading.Lock()  # a block uses every core (or the GPU) by itself


def _step(name: str, run_name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    return task(name=name, task_run_name=run_name, persist_result=False, cache_policy=NO_CACHE, **options)


@_step("fetch", retries=len(RETRY_SECONDS), retry_delay_seconds=list(RETRY_SECONDS), retry_condition_fn=is_transient)
def fetch(config: RunConfig) -> ArtifactRef:
    """The SAE artifact, verified and in the local cache; only failures of the network are tried again."""
    from jacobian_core import pipeline

    return pipeline.fetch_artifact(config)


@_step("resolve")
def resolve(config: RunConfig, artifact: ArtifactRef) -> RunRef:
    """The run that this request is: its id, its shards and whether it is new, to be resumed, or done."""
    from jacobian_core import pipeline

    return pipeline.resolve_run(config, artifact)


@_step("quality")
def quality(run: RunRef) -> QualityReport:
    """The gate: how much of the activations' variance the pair leaves unexplained; raises above the limit."""
    from jacobian_core import pipeline

    return pipeline.check_quality(run)


@_step("stage", "stage {shard.name}")
def stage(run: RunRef, shard: Any, cursor: Any, budget: int | None) -> StagedBatch:
    """The next blocks of a shard, tokenised and waiting in the lake."""
    from jacobian_core import pipeline

    return pipeline.stage_blocks(run, shard, cursor, budget, BATCH_BLOCKS)


@_step(
    "compute", "compute {block_id}", tags={"compute"}
)  # a tag costs a request a task: only where a limit may want it
def compute(run: RunRef, block_id: str) -> BlockResult:
    """One block: activations, codes, Jacobian entries, published parts."""
    from jacobian_core import pipeline

    with _computing:
        return pipeline.compute_block(run, block_id)


@_step("publish")
def publish(run: RunRef, skipped: dict[str, int]) -> RunSummary:
    """The run's manifest, after which the run is complete."""
    from jacobian_core import pipeline

    return pipeline.publish_run(run, skipped)


@_step("report")
def report(run: RunRef, facts: dict[str, object]) -> list[str]:
    """The reports as files in the lake and as pictures in the UI."""
    return publish_reports(Path(run.lake), run.run_id, facts)


@flow(name="jacobian-run", task_runner=_RUNNER, persist_result=False)
def jacobian_run(config: RunConfig) -> str:
    """Turn a corpus, a language model and an SAE pair into a run of the lake; returns the run id.

    The same request again does no new work. Raises the JacobianFlowsError of the step that failed.
    """
    meter = Meter(ui.ProgressArtifact())
    try:
        artifact = fetch(config)
        run = resolve(config, artifact)
        meter.note(run_note(run, artifact))
        facts: dict[str, object] = {"run": run.run_id, "artifact": artifact.locator, "model": config.model.name}
        if run.state != "done":
            gate = quality(run)
            meter.note(quality_note(gate))
            meter.begin(run.tokens_wanted)
            publish(run, _compute_all(run, meter))
            facts |= {"FVU in": gate.fvu_in, "FVU out": gate.fvu_out, "tokens/s": meter.figures.tokens_per_second}
        report(run, facts)
        return str(run.run_id)
    finally:
        meter.close()


def _compute_all(run: RunRef, meter: Meter) -> dict[str, int]:
    """Stage and compute every block; returns what was skipped and why. The first failure is raised at the end."""
    skipped: Counter[str] = Counter()
    in_flight: deque[PrefectFuture[Any]] = deque()
    failures: list[Exception] = []

    def collect(limit: int) -> None:
        while len(in_flight) > limit:
            try:
                done = in_flight.popleft().result()
            except Exception as error:
                failures.append(error)
            else:
                meter.add(done.tokens, done.entries_stored, done.bytes, done.fresh)

    try:
        for batch in _batches(run):
            skipped.update(batch.skipped)
            for block in batch.blocks:
                collect(IN_FLIGHT - 1)
                if len(failures) >= FAILURES:
                    raise failures[0]
                in_flight.append(compute.submit(run, block.block_id))
    finally:
        collect(0)  # what was submitted is finished and counted, whatever stops the run
    if failures:
        raise failures[0]
    return dict(skipped)


def _batches(run: RunRef) -> Iterator[StagedBatch]:
    """The staged batches in corpus order; each is handed over when the staging of its successor has begun."""
    budget = run.tokens_wanted
    shards = deque(run.shards)
    cursor, following = None, None
    while True:
        if following is None:
            if not shards or budget == 0:
                return
            following = stage.submit(run, shards[0], cursor, budget)
        batch, following = following.result(), None
        budget = None if budget is None else max(0, budget - batch.tokens)
        cursor = batch.next_cursor
        if cursor is None:
            shards.popleft()
        if shards and budget != 0:
            following = stage.submit(run, shards[0], cursor, budget)
        yield batch
