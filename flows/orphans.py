"""Flow runs that still say 'Running' though nothing can be running them any more.

A worker notices when the process it started dies, and the crash rule when signs of life stop. Between them are left:
subflows of a run that died, which no worker knows, and what was running when the server itself was stopped, because the
rule's memory does not survive that. Both can be seen from the records, so `serve` looks for them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flows.deploy import CRASH_MESSAGE, CRASH_REMEDY

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_LOOKED_AT = 200
_TOLD_AT_ONCE = 20


def mark_orphans(workers: Collection[str]) -> list[str]:
    """Mark such flow runs of the configured server as crashed; returns their names.

    `workers` are the names of this machine's workers: only of what they started can be said whether it still runs.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    marked = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running, limit=_LOOKED_AT):
            if _process_is_gone(run, workers) or _parent_is_over(client, run):
                client.set_flow_run_state(run.id, Crashed(message=CRASH_MESSAGE))
                marked.append(run.name)
    return marked


def say_what_to_do(workers: Collection[str]) -> list[str]:
    """Add to what a worker said of a process that died what is to be done about it; returns the flow runs' names.

    A worker knows the signal that ended the process, and nothing of the lake.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import Crashed

    crashed = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])))
    told = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=crashed, sort=FlowRunSort.END_TIME_DESC, limit=_TOLD_AT_ONCE):
            said = (run.state and run.state.message) or ""
            if run.labels.get("prefect.worker.name") in workers and CRASH_REMEDY not in said:
                client.set_flow_run_state(run.id, Crashed(message=f"{said} {CRASH_REMEDY}".strip()), force=True)
                told.append(run.name)
    return told


def _process_is_gone(run: FlowRun, workers: Collection[str]) -> bool:
    """True for a run that one of the workers started in a process that does not exist now."""
    import psutil

    ours = run.labels.get("prefect.worker.name") in workers
    return ours and (run.infrastructure_pid or "").isdigit() and not psutil.pid_exists(int(run.infrastructure_pid or 0))


def _parent_is_over(client: SyncPrefectClient, run: FlowRun) -> bool:
    """True for a subflow in its parent's own process whose parent has ended; a deployment's run may outlive it."""
    if run.parent_task_run_id is None or run.deployment_id is not None:
        return False
    parent = client.read_task_run(run.parent_task_run_id).flow_run_id
    state = client.read_flow_run(parent).state if parent is not None else None
    return state is not None and state.is_final()
