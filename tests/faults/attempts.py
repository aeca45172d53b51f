"""Start runs that something happens to, from the outside: SIGKILL, SIGSTOP, or a fault that the run carries in it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jacobian_core.config import RunConfig
from tests.faults.child import WARM_ROOT, Done, Failed, Fault, Order, attempt
from tests.faults.steps import STAGES

_PATIENCE = 120.0
ROOT = Path(__file__).parents[2]


@dataclass
class Attempt:
    """A run in a process of its own."""

    process: Any
    now: Any
    computing: Any
    entered: Any
    answer: Any

    def wait_for_trap(self) -> bool:
        """Until the trap's stage is entered; False if the run ended before."""
        return bool(_either(self.entered, self.process))

    def kill(self) -> str | None:
        """SIGKILL, now; returns the stage that it hit (None: the run had just ended, or was between stages)."""
        self.process.kill()
        self.process.join(_PATIENCE)
        return self.stage if self.process.exitcode == -signal.SIGKILL else None

    @property
    def stage(self) -> str | None:
        """The stage that the run is in, or was in when it died."""
        return STAGES[self.now.value] if self.now.value >= 0 else None

    def pause(self) -> None:
        """SIGSTOP: the process keeps all it holds and does nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> Done | Failed:
        """Wait for the run's own end."""
        said = self.answer.recv() if _either(self.answer, self.process) else None
        self.process.join(_PATIENCE)
        if not isinstance(said, (Done, Failed)):
            raise AssertionError(f"the run died with {self.process.exitcode} in {self.stage}")
        return said


def _either(connection: Any, process: Any) -> bool:
    """Wait for a message or the process' end; True for the message."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if connection.poll(0.05):
            return True
        if not process.is_alive():
            return bool(connection.poll(0))
    raise AssertionError("the run neither ended nor came to its stage")


@dataclass
class Runs:
    """Starts attempts over one miniature; `undisturbed` is the lake, and what its run said, that all are compared to.

    `root` holds `warm-*.json`, the configurations to be loaded beforehand.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    lake_of: Callable[[Path], str] = lambda place: str(place / "lake")

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.child"])
        before = dict(os.environ)
        os.environ.update({WARM_ROOT: str(self.root), "PYTHONPATH": str(ROOT), **self.environment})
        try:
            self._start_server()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _start_server(self) -> None:
        from multiprocessing import forkserver

        forkserver.ensure_running()

    def start(
        self, config: RunConfig, place: Path, trap: tuple[str, int] | None = None, fault: Fault | None = None,
        environment: dict[str, str] | None = None, through_prefect: bool = False,
    ) -> Attempt:  # fmt: skip
        """Begin a run in `place` (its lake, cache and scratch are there) and return at once."""
        moved = config.model_copy(update={"lake": config.lake.model_copy(update={"root": self.lake_of(place)})})
        order = Order(
            moved.model_dump_json(), str(place / "cache"), str(place / "scratch"), trap, fault,
            tuple({**self.environment, **(environment or {})}.items()), through_prefect,
        )  # fmt: skip
        now, computing = self._context.RawValue("i", -1), self._context.RawValue("i", 0)
        entered, entered_child = self._context.Pipe(duplex=False)
        answer, answer_child = self._context.Pipe(duplex=False)
        process = self._context.Process(target=attempt, args=(order, now, computing, entered_child, answer_child))
        process.start()
        entered_child.close()
        answer_child.close()
        return Attempt(process, now, computing, entered, answer)

    def run(self, config: RunConfig, place: Path, **options: Any) -> tuple[Done | Failed, int]:
        """A whole run; what it says, and how many computations of blocks it began."""
        started = self.start(config, place, **options)
        said = started.end()
        return said, started.computing.value

    def stop(self) -> None:
        """End the fork server; it would otherwise live as long as this process."""
        from multiprocessing import forkserver

        forkserver._forkserver._stop()

    def copy(self, source: Path, place: Path) -> Path:
        """A copy of an earlier attempt's place."""
        return Path(shutil.copytree(source, place))
