"""Run a small run into the store again and again, each time killed (SIGKILL) before a later request that changes it.

Usage: python -m tests.store.crash_driver PREFIX FIRST STRIDE; each attempt's lake is PREFIX/<step>. Prints the steps.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from jacobian_core.lake import store
from jacobian_core.lake.layout import Lake
from tests.lake.builders import write_run


def _kill_before_step(step: int) -> None:
    steps, lock = itertools.count(), threading.Lock()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with lock:
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("put", "put_file", "delete", "delete_below"):
        setattr(store, name, counted(getattr(store, name)))


def _attempt(root: str, step: int) -> bool:
    """Whether the run came to its end before that step."""
    child = os.fork()
    if child == 0:
        _kill_before_step(step)
        write_run(Lake.create(root))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main(prefix: str, first: int, stride: int) -> None:
    """Kill at every `stride`-th step, to the last."""
    tried = []
    for step in itertools.count(first, stride):
        tried.append(step)
        if _attempt(f"{prefix}/{step}", step):
            break
    print(*tried)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
