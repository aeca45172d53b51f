"""torch's operations on one thread each, for work that is spread over threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OneThreadEach:
    """torch's threads of an operation set to 1 while anyone is in a `with` block of this in the process, and then back.

    The setting is one of each thread, but for MKL, where it is the process's: threads that torch first meets inside use
    one thread each. What is found by whoever comes first is set again by whoever leaves last.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """One user's time."""
        with self._lock:
            if self._users == 0:
                self._before = torch.get_num_threads()
            self._users += 1
            torch.set_num_threads(1)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.set_num_threads(self._before)


one_thread_each = OneThreadEach()
"""This process' own."""
