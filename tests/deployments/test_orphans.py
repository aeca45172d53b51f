"""Only flow runs that nothing can be running any more are marked as crashed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest

from flows.deploy import CRASH_MESSAGE, CRASH_REMEDY
from flows.orphans import mark_orphans, say_what_to_do

OURS = "this-cpu"


@pytest.fixture
def client(prefect_api: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as found:
        yield found


def running(client: Any, name: str, **more: Any) -> UUID:
    """A flow run that says that it is running, and whose process is this test's word."""
    from prefect import flow
    from prefect.states import Running

    @flow(name="orphan")
    def orphan() -> None:
        pass

    run = client.create_flow_run(orphan, name=name, state=Running(), **more)
    return UUID(str(run.id))


def in_process(client: Any, name: str, worker: str, pid: int) -> UUID:
    run = running(client, name)
    client.update_flow_run(run, infrastructure_pid=str(pid))
    client.update_flow_run_labels(run, {"prefect.worker.name": worker})
    return run


def gone_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def state(client: Any, run: UUID) -> tuple[str, str | None]:
    found = client.read_flow_run(run).state
    return found.type.value, found.message


def test_a_run_is_marked_if_its_process_on_this_machine_is_gone(client: Any) -> None:
    gone = in_process(client, "gone", OURS, gone_pid())
    alive = in_process(client, "alive", OURS, os.getpid())
    elsewhere = in_process(client, "elsewhere", "other-cpu", gone_pid())
    unknown = running(client, "unknown")
    marked = mark_orphans([OURS])
    assert [name for name in marked if name in ("gone", "alive", "elsewhere", "unknown")] == ["gone"]
    assert state(client, gone) == ("CRASHED", CRASH_MESSAGE)
    assert {state(client, run)[0] for run in (alive, elsewhere, unknown)} == {"RUNNING"}
    for run in (alive, elsewhere, unknown):
        client.delete_flow_run(run)


def test_a_subflow_is_marked_when_its_parent_has_ended_and_not_before(client: Any) -> None:
    from prefect import task
    from prefect.states import Crashed

    @task
    def stand_in() -> None:
        pass

    parent = running(client, "parent")
    of_parent = client.create_task_run(stand_in, flow_run_id=parent, dynamic_key="0")
    child = running(client, "child", parent_task_run_id=of_parent.id)
    mark_orphans([OURS])
    assert state(client, child)[0] == "RUNNING"
    client.set_flow_run_state(parent, Crashed(message="killed"))
    assert "child" in mark_orphans([OURS])
    assert state(client, child) == ("CRASHED", CRASH_MESSAGE)


def test_what_a_worker_says_of_a_killed_process_is_followed_by_what_to_do(client: Any) -> None:
    from prefect.states import Crashed

    killed, elsewhere = (in_process(client, name, f"{name}-cpu", gone_pid()) for name in ("here", "there"))
    for run in (killed, elsewhere):
        client.set_flow_run_state(run, Crashed(message="ended by SIGKILL."), force=True)
    assert say_what_to_do(["here-cpu"]) == ["here"]
    assert say_what_to_do(["here-cpu"]) == []
    assert state(client, killed) == ("CRASHED", f"ended by SIGKILL. {CRASH_REMEDY}")
    assert state(client, elsewhere) == ("CRASHED", "ended by SIGKILL.")
