"""Which Prefect API this process talks to: the user's, if one is set up, or else the lake's own local server.

Prefect reads the environment when it is imported, so nothing here imports it before `use_server` is done.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jacobian_core.errors import ServerError
from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    from flows.server import ServerState

_SEND_SECONDS = 20.0
PRIVATE = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""Environment that keeps Prefect from reporting usage and from advertising."""


def configured_api() -> str | None:
    """The Prefect API that the user has set up (environment, prefect.toml, active profile); None if there is none."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return str(tomllib.loads(Path("prefect.toml").read_text())["api"]["url"])
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        profiles = tomllib.loads(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").read_text())
        return str(profiles["profiles"][os.environ.get("PREFECT_PROFILE") or profiles["active"]]["PREFECT_API_URL"])
    return None


def use_server(lake: LakePath) -> tuple[str, ServerState | None]:
    """Point this process at a Prefect API, starting the lake's own server if none is configured; call before prefect.

    Returns the API's address and the local server (None: the API is the user's). Raises ServerError.
    """
    from flows.server import server_home, start_server

    api, local = configured_api(), None
    if api is None:
        local = start_server(lake)
        api = local.api
        os.environ["PREFECT_HOME"] = str(server_home(lake))
    elif not answers(api):
        raise ServerError(
            f"the configured Prefect API {_without_secrets(api)} does not answer.",
            "Start it, or unset PREFECT_API_URL to let a local server be started.",
        )
    os.environ["PREFECT_API_URL"] = api
    os.environ.update(PRIVATE)
    return api, local


def answers(api: str) -> bool:
    """True if something at `api` speaks HTTP: a hosted API may want a key for its health page."""
    parts = urlsplit(api)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", f"{parts.path}/health")
            return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException, ValueError):
        return False


def send_records() -> None:
    """Let this process' Prefect send the logs and events that it holds; once its server is gone it would retry long."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=_SEND_SECONDS)
        APILogWorker.drain_all(timeout=_SEND_SECONDS)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
