"""A few threads that work through a list, with one core each, while the caller uses the results in order.

torch releases the interpreter's lock while it computes. Splitting every operation over all cores makes each wait for
the slowest at every step; handing out whole chunks does not, and as every operation then runs on one thread, results
do not depend on how many cores there are. While the caller encodes and writes one chunk, the next ones are computed.

Callers take turns: one has the crew until it has handed out its last item, and then the next one begins, while the
first still writes. There are two kinds of turns, so that the language model reads a block while the block before it is
turned into tables: where one waits for its last item, which all that follows needs, the cores work for the other. So
no core waits for the end of a block or of its parts.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from jacobian_core.one_thread import one_thread_each

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        self.forward_turns, self.turns = Turns(), Turns()

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
        with one_thread_each():
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
