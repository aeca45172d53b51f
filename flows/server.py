"""The local Prefect server that `jacobian run` needs when none is configured.

A real server process costs 5 to 16 s at its first start; Prefect's in-process one loses task records when a run exits.
It keeps its state under `<lake>/_prefect` (of a lake in a store: in the cache), listens on the loopback interface only,
and stays up after a run so that the run can be looked at. Whoever starts first starts it; runs in other processes find
it by `server.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.prefect_api import PRIVATE, answers, send_records
from jacobian_core.errors import ServerError
from jacobian_core.lake.paths import LakePath, local_folder

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.2
_CLOCK_STEP_SECONDS = 30.0  # a process' start time moves with corrections of the machine's clock
_LOG_TAIL_LINES = 8

_started: list[subprocess.Popen[bytes]] = []  # kept: a server outlives the object that started it


class ServerState(BaseModel):
    """A local server: its process (id and start time, in seconds since the epoch) and its port."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float
    port: int

    @property
    def api(self) -> str:
        """Address of the API, as `PREFECT_API_URL` wants it."""
        return f"http://{HOST}:{self.port}/api"

    @property
    def ui(self) -> str:
        """Address of the pages for a browser."""
        return f"http://{HOST}:{self.port}"


def server_home(lake: LakePath) -> Path:
    """The folder that holds the local server's database, log and state, of this machine's part of the lake."""
    return local_folder(lake).resolve() / "_prefect"


def server_status(lake: LakePath) -> ServerState | None:
    """The lake's own server if its process is alive, else None."""
    try:
        state = ServerState.model_validate_json((server_home(lake) / "server.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return state if _runs(state) else None


def start_server(lake: LakePath, port: int | None = None) -> ServerState:
    """The lake's own server, started if it is not running, healthy; `port` None: 4200, or a free one if that is taken.

    Raises ServerError with the end of the server's log if it does not come up in time.
    """
    home = server_home(lake)
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "server.lock").open("w")
    except OSError as error:
        raise ServerError(f"{home} can't be written: {error.strerror}.", "Choose another folder with --lake.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs that start together share one server
        state = server_status(lake)
        if state is not None and port not in (None, state.port):
            raise ServerError(
                f"the lake's server already runs on port {state.port}.", "Stop it first: jacobian server stop."
            )
        if state is not None:
            _wait_until_healthy(state, home)
            return state
        if port is not None:
            return _launch(home, _free_port(port))
        try:
            return _launch(home, _free_port(None))
        except ServerError:  # another process may have taken the port between the look and the bind
            return _launch(home, _free_port(0))


def stop_server(lake: LakePath) -> ServerState | None:
    """Stop the lake's own server and its children; returns what was stopped, None if nothing ran."""
    state = server_status(lake)
    if state is not None:
        send_records()
        _end_group(state)
    (server_home(lake) / "server.json").unlink(missing_ok=True)
    return state


def _launch(home: Path, port: int) -> ServerState:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,  # a prefect.toml or .env of the user's folder is not for this server
            env=_server_environment(home, port),
            start_new_session=True,  # Ctrl-C in the terminal stops the run, not the server
        )
    _started.append(process)
    created = _process_created(process.pid)
    if created is None:
        raise ServerError("the Prefect server ended at once." + _log_tail(home))
    state = ServerState(pid=process.pid, created=created, port=port)
    try:
        _wait_until_healthy(state, home)
    except BaseException:
        _end_group(state)
        raise
    temporary = home / f".tmp-{os.getpid()}-server.json"
    temporary.write_text(state.model_dump_json())
    temporary.replace(home / "server.json")
    return state


def _server_environment(home: Path, port: int) -> dict[str, str]:
    dropped = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    return kept | PRIVATE | own


def _wait_until_healthy(state: ServerState, home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if not _runs(state):
            raise ServerError("the Prefect server ended while it started." + _log_tail(home))
        if answers(state.api) and _listens(state):
            return
        time.sleep(_POLL_SECONDS)
    problem = f"the Prefect server did not answer within {_START_SECONDS:.0f} s.{_log_tail(home)}."
    raise ServerError(problem, "Run `jacobian server stop` and try again.")


def _listens(state: ServerState) -> bool:
    """Whether the answering server is this one: its process, or a child of it, holds the port."""
    import psutil

    try:
        process = psutil.Process(state.pid)
        family = [process, *process.children(recursive=True)]
        return any(c.laddr.port == state.port for p in family for c in p.net_connections("tcp") if c.laddr)
    except psutil.Error:
        return False


def _free_port(wanted: int | None) -> int:
    for port in [DEFAULT_PORT, 0] if wanted is None else [wanted]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise ServerError(f"port {wanted} is taken.", "Choose another with --port, or leave it out.")


def _process_created(pid: int) -> float | None:
    """When the process began, seconds since the epoch; None if there is none (a zombie is none)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _runs(state: ServerState) -> bool:
    """True if the recorded process lives; one that got its id later began at another time."""
    created = _process_created(state.pid)
    return created is not None and abs(created - state.created) < _CLOCK_STEP_SECONDS


def _end_group(state: ServerState) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state.pid, number)
        for _ in _until(_STOP_SECONDS):
            if not _runs(state):
                return


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL_SECONDS)


def _log_tail(home: Path) -> str:
    lines = (home / "server.log").read_text(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:]
    return f" {home / 'server.log'} ends: " + " / ".join(line.strip() for line in lines)
