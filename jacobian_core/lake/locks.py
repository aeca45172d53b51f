"""Locks among the processes of one machine, by lock files on its disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from jacobian_core.errors import LakeError
from jacobian_core.lake.file_errors import lake_errors
from jacobian_core.lake.paths import LakePath, StorePath

_POLL_SECONDS = 0.02


@contextmanager
def exclusive(path: LakePath, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold the lock file `path` among all processes of this machine; the kernel frees it when its holder dies.

    In a store nothing is held. Raises LakeError when it can't be had within `timeout_s` seconds (its holder is paused,
    or the disk hangs).
    """
    if isinstance(path, StorePath):
        yield
        return
    import fcntl

    with lake_errors(path, "lock the file"), path.open("ab") as file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    problem = f"{path}: another process has held this lock for {timeout_s:.0f} s."
                    raise LakeError(problem, "Let it go on or end it, then start the same command again.") from None
                time.sleep(_POLL_SECONDS)
        yield
