"""Every file-system call of the lake, so that one module changes when the lake moves to an object store.

A file appears under its name only when it is whole: it is written under a temporary name in the same folder, fsynced
and renamed, and its folder is fsynced. That costs two fsyncs a file (milliseconds), next to a block's seconds of
computing. Temporary names start with `.tmp-`, so no reader that looks for `part-*` or `*.json` sees them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from jacobian_core.errors import LakeError

TEMPORARY_PREFIX = ".tmp-"
STALE_AFTER_SECONDS = 3600.0
"""Age at which a temporary file of a process on another machine counts as left behind."""
_LOCK_POLL_SECONDS = 0.02
_ATTEMPTS = 3
"""Tries at what another process can undo at the same moment."""

_REMEDIES = {
    errno.ENOSPC: "Free some space and start the same command again: finished blocks are kept.",
    errno.EDQUOT: "The disk quota is used up: free some space and start the same command again.",
    errno.EFBIG: "The file would pass the size limit (`ulimit -f`): raise it, or set a smaller `corpus.block_tokens`.",
    errno.EACCES: "Give this user the right to write there, or choose another folder with `--lake`.",
    errno.EPERM: "Give this user the right to write there, or choose another folder with `--lake`.",
    errno.EROFS: "The file system is read-only: choose another folder with `--lake`.",
    errno.ENOTDIR: "A part of the path is a file, not a folder: choose another folder with `--lake`.",
    errno.EEXIST: "A part of the path is a file, not a folder: choose another folder with `--lake`.",
    errno.EISDIR: "There is a folder where a file belongs: remove it, or choose another lake with `--lake`.",
    errno.ENOENT: "It is not there, or not any more: check `--lake`, or start the same command again.",
}


@contextmanager
def lake_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a LakeError that names the path and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Check the disk and start the same command again.")
        reason = error.strerror or str(error)
        raise LakeError(f"{path}: can't {doing}: {reason}.", remedy) from error


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


def is_temporary(path: Path) -> bool:
    """Whether the name is one of `temporary_path`'s."""
    return path.name.startswith(TEMPORARY_PREFIX)


def is_stale(path: Path) -> bool:
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


def make_folder(folder: Path) -> None:
    """Create the folder and its parents; LakeError where that is not possible."""
    with lake_errors(folder, "create the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def create_temporary(path: Path) -> BinaryIO:
    """Open a new temporary file for `path` (its folder is made); `Path(file.name)` is its name."""
    with lake_errors(path, "create the file"):
        for _ in range(_ATTEMPTS):
            make_folder(path.parent)
            with suppress(FileNotFoundError):  # another process has just cleared the folder away
                return temporary_path(path).open("xb")
        return temporary_path(path).open("xb")


def close_durably(file: BinaryIO) -> None:
    """Flush, fsync and close a file that was written."""
    with lake_errors(Path(file.name), "write the file"):
        file.flush()
        os.fsync(file.fileno())
        file.close()


def rename(temporary: Path, path: Path) -> None:
    """Give a whole temporary file its name, atomically; `fsync_folder` makes that durable."""
    with lake_errors(path, "publish the file"):
        temporary.replace(path)


def fsync_folder(folder: Path) -> None:
    """Make renames and removals inside the folder survive a power cut."""
    with lake_errors(folder, "sync the folder"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole small file, durably; on any error nothing is left and an older file stays as it was."""
    file = create_temporary(path)
    temporary = Path(file.name)
    try:
        with lake_errors(path, "write the file"):
            file.write(data)
        close_durably(file)
        rename(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        close_quietly(file)
        remove(temporary)
        raise


def close_quietly(file: BinaryIO) -> None:
    """Close a file whose content no longer matters."""
    with suppress(OSError):
        file.close()


def read_bytes(path: Path) -> bytes | None:
    """The file's content; None where there is no such file; LakeError where it can't be read."""
    with lake_errors(path, "read the file"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def size_of(path: Path) -> int | None:
    """The file's size in bytes; None where there is no such file."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file's bytes, as 64 hex digits; LakeError where it can't be read."""
    with lake_errors(path, "read the file"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_folder(folder: Path) -> list[Path]:
    """What is in the folder, sorted by name; nothing where there is no such folder."""
    with lake_errors(folder, "list the folder"):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def remove(path: Path) -> None:
    """Remove the file if it is there."""
    with lake_errors(path, "remove the file"):
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove the folder and all in it, also while another process does the same."""
    with lake_errors(folder, "remove the folder"):
        for _ in range(_ATTEMPTS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
        shutil.rmtree(folder)


@contextmanager
def exclusive(path: Path, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold the lock file `path` among all processes of this machine; the kernel frees it when its holder dies.

    Raises LakeError when it can't be had within `timeout_s` seconds (its holder is paused, or the disk hangs).
    """
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
                time.sleep(_LOCK_POLL_SECONDS)
        yield
