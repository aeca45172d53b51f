"""Run a small run again and again, each time killed (SIGKILL) one durable step later, until it is not killed any more.

Usage: python -m tests.lake.crash_driver FOLDER; each attempt's lake is FOLDER/<step>. Prints the number of attempts.
A durable step is an fsync, a rename or a removal; the kill comes just before it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jacobian_core.lake.layout import Lake
from tests.lake.builders import write_run


def _kill_before_step(step: int) -> None:
    """Make the `step`-th durable step of this process its last moment."""
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return function(*arguments, **options)

        return call

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    shutil.rmtree = counted(shutil.rmtree)


def _attempt(root: Path, step: int) -> bool:
    """Whether the run came to its end before the `step`-th durable step."""
    child = os.fork()
    if child == 0:
        _kill_before_step(step)
        write_run(Lake.create(root))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main(folder: Path) -> None:
    """Kill at every step, from the first to the last."""
    write_run(Lake.create(folder / "warm"))  # what pyarrow imports late is then imported once, not in every child
    step = 0
    while not _attempt(folder / str(step), step):
        step += 1
    print(step + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
