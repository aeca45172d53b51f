"""The steps of the main flow as Prefect tasks: names, retries and tags here, the work in `jacobian_core.pipeline`.

Between tasks go ids, paths and counts. Results are not persisted and nothing is cached: the lake knows what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.results import publish_reports
from flows.retrying import RETRY_SECONDS, is_transient
from jacobian_core.config import RunConfig
from jacobian_core.lake.paths import lake_path

if TYPE_CHECKING:
    from jacobian_core.step_values import (
        ArtifactRef,
        BlockResult,
        CursorRef,
        GroupRef,
        QualityReport,
        RunRef,
        RunSummary,
        ShardRef,
        StagedBatch,
    )

BATCH_BLOCKS = 8
"""Blocks that are staged at once; the next batch is staged while this one is computed."""


def _step(name: str, run_name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    return task(name=name, task_run_name=run_name or name, persist_result=False, cache_policy=NO_CACHE, **options)


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
def stage(run: RunRef, shard: ShardRef, cursor: CursorRef | None, budget: int | None) -> StagedBatch:
    """The next blocks of a shard, tokenised and waiting in the lake."""
    from jacobian_core import pipeline

    return pipeline.stage_blocks(run, shard, cursor, budget, BATCH_BLOCKS)


@_step(
    "compute", "compute {block_id}", tags={"compute"}
)  # a tag costs a request a task: only where a limit may want it
def compute(run: RunRef, block_id: str) -> BlockResult:
    """One block: activations, codes, Jacobian entries, published parts."""
    from jacobian_core import pipeline

    return pipeline.compute_and_gather(run, block_id)


def open_groups(run: RunRef) -> list[GroupRef]:
    """Scope 'all_inputs': the groups of blocks whose sums are still to be made."""
    from jacobian_core import pipeline

    return pipeline.open_groups(run)


@_step("accumulate", "accumulate {group.group_id}")
def accumulate(run: RunRef, group: GroupRef) -> float:
    """Scope 'all_inputs': the sums of a group of blocks over every input latent."""
    from jacobian_core import pipeline

    return pipeline.accumulate_group(run, group)


@_step("publish")
def publish(run: RunRef, skipped: dict[str, int]) -> RunSummary:
    """The run's manifest, after which the run is complete."""
    from jacobian_core import pipeline

    return pipeline.publish_run(run, skipped)


@_step("report")
def report(run: RunRef) -> list[str]:
    """The reports as files in the lake and as pictures in the UI."""
    return publish_reports(lake_path(run.lake), run.run_id)
