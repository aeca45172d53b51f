"""One real Prefect server for all tests that need one, under a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import ServerState, start_server, stop_server


@pytest.fixture(scope="session")
def server_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake whose local server the tests share."""
    return tmp_path_factory.mktemp("served") / "lake"


@pytest.fixture(scope="session")
def server(server_lake: Path) -> Iterator[ServerState]:
    """The shared server, stopped at the end."""
    yield start_server(server_lake)
    stop_server(server_lake)


@pytest.fixture(scope="session")
def prefect_api(server: ServerState, server_lake: Path) -> Iterator[str]:
    """This process' Prefect talks to the shared server while the fixture lives."""
    settings = {
        "PREFECT_API_URL": server.api,
        "PREFECT_HOME": str(server_lake / "_prefect"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: server.api}):
            yield server.api
