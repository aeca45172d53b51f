"""What goes wrong inside of a run's process: full and read-only disks, clocks that jump, impatience.

Each is a context manager that the fork imports by name; nothing of it outlives the attempt's process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION = 0x20080522


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Wait for another's lock no longer than this."""
    from jacobian_core.lake import files

    with patch.object(files.exclusive.__wrapped__, "__defaults__", (seconds,)):  # type: ignore[attr-defined]
        yield


@contextmanager
def slow_blocks(seconds: float) -> Iterator[None]:
    """Each block takes so many seconds more."""
    from jacobian_core import pipeline

    compute_block = pipeline.compute_block

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return compute_block(*arguments)

    with patch.object(pipeline, "compute_block", slow):
        yield


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: the kernel refuses, as with a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    yield


@contextmanager
def failing_step(step: int, number: int) -> Iterator[None]:
    """The `step`-th durable step (fsync, rename) and all later ones fail with this errno: the disk stays so."""
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(number, os.strerror(number))
            return function(*arguments, **options)

        return call

    with patch.object(os, "fsync", counted(os.fsync)), patch.object(Path, "replace", counted(Path.replace)):
        yield


@contextmanager
def no_privileges() -> Iterator[None]:
    """Permissions count, for root too."""
    if os.geteuid() == 0:
        _drop(_CAP_DAC_OVERRIDE)
    yield


def _drop(capability: int) -> None:
    """Take a capability from this process' effective set."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    data[0] &= ~(1 << capability)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def jumping_clock(seed: int) -> Iterator[None]:
    """Each look at the wall clock may find it hours or years away from the last one; the monotonic clocks go on."""
    draw, real, jump = random.Random(seed), time.time, 0.0

    def now() -> float:
        nonlocal jump
        if draw.random() < 0.3:
            jump = draw.choice((-1, 1)) * draw.choice((2.0, 3600.0, 86400.0, 3e7))
        return real() + jump

    with patch.object(time, "time", now):
        yield


FULL = errno.ENOSPC
READ_ONLY = errno.EROFS
