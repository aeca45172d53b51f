"""The Prefect server dies in the middle of a run and comes back: the lake knows what is done, not the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.server import ServerState, start_server, stop_server
from jacobian_core.lake.layout import Lake
from tests.faults.child import Done
from tests.faults.faults import slow_blocks
from tests.faults.table import Harness, Tried

Note = Callable[[Tried], None]
_PATIENCE = 120.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerState]:
    """A server that is the test's to kill, with its records outside of the lake."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield start_server(tmp_path / "served", port)
    stop_server(tmp_path / "served")


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_server_dies_and_returns_in_mid_run(
    harness: Harness, server: ServerState, tmp_path: Path, tried: Note
) -> None:
    private = {
        "PREFECT_API_URL": server.api,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    attempt = harness.runs.start(
        harness.config, tmp_path, fault=partial(slow_blocks, 1.0), environment=private, through_prefect=True
    )
    lake = Lake(tmp_path / "lake")
    wait_for(lambda: lake.done_blocks(harness.run_id))
    os.killpg(server.pid, signal.SIGKILL)
    wait_for(lambda: len(lake.done_blocks(harness.run_id)) > 1 or not attempt.process.is_alive())
    assert lake.manifest(harness.run_id) is None
    assert start_server(tmp_path / "served", server.port).port == server.port
    said = attempt.end()
    assert isinstance(said, Done), said
    assert states_of_flow_runs(server) == ["COMPLETED"]
    tried(harness.check(tmp_path, attempt.computing.value - harness.blocks, "Prefect server dies and returns"))


def states_of_flow_runs(server: ServerState) -> list[str]:
    request = urllib.request.Request(f"{server.api}/flow_runs/filter", b"{}", {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return [run["state_type"] for run in json.load(answer)]
