"""Every file-system call of the lake: on a disk, and (where a path is a StorePath) in an object store.

On a disk a file appears under its name only when it is whole: it is written under a temporary name in the same folder,
fsynced and renamed, and its folder is fsynced. That costs two fsyncs a file (milliseconds), next to a block's seconds
of computing. Temporary names start with `.tmp-`, so no reader that looks for `part-*` or `*.json` sees them.

In a store it is written and checked in this machine's cache, and then put whole (`store`). There are no folders to
make or to sync, and no locks: `publish` and `runs` say how workers then keep out of each other's way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jacobian_core.errors import LakeError
from jacobian_core.lake import store
from jacobian_core.lake.file_errors import lake_errors as lake_errors
from jacobian_core.lake.locks import exclusive as exclusive
from jacobian_core.lake.paths import LakePath, StorePath
from jacobian_core.lake.temporary import STALE_AFTER_SECONDS as STALE_AFTER_SECONDS
from jacobian_core.lake.temporary import TEMPORARY_PREFIX as TEMPORARY_PREFIX
from jacobian_core.lake.temporary import is_stale as is_stale
from jacobian_core.lake.temporary import is_temporary as is_temporary
from jacobian_core.lake.temporary import temporary_path as temporary_path
from jacobian_core.resources import cache_folder

_ATTEMPTS = 3
"""Tries at what another process can undo at the same moment."""

# ---- writing


def make_folder(folder: LakePath) -> None:
    """Create the folder and its parents; LakeError where that is not possible."""
    if isinstance(folder, Path):
        with lake_errors(folder, "create the folder"):
            folder.mkdir(parents=True, exist_ok=True)


def uploads_folder() -> Path:
    """Where files are written and checked before they are put into a store."""
    return cache_folder() / "uploads"


def create_temporary(path: LakePath) -> BinaryIO:
    """Open a new temporary file for `path` (its folder is made); `Path(file.name)` is its name."""
    place = path if isinstance(path, Path) else uploads_folder() / path.name
    with lake_errors(place, "create the file"):
        for _ in range(_ATTEMPTS):
            make_folder(place.parent)
            with suppress(FileNotFoundError):  # another process has just cleared the folder away
                return temporary_path(place).open("xb")
        return temporary_path(place).open("xb")


def close_durably(file: BinaryIO) -> None:
    """Flush, fsync and close a file that was written."""
    with lake_errors(Path(file.name), "write the file"):
        file.flush()
        os.fsync(file.fileno())
        file.close()


def close_quietly(file: BinaryIO) -> None:
    """Close a file whose content no longer matters."""
    with suppress(OSError):
        file.close()


def rename(temporary: Path, path: Path) -> None:
    """Give a whole temporary file of a disk its name, atomically; `fsync_folder` makes that durable."""
    with lake_errors(path, "publish the file"):
        temporary.replace(path)


def publish(temporary: Path, path: LakePath, sha256: str) -> None:
    """Let a whole temporary file appear as `path`, whatever was there; on a disk, `fsync_folder` is to follow."""
    if isinstance(path, StorePath):
        store.put_file(path, temporary, sha256)
    else:
        rename(temporary, path)


def fsync_folder(folder: LakePath) -> None:
    """Make renames and removals inside the folder survive a power cut."""
    if isinstance(folder, StorePath):
        return
    with lake_errors(folder, "sync the folder"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: LakePath, data: bytes) -> None:
    """Write a whole small file, durably; on any error nothing is left and an older file stays as it was."""
    if isinstance(path, StorePath):
        store.put(path, data)
        return
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


def write_new(path: LakePath, data: bytes) -> bool:
    """The same where there is no such file yet, else False. On a disk, the caller holds the lock that makes it true."""
    if isinstance(path, StorePath):
        return store.put(path, data, new=True)
    if path.exists():
        return False
    write_atomic(path, data)
    return True


def write_over(path: LakePath, data: bytes, version: str | None) -> bool:
    """Replace what had this `version_of`; False if that has changed since. On a disk, the caller holds the lock."""
    if isinstance(path, StorePath):
        return store.put(path, data, new=version is None, version=version)
    write_atomic(path, data)
    return True


def version_of(path: LakePath) -> str | None:
    """What tells a store's object from one that replaces it later; None on a disk, where locks do that."""
    found = store.head(path) if isinstance(path, StorePath) else None
    return found.version if found else None


