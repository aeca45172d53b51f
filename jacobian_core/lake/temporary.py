"""Names of files that are being written, and whether whoever wrote one is still there to finish it."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from functools import cache
from pathlib import Path

from jacobian_core.lake.paths import LakePath

TEMPORARY_PREFIX = ".tmp-"
STALE_AFTER_SECONDS = 3600.0
"""Age at which a temporary file of a process on another machine counts as left behind."""


@cache
def _host() -> str:
    """A short name of this machine; a process id means something only there."""
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]


@cache
def _process_token(process: int) -> str:
    """Tells this process from an earlier one with the same id, as a restarted container has; new after a fork."""
    del process
    return uuid.uuid4().hex[:8]


def temporary_path(path: Path) -> Path:
    """A fresh name beside `path`: `.tmp-<host>-<pid>-<process token>-<random>-<name>`."""
    pid = os.getpid()
    random = uuid.uuid4().hex[:8]
    return path.with_name(f"{TEMPORARY_PREFIX}{_host()}-{pid}-{_process_token(pid)}-{random}-{path.name}")


def is_temporary(path: LakePath) -> bool:
    """Whether the name is one of `temporary_path`'s."""
    return path.name.startswith(TEMPORARY_PREFIX)


def is_stale(path: LakePath) -> bool:
    """Whether nobody is going to finish this temporary file.

    On this machine the writing process must be gone; for another machine's file, only its age can tell.
    """
    host, _, rest = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")
    pid, _, rest = rest.partition("-")
    if host == _host() and pid.isdigit():
        if int(pid) == os.getpid():
            return not rest.startswith(_process_token(os.getpid()))
        if not _process_alive(int(pid)):
            return True
    if not isinstance(path, Path):
        return False  # an object appears whole, so none is temporary
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS
    except FileNotFoundError:
        return False


def _process_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
