"""The main flow over many Prefect workers: one process stages, publishes and reports, the workers compute.

Ranges of blocks are flow runs of the `blocks` deployment, so Prefect's own queues, limits and pools place them; the
price is a process start and a model load for each range. What a failed range has finished stays in the lake.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from prefect import flow
from prefect.deployments import run_deployment
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import runners
from flows.drift import BlockWatch
from flows.progress import Meter
from flows.run import FAILURES, compute_each, staged_blocks, whole_run
from flows.steps import fetch
from jacobian_core.config import RunConfig
from jacobian_core.errors import JacobianFlowsError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from jacobian_core.step_values import RunRef

_THREADS: Any = ThreadPoolTaskRunner(max_workers=runners.ONE_DEVICE)
_POLL_SECONDS = 1.0
_RANGES_PER_WORKER = 2  # one is computed, one waits in the queue
_AGAIN = "What is done is kept: the same request computes only what lacks."


@flow(name="jacobian-spread", flow_run_name="{config.name}", persist_result=False)
def spread(
    config: RunConfig,
    workers: Annotated[int, Field(ge=1)] = 2,
    blocks_at_once: Annotated[int, Field(ge=1)] = 64,
    deployment: str = "jacobian-blocks/blocks",
) -> str:
    """As `jacobian_run`, but the blocks are computed by the workers of a deployment; returns the run id.

    Args:
        config: the request.
        workers: how many workers the deployment's pool has; with fewer, ranges wait in its queue.
        blocks_at_once: blocks of one range, for which a worker loads the model once.
        deployment: `flow/deployment` that computes a range.

    Raises the JacobianFlowsError of the step that failed.
    """
    shares = _Shares(deployment, workers * _RANGES_PER_WORKER, blocks_at_once)
    return whole_run(config, shares.compute_all)


@flow(name="jacobian-blocks", flow_run_name="{run_id}", task_runner=_THREADS, persist_result=False)
def compute_blocks(config: RunConfig, run_id: str, block_ids: list[str]) -> int:
    """Compute staged blocks of a run that `spread` has begun; returns how many were not done before.

    Raises the JacobianFlowsError of the first block that failed, after the others were tried.
    """
    from jacobian_core.request.share import join_run, open_blocks

    run = join_run(config, run_id, fetch(config))
    wanted = open_blocks(run, block_ids)
    failures = compute_each(run, wanted, runners.ONE_DEVICE)
    if failures:
        raise failures[0]
    return len(wanted)


@dataclass(frozen=True)
class _Range:
    """Blocks that one flow run computes."""

    flow_run_id: UUID
    block_ids: list[str]


@dataclass(frozen=True)
class _Shares:
    """How blocks are handed out: to which deployment, how many ranges at a time, of how many blocks."""

    deployment: str
    in_flight: int
    blocks_at_once: int

    def compute_all(self, run: RunRef, meter: Meter) -> dict[str, int]:
        """Stage every block and have it computed; returns what was skipped and why. The first failure is raised."""
        skipped: Counter[str] = Counter()
        handed_out: deque[_Range] = deque()
        failures: list[Exception] = []
        watch = BlockWatch(run, meter)

        def collect(limit: int) -> None:
            while len(handed_out) > limit:
                one = handed_out.popleft()
                try:
                    _wait(one)
                except JacobianFlowsError as error:
                    failures.append(error)
                _count(run, one, meter, watch)

        with closing(staged_blocks(run, skipped)) as blocks:
            for block_ids in _in_ranges((block.block_id for block in blocks), self.blocks_at_once):
                collect(self.in_flight - 1)
                if len(failures) >= FAILURES:
                    break
                handed_out.append(self._hand_out(run, block_ids))
        collect(0)
        if failures:
            raise failures[0]
        return dict(skipped)

    def _hand_out(self, run: RunRef, block_ids: list[str]) -> _Range:
        parameters = {"config": run.config.model_dump(mode="json"), "run_id": run.run_id, "block_ids": block_ids}
        name = f"{run.config.name} {block_ids[0]} to {block_ids[-1]}"
        started: Any = run_deployment(self.deployment, parameters=parameters, timeout=0, flow_run_name=name)
        return _Range(started.id, block_ids)


def _in_ranges(block_ids: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(block_ids)
    while found := list(islice(source, size)):
        yield found


def _wait(one: _Range) -> None:
    """Return when the range's flow run has completed; JacobianFlowsError if it ended in another way."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        while True:
            found: FlowRun = client.read_flow_run(one.flow_run_id)
            if found.state is not None and found.state.is_final():
                break
            time.sleep(_POLL_SECONDS)
    if not found.state.is_completed():
        said = (found.state.message or "no message").rstrip(".")
        where = f"blocks {one.block_ids[0]} to {one.block_ids[-1]}"
        raise JacobianFlowsError(f"{where}: their flow run is {found.state.name}: {said}.", _AGAIN)


def _count(run: RunRef, one: _Range, meter: Meter, watch: BlockWatch) -> None:
    """Tell the meter of the range's finished blocks, as their markers say."""
    from jacobian_core.lake.layout import Lake

    lake = Lake(run.lake)
    for block_id in one.block_ids:
        marker = lake.marker(run.run_id, block_id)
        if marker is not None:
            size = sum(part.bytes for part in marker.parts.values())
            meter.add(int(marker.totals["tokens"]), int(marker.totals["entries_stored"]), size, fresh=True)
            watch.add(block_id)
