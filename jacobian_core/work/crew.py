"""A few threads that work through a list, with one core each, while the caller uses the results in order.

torch releases the interpreter's lock while it computes. Splitting every operation over all cores makes each wait for
the slowest at every step; handing out whole chunks does not, and as every operation then runs on one thread, results
do not depend on how many cores there are. While the caller encodes and writes one chunk, the next ones are computed.

Callers take turns: one has the crew until it has handed out its last item, and then the next one begins, while the
first still writes. So no core waits for the end of a block.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class _OneThreadEach:
    """torch's threads of an operation set to 1 while any crew is at work in this process, and then back.

    The setting is one of each thread, but for MKL, where it is the process's.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
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


_one_thread_each = _OneThreadEach()


class Turn:
    """A caller's turn; it ends when it is given up, or with its `with` block."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._mine = False

    def __enter__(self) -> Turn:
        self._lock.acquire()
        self._mine = True
        return self

    def __exit__(self, *error: object) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Let the next caller begin; nothing happens the second time."""
        if self._mine:
            self._mine = False
            self._lock.release()


class Turns:
    """Who computes: one caller at a time in a process."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def next(self) -> Turn:
        """A turn, which begins (`with`) when the one before it has ended."""
        return Turn(self._locks.setdefault(os.getpid(), threading.Lock()))


class Crew:
    """`size` threads; on a GPU one is enough, which keeps the device busy while the caller writes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self.turns = Turns()

    def _pool(self) -> ThreadPoolExecutor:
        """This process's threads: a forked process has the crew of its parent, but none of its threads."""
        process = os.getpid()
        if process not in self._pools:
            pool = ThreadPoolExecutor(self.size, "crew", initializer=torch.set_num_threads, initargs=(1,))
            self._pools = {process: pool}
        return self._pools[process]

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], last: Callable[[], None] | None = None
    ) -> Iterator[Result]:
        """`function` of every item, in the order of the items; at most `size + 1` results are computed in advance.

        `last` is called when the last item has been handed out. The first error is raised where its result would have
        come; what was begun is then waited for and forgotten.
        """
        waiting: deque[Future[Result]] = deque()
        left, pool = deque(items), self._pool()
        with _one_thread_each():
            try:
                while left or waiting:
                    while left and len(waiting) <= self.size:
                        waiting.append(pool.submit(torch.no_grad()(function), left.popleft()))
                        if not left and last is not None:
                            last()
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
                for future in waiting:
                    if not future.cancelled():
                        future.exception()
