"""Prefect process workers of this machine: one for each device, and one for what needs none, kept alive.

A limit counts slots but chooses no device, so each GPU has a worker of its own that sees nothing else and takes one
flow run at a time. A worker that ends by itself is started again; stopping ends the flow runs too, with the lake whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flows.deploy import flows_root

_RESTART_SECONDS = 5.0
_STOP_SECONDS = 15.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.5
_QUIET = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"  # our commands keep Prefect off the terminal; a worker has a log file


@dataclass(frozen=True)
class WorkerSpec:
    """One worker: its pool, its name in the UI, how many flow runs it takes at once, and the GPU that it sees.

    `device` is what CUDA_VISIBLE_DEVICES becomes, such as '0'; None: the environment decides, '' hides every GPU.
    """

    pool: str
    name: str
    limit: int
    device: str | None = None

    def command(self) -> list[str]:
        """How the worker is started."""
        base = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
        return [*base, "--pool", self.pool, "--name", self.name, "--limit", str(self.limit)]

    def environment(self) -> dict[str, str]:
        """What the worker sees; PREFECT_API_URL must be set already."""
        seen = {} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device}
        return {k: v for k, v in os.environ.items() if k != _QUIET} | seen


def workers_of(devices: Sequence[str], host: str, cpu_limit: int = 2) -> list[WorkerSpec]:
    """A worker of the pool `gpu` for each device, and one of the pool `cpu` that sees none of them."""
    cpu = WorkerSpec("cpu", f"{host}-cpu", cpu_limit, device="" if devices else None)
    return [*(WorkerSpec("gpu", f"{host}-gpu-{device}", 1, device) for device in devices), cpu]


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None:
        return [device.strip() for device in wanted.split(",") if device.strip()]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if asked.returncode == 0:
            return asked.stdout.split()
    return []


@dataclass
class Supervisor:
    """Keeps workers running until it is stopped; a context manager that leaves none behind."""

    specs: Sequence[WorkerSpec]
    log_folder: Path
    tell: Callable[[str], None]
    restart_seconds: float = _RESTART_SECONDS
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _again_at: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Supervisor:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        try:
            for spec in self.specs:
                self._start(spec)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Start again what has ended; call it every second or so."""
        for spec in self.specs:
            process = self._running.get(spec.name)
            if process is not None and process.poll() is not None:
                log = self.log_folder / f"worker-{spec.name}.log"
                self.tell(f"worker {spec.name} ended ({process.returncode}), see {log}; it is started again")
                del self._running[spec.name]
                self._again_at[spec.name] = time.monotonic() + self.restart_seconds
            elif process is None and time.monotonic() >= self._again_at.get(spec.name, 0.0):
                self._start(spec)

    def stop(self) -> None:
        """End every worker and every flow run that it started."""
        workers = list(self._running.values())
        families = [one for worker in workers for one in _family(worker.pid)]  # flow runs have sessions of their own
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.1, deadline - time.monotonic()))
        _end([*families, *(one for worker in workers for one in _family(worker.pid))])
        for worker in workers:
            worker.wait()
        self._running.clear()

    def pids(self) -> dict[str, int]:
        """The process of each running worker, by its name."""
        return {name: process.pid for name, process in self._running.items()}

    def _start(self, spec: WorkerSpec) -> None:
        log: IO[bytes]
        with (self.log_folder / f"worker-{spec.name}.log").open("ab") as log:
            self._running[spec.name] = subprocess.Popen(
                spec.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=flows_root(),
                env=spec.environment(),
                start_new_session=True,  # Ctrl-C in the terminal comes to the supervisor alone
            )


def _family(pid: int) -> list[Any]:
    """A process and all that came from it, as psutil knows them: one that gets a used id later is another."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _end(alive: Sequence[Any]) -> None:
    """End processes, first asked and then killed."""
    import psutil

    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=_KILL_SECONDS)


def supervise(supervisor: Supervisor, also: Callable[[], None], stopped: Callable[[], bool]) -> None:
    """Keep the workers running, and call `also` now and then, until `stopped`."""
    while not stopped():
        supervisor.check()
        also()
        time.sleep(_POLL_SECONDS)
