"""Everything on one machine: the lake's server, the deployments, and workers for what the machine has.

All of it listens on or talks to the loopback interface only. Ctrl-C ends the workers with their flow runs and the
server; the lake stays whole, and serving again continues where it was.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flows.workers import Supervisor, WorkerSpec, supervise, visible_devices, workers_of
from jacobian_core.errors import ServerError
from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    from flows.server import ServerState

_CHECK_SECONDS = 10.0


def serve(lake: LakePath, profile: str, port: int | None, cpu_limit: int, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `tell` gets a line for every event.

    Raises ServerError where the server can't be started or refuses the deployments.
    """
    from flows.deploy import Targets, deploy
    from flows.prefect_api import use_server
    from flows.server import server_status, start_server, stop_server

    with until_stopped() as stopped:
        ours = server_status(lake) is None
        if port is not None:
            start_server(lake, port)
        api, local = use_server(lake)
        try:
            devices = visible_devices()
            pool = "gpu" if devices else "cpu"
            try:
                names = deploy(Targets(lake, profile, pool))
            except ServerError:
                if stopped():  # Ctrl-C reached the deploying process too
                    return
                raise
            with Supervisor(workers_of(devices, socket.gethostname(), cpu_limit), _logs(lake), tell) as workers:
                _say_what_is_there(local.ui if local else api.removesuffix("/api"), names, workers.specs, tell)
                supervise(workers, _keeper(lake, local, workers.specs, tell), stopped)
                tell("stopping the workers and their flow runs ...")
        finally:
            if local is not None and ours:
                stop_server(lake)
    tell("stopped; the lake is whole, and `jacobian serve` continues where it was.")


def work(specs: Sequence[WorkerSpec], lake: LakePath, tell: Callable[[str], None]) -> None:
    """Run these workers for the configured server (or the lake's own) until Ctrl-C or SIGTERM."""
    from flows.prefect_api import use_server

    with until_stopped() as stopped:
        use_server(lake)
        with Supervisor(specs, _logs(lake), tell) as workers:
            for spec in specs:
                tell(f"worker {spec.name}: pool {spec.pool}, {spec.limit} at a time, {_sees(spec)}")
            supervise(workers, lambda: None, stopped)
            tell("stopping the workers and their flow runs ...")


@contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """While inside it, SIGINT and SIGTERM end nothing by themselves; what it yields says whether one has come."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keeper(
    lake: LakePath, local: ServerState | None, specs: Sequence[WorkerSpec], tell: Callable[[str], None]
) -> Callable[[], None]:
    """What is done now and then: the lake's own server is started again if it has died, and orphans are marked."""
    from flows.orphans import mark_orphans, say_what_to_do
    from flows.server import server_status, start_server

    next_check = [0.0]

    def keep() -> None:
        if time.monotonic() < next_check[0]:
            return
        next_check[0] = time.monotonic() + _CHECK_SECONDS
        try:
            if local is not None and server_status(lake) is None:
                tell("the Prefect server has ended; it is started again")
                start_server(lake, local.port)
            for name in mark_orphans([spec.name for spec in specs]):
                tell(f"flow run '{name}' had lost its process and is marked as crashed")
            say_what_to_do([spec.name for spec in specs])
        except Exception as error:  # a server that is away for a while: the workers go on without it
            tell(f"warning: {type(error).__name__}: {error}")

    return keep


def _say_what_is_there(ui: str, names: Sequence[str], specs: Sequence[WorkerSpec], tell: Callable[[str], None]) -> None:
    for spec in specs:
        tell(f"worker {spec.name}: pool {spec.pool}, {spec.limit} at a time, {_sees(spec)}")
    tell(f"deployments: {', '.join(names)}")
    tell(f"open {ui} (runs: {ui}/runs, deployments: {ui}/deployments, workers: {ui}/work-pools)")
    tell("start the ingest now: prefect deployment run jacobian-ingest/ingest, or the Run button of its page")
    tell(f"for other terminals: export PREFECT_API_URL={os.environ['PREFECT_API_URL']}")
    tell("Ctrl-C stops everything.")


def _sees(spec: WorkerSpec) -> str:
    return f"GPU {spec.device}" if spec.device else "no GPU of its own"


def _logs(lake: LakePath) -> Path:
    from flows.server import server_home

    return server_home(lake)
