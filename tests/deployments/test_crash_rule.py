"""A process that is killed with nobody to see it: its flow run is marked as crashed, and says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flows import deploy
from flows.server import start_server, stop_server
from tests.deployments.rest import until
from tests.flows.test_cli import environment

pytestmark = pytest.mark.slow

SILENCE_SECONDS = 40
"""Longer than Prefect's shortest interval of heartbeats, 30 s."""
LIVE = """
import sys, time
from prefect import flow

@flow(name="live", flow_run_name="{name}")
def live(name):
    time.sleep(90)

live(sys.argv[1])
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[str]:
    """A server of its own, for the rule is shorter here."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    state = start_server(tmp_path / "lake")
    with temporary_settings({PREFECT_API_URL: state.api}):
        yield state.api
    stop_server(tmp_path / "lake")


def start(name: str, api: str, folder: Path) -> subprocess.Popen[bytes]:
    env = environment(folder, PREFECT_API_URL=api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    return subprocess.Popen([sys.executable, "-c", LIVE, name], env=env, cwd=folder)


def test_silence_is_a_crash_and_a_living_run_is_none(api: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    deploy.create_crash_automation(timedelta(seconds=SILENCE_SECONDS))
    processes = [start(name, api, tmp_path) for name in ("killed", "living")]
    with get_client(sync_client=True) as client:

        def states() -> dict[str, str]:
            return {run.name: run.state_name or "" for run in client.read_flow_runs()}

        try:
            until(lambda: list(states().values()) == ["Running"] * 2, 60, "running flows")
            os.kill(processes[0].pid, signal.SIGKILL)
            until(lambda: states()["killed"] == "Crashed", 2 * SILENCE_SECONDS + 30, "crash")
            assert states()["living"] == "Running"
            (killed,) = [run for run in client.read_flow_runs() if run.name == "killed"]
            assert killed.state is not None
            assert killed.state.message == deploy.CRASH_MESSAGE
            assert processes[1].wait(120) == 0
            assert states()["living"] == "Completed"
        finally:
            for process in processes:
                process.kill()
                process.wait()
