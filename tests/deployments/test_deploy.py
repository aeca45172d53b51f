"""`jacobian deploy` and `status` on a real server: everything is there once, and stays as someone changed it."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.server import ServerState
from flows.status import LakeRunLine, read_status
from jacobian_core import pipeline
from jacobian_core.lake.layout import Lake
from tests.flows.test_cli import jacobian
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def deployed(server: ServerState, server_lake: Path) -> subprocess.CompletedProcess[str]:
    """The deployments, put there by the command."""
    Lake.create(server_lake)
    return jacobian("deploy", "--lake", str(server_lake), "--json", cwd=server_lake)


@pytest.fixture
def client(deployed: object, prefect_api: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as found:
        yield found


def test_the_command_names_what_it_deployed(deployed: subprocess.CompletedProcess[str]) -> None:
    assert deployed.returncode == 0, deployed.stderr
    names = {name.split("/")[1] for name in json.loads(deployed.stdout)}
    assert {"ingest", "run", "sweep", "analyse", "spread", "blocks", "report", "train-pair"} <= names


def test_parameters_are_absolute_typed_and_those_of_the_lake(client: Any, server_lake: Path) -> None:
    ingest = client.read_deployment_by_name("jacobian-ingest/ingest")
    assert ingest.parameters == {
        "lake": str(server_lake.resolve()), "profile": "demo", "settings": [], "shards_at_once": 1,
    }  # fmt: skip
    assert ingest.parameter_openapi_schema["properties"]["shards_at_once"]["minimum"] == 1
    assert (ingest.work_pool_name, ingest.work_queue_name) == ("cpu", "scheduled")
    assert ingest.global_concurrency_limit.limit == 1
    assert [s.schedule.cron for s in ingest.schedules] == ["17 * * * *"]


def test_a_wrong_parameter_is_refused_by_the_server(client: Any) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    ingest = client.read_deployment_by_name("jacobian-ingest/ingest")
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(ingest.id, parameters={"shards_at_once": 0})


def test_the_schedule_reaches_the_queue(client: Any) -> None:
    """With SQLAlchemy 2.1 the server would plan nothing, and say so nowhere."""
    import time

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = client.get_scheduled_flow_runs_for_work_pool("cpu", scheduled_before=None)
        if found:
            return
        time.sleep(0.5)
    pytest.fail("no flow run was scheduled")


def test_deploying_again_changes_nothing_that_someone_has_set(client: Any) -> None:
    from flows import deploy

    queue = client.read_work_queue_by_name("scheduled", work_pool_name="cpu")
    client.update_work_queue(queue.id, priority=7)
    (automation,) = client.read_automations_by_name(deploy.CRASH_AUTOMATION)
    deploy.create_pools()
    deploy.create_crash_automation(timedelta(seconds=11))
    assert client.read_work_queue_by_name("scheduled", work_pool_name="cpu").priority == 7
    assert [a.id for a in client.read_automations_by_name(deploy.CRASH_AUTOMATION)] == [automation.id]


def test_the_crash_rule_waits_longer_than_two_signs_of_life() -> None:
    from prefect.settings import get_current_settings

    from flows.deploy import SILENCE_SECONDS, crash_automation

    beat = get_current_settings().flows.heartbeat_frequency
    assert beat is not None
    assert crash_automation(timedelta(seconds=SILENCE_SECONDS)).trigger.within > 2 * timedelta(seconds=beat)


def test_status_tells_of_server_lake_and_last_failure(
    client: Any, server: ServerState, server_lake: Path, tiny: Path
) -> None:
    from prefect import flow

    @flow(name="doomed", flow_run_name="doomed")
    def doomed() -> None:
        raise RuntimeError("the tape\nran out")

    doomed(return_state=True)
    config = tiny_config(tiny, server_lake, corpus={"max_tokens": 500})
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    found = read_status(server_lake)
    assert found.server == server.ui
    assert LakeRunLine(run.run_id, 0, 500, 0) in found.in_progress
    assert found.last_failure is not None
    assert found.last_failure.message.endswith("the tape ran out")
    assert found.next_scheduled is not None
    assert (found.next_scheduled.deployment, found.next_scheduled.state) == ("ingest", "Scheduled")
    shown = jacobian("status", "--lake", str(server_lake), cwd=server_lake)
    assert (shown.returncode, server.ui in shown.stdout, run.run_id in shown.stdout) == (0, True, True)


def test_status_without_a_server_still_tells_of_the_lake(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    config = tiny_config(tiny, tmp_path / "lake")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    found = read_status(tmp_path / "lake")
    assert (found.server, [line.run_id for line in found.in_progress]) == (None, [run.run_id])
    assert read_status(tmp_path / "nothing").in_progress == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deploy", "--profile", "dmo"], "there is no profile 'dmo'"),
        (["deploy", "--pool", "tpu"], "there is no pool 'tpu'"),
        (["worker", "--pool", "gpu"], "none is visible"),
        (["serve", "--profile", "dmo"], "there is no profile 'dmo'"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = jacobian(*arguments, "--lake", str(tmp_path / "lake"), cwd=tmp_path)
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 1)
    assert says in found.stderr
