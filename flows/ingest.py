"""The scheduled flow: each firing turns the next shards that the lake lacks into one run.

The lake's manifests say what is there, so a firing that was lost, doubled or killed leaves nothing to repair: the next
one continues. A shard that can't be read fails its firing, but does not keep back those behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.run import jacobian_run
from flows.steps import fetch
from jacobian_core.config import RunConfig
from jacobian_core.errors import CorpusError

if TYPE_CHECKING:
    from jacobian_core.request.ingest import IngestPlan
    from jacobian_core.step_values import ArtifactRef

_UNREADABLE = 3
"""Batches with an unreadable shard after which a firing gives up."""


@task(name="look", task_run_name="look", persist_result=False, cache_policy=NO_CACHE)
def look(config: RunConfig, artifact: ArtifactRef, shards_at_once: int) -> IngestPlan:
    """Which shards the lake lacks."""
    from jacobian_core.request.describe import describe_request
    from jacobian_core.request.ingest import plan_ingest

    wanted, _ = describe_request(config, Path(artifact.folder), artifact.digest, [])
    return plan_ingest(config, wanted, shards_at_once)


def _run_name() -> str:
    from prefect.runtime import flow_run

    return f"ingest {Path(flow_run.parameters['profile']).stem}"


@flow(name="jacobian-ingest", flow_run_name=_run_name, persist_result=False)
def ingest(
    profile: str = "demo",
    lake: str = "lake",
    shards_at_once: Annotated[int, Field(ge=1)] = 1,
    settings: list[str] | None = None,
) -> Any:
    """Analyse the next `shards_at_once` shards of a profile's corpus that the lake has no finished run of.

    `settings` are `group.key=value` overrides of the profile. Ends as completed, with a message that says what was
    done; nothing to do is such an end too. Raises the JacobianFlowsError of the step that failed.
    """
    from prefect.states import Completed

    from jacobian_core.profiles import load_config

    config = load_config(profile, settings or (), lake)
    plan = look(config, fetch(config), shards_at_once)
    get_run_logger().info(plan.line())
    done = _next_run(config, plan)
    return Completed(message=f"run {done}" if done else plan.line(), data=done)


def _next_run(config: RunConfig, plan: IngestPlan) -> str | None:
    """Run the first batch that can be read, and return its run id; None where there is no batch.

    What could not be read is raised at the end, so that the firing is seen to have failed.
    """
    from jacobian_core.request.ingest import batch_config

    done, unreadable = None, list[CorpusError]()
    for batch in plan.batches:
        try:
            done = str(jacobian_run(batch_config(config, batch)))
            break
        except CorpusError as error:
            get_run_logger().error("%s", error)
            unreadable.append(error)
            if len(unreadable) == _UNREADABLE:
                break
    if unreadable:
        raise unreadable[0]
    return done
