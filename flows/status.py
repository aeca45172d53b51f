"""How it stands: the server, its workers, what runs and how far it is, and what failed last.

The lake says how far a run is, the server who works on it; each is told without the other if one of them is gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_SHOWN_RUNS = 20


@dataclass(frozen=True)
class WorkerLine:
    """A worker that the server knows; `silent_seconds` since its last sign of life, None if there was none."""

    pool: str
    name: str
    state: str
    silent_seconds: int | None


@dataclass(frozen=True)
class LakeRunLine:
    """A run of the lake in progress; `tokens_wanted` None: as many as its shards have."""

    run_id: str
    tokens: int
    tokens_wanted: int | None
    blocks: int


@dataclass(frozen=True)
class FlowRunLine:
    """A flow run of the server, when it began (or failed, or is due) and what its state says."""

    name: str
    deployment: str | None
    state: str
    at: str | None
    message: str


@dataclass(frozen=True)
class Status:
    """The whole picture; `server` None: no Prefect server answers."""

    server: str | None
    workers: list[WorkerLine]
    in_progress: list[LakeRunLine]
    flow_runs: list[FlowRunLine]
    next_scheduled: FlowRunLine | None
    last_failure: FlowRunLine | None


def read_status(lake: LakePath) -> Status:
    """The state of the lake and of the configured Prefect server (or the lake's own); it starts nothing."""
    from flows.prefect_api import answers, configured_api
    from flows.server import server_home, server_status

    in_progress = _lake_runs(lake)
    api, local = configured_api(), server_status(lake)
    if api is None and local is not None:
        api = local.api
        os.environ["PREFECT_HOME"] = str(server_home(lake))
    if api is None or not answers(api):
        return Status(None, [], in_progress, [], None, None)
    os.environ["PREFECT_API_URL"] = api
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return _of_server(client, api.removesuffix("/api"), in_progress)


def _lake_runs(root: LakePath) -> list[LakeRunLine]:
    from jacobian_core.lake.files import is_file
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql.run_list import list_runs

    if not is_file(Lake(root).description_path):
        return []
    lake, lines = Lake.open(root), []
    for run in list_runs(lake):
        request = None if run.state == "complete" else lake.request(run.run_id)
        if request is not None:
            corpus: Any = request.config.get("corpus") or {}
            lines.append(LakeRunLine(run.run_id, run.tokens, corpus.get("max_tokens"), run.blocks))
    return lines


def _of_server(client: SyncPrefectClient, server: str, in_progress: list[LakeRunLine]) -> Status:
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    going = _flow_runs(client, [StateType.RUNNING, StateType.PENDING], FlowRunSort.START_TIME_DESC, _SHOWN_RUNS)
    failed = _flow_runs(client, [StateType.FAILED, StateType.CRASHED], FlowRunSort.END_TIME_DESC, 1)
    due = _flow_runs(client, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC, 1)
    return Status(
        server=server,
        workers=_workers(client),
        in_progress=in_progress,
        flow_runs=[_line(client, run, run.start_time) for run in going],
        next_scheduled=_line(client, due[0], due[0].expected_start_time) if due else None,
        last_failure=_line(client, failed[0], failed[0].end_time) if failed else None,
    )


def _flow_runs(client: SyncPrefectClient, states: list[Any], sort: Any, limit: int) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType

    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    return client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=limit)


def _line(client: SyncPrefectClient, run: FlowRun, at: datetime | None) -> FlowRunLine:
    from prefect.exceptions import ObjectNotFound

    deployment = None
    if run.deployment_id is not None:
        try:
            deployment = client.read_deployment(run.deployment_id).name
        except ObjectNotFound:
            deployment = "(removed)"
    message = " ".join((run.state.message or "").split()) if run.state else ""
    when = at.astimezone(UTC).isoformat(timespec="seconds") if at else None
    return FlowRunLine(run.name, deployment, run.state_name or "", when, message)


def _workers(client: SyncPrefectClient) -> list[WorkerLine]:
    now = datetime.now(UTC)
    lines = []
    for pool in client.read_work_pools():
        for worker in client.read_workers_for_work_pool(pool.name):
            seen = worker.last_heartbeat_time
            silent = round((now - seen).total_seconds()) if seen else None
            lines.append(WorkerLine(pool.name, worker.name, worker.status.value.lower(), silent))
    return lines