# ---- reading


def read_bytes(path: LakePath) -> bytes | None:
    """The file's content; None where there is no such file; LakeError where it can't be read."""
    if isinstance(path, StorePath):
        return store.get(path)
    with lake_errors(path, "read the file"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def read_all(paths: Sequence[LakePath]) -> list[bytes | None]:
    """`read_bytes` of each, at once where that saves time."""
    objects = [path for path in paths if isinstance(path, StorePath)]
    return store.gets(objects) if objects else [read_bytes(path) for path in paths]


def is_file(path: LakePath) -> bool:
    """Whether there is such a file."""
    return store.head(path) is not None if isinstance(path, StorePath) else path.is_file()


def is_folder(folder: LakePath) -> bool:
    """Whether there is such a folder; in a store, whether anything is in it."""
    return store.any_below(folder) if isinstance(folder, StorePath) else folder.is_dir()


def size_of(path: LakePath) -> int | None:
    """The file's size in bytes; None where there is no such file."""
    return sizes_of([path])[0]


def sizes_of(paths: Sequence[LakePath]) -> list[int | None]:
    """The same of many files, at once where that saves time."""
    objects = [path for path in paths if isinstance(path, StorePath)]
    if objects:
        return [None if found is None else found.size for found in store.heads(objects)]
    return [_size_on_disk(path) for path in paths if isinstance(path, Path)]


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def modified(path: LakePath) -> float:
    """When the file got its name and content, in seconds since the epoch; LakeError where it is gone."""
    with lake_errors(path, "look at the file"):
        if isinstance(path, Path):
            return path.stat().st_mtime
        if (found := store.head(path)) is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone")
        return found.modified


def sha256_of(path: LakePath) -> str:
    """The SHA-256 of the file's bytes, as 64 hex digits; LakeError where it can't be read."""
    with on_disk(path) as copy, lake_errors(path, "read the file"), copy.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def on_disk(path: LakePath) -> Iterator[Path]:
    """The file as one of this machine's disk: itself, or a copy for as long as the context lasts."""
    if isinstance(path, Path):
        yield path
        return
    copy = temporary_path(uploads_folder() / path.name)
    make_folder(copy.parent)
    try:
        store.get_file(path, copy)
        yield copy
    except LakeError as error:
        raise type(error)(error.problem.replace(str(copy), str(path)), error.remedy) from error
    finally:
        remove(copy)


def copy_to_disk(path: LakePath, to: Path) -> None:
    """Copy a file to a new place of this machine's disk."""
    if isinstance(path, StorePath):
        store.get_file(path, to)
        return
    with lake_errors(to, "copy the file"):
        shutil.copyfile(path, to)


def list_folder(folder: LakePath) -> list[LakePath]:
    """What is in the folder, sorted by name; nothing where there is no such folder."""
    if isinstance(folder, StorePath):
        return [folder / name for name in store.listing(folder)]
    with lake_errors(folder, "list the folder"):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


# ---- removing


def remove(path: LakePath) -> None:
    """Remove the file if it is there."""
    if isinstance(path, StorePath):
        store.delete(path)
        return
    with lake_errors(path, "remove the file"):
        path.unlink(missing_ok=True)


def abort_uploads(folder: LakePath) -> int:
    """Give up what was being put into a store below `folder` and is not going to be ended; how many that were."""
    return store.abort_uploads(folder, STALE_AFTER_SECONDS) if isinstance(folder, StorePath) else 0


def remove_empty(folder: LakePath) -> None:
    """Remove the folder if nothing is in it."""
    if isinstance(folder, Path):
        with suppress(OSError):
            folder.rmdir()


def remove_tree(folder: LakePath) -> None:
    """Remove the folder and all in it, also while another process does the same."""
    if isinstance(folder, StorePath):
        store.delete_below(folder)
        return
    with lake_errors(folder, "remove the folder"):
        for _ in range(_ATTEMPTS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
        shutil.rmtree(folder)
