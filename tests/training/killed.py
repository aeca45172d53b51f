"""A training in a process of its own, started again until it ends; it is killed at random moments meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable

LONGEST_SECONDS = 60.0


def until_it_ends(work: Callable[[], None], kills: int, moments: random.Random, within_seconds: float) -> int:
    """Run `work` in a fork; SIGKILL it `kills` times, each at a random moment `within_seconds`; returns the kills.

    A try that ends before its moment counts as none: the caller must see to it that there is enough to do.
    """
    killed = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        if killed < kills:
            process.join(moments.uniform(0.0, within_seconds))
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
        process.join(LONGEST_SECONDS)
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}"
        killed += 1
        time.sleep(0)
