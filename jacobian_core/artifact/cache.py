"""Verified copies of fetched artifacts: downloaded aside, digested, synced to disk, then renamed into place.

A copy exists completely or not at all: its record (`artifact.json`, with each file's sha256) is written last and the
folder is renamed as one. A copy that no longer matches its record is replaced. Half-finished downloads are held by a
lock that dies with their process, so a later fetch can tell the abandoned ones and removes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jacobian_core.artifact.files import RECORD_NAME, Artifact, describe
from jacobian_core.errors import ArtifactError

_PARTIAL = ".partial-"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_log = logging.getLogger(__name__)


def copy_folder(shelf: Path, locator: str) -> Path:
    """Where on `shelf` the copy of `locator` lives: readable, and unique by a hash of the locator."""
    readable = _UNSAFE.sub("-", locator.split(":", 1)[-1]).strip(".-")[:80]
    return shelf / f"{readable}-{hashlib.sha256(locator.encode()).hexdigest()[:8]}"


def read_copy(folder: Path, locator: str) -> Artifact | None:
    """The copy in `folder` if every file still has its recorded sha256, else None (absent, damaged, or incomplete)."""
    record = _read_record(folder)
    if record is None:
        return None
    try:
        found = describe(folder, locator)
    except ArtifactError as error:
        _log.warning("the copy in %s is incomplete (%s) and is fetched again", folder, error.problem)
        return None
    if record.get("locator") != locator or record.get("files") != found.files:
        _log.warning("the copy in %s no longer matches its record and is fetched again", folder)
        return None
    return found


def copies_on(shelf: Path, prefix: str) -> list[str]:
    """Locators of the copies on `shelf` that start with `prefix`, sorted; nothing is verified."""
    records = (_read_record(path.parent) for path in shelf.glob(f"*/{RECORD_NAME}"))
    locators = (str(record.get("locator")) for record in records if record)
    return sorted(locator for locator in locators if locator.startswith(prefix))


@contextmanager
def partial_folder(shelf: Path) -> Iterator[Path]:
    """An empty folder on `shelf` to download into; it is gone at the end, whatever happened."""
    shelf.mkdir(parents=True, exist_ok=True)
    sweep_abandoned(shelf)
    folder, lock = _locked_folder(shelf)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def publish(
    download: Path, folder: Path, locator: str, left_out: list[str], origin: dict[str, Any] | None = None
) -> Artifact:
    """Make the complete files in `download` the copy `folder`; `left_out` names the source's files that were not taken.

    `origin` says what the files were made from, where they are not the source's own.
    Where another process published the same locator meanwhile, its copy is used.
    """
    artifact = describe(download, locator)
    record = {"locator": locator, "files": artifact.files, "digest": artifact.digest, "left_out": sorted(left_out)}
    if origin is not None:
        record["origin"] = origin
    for name in artifact.files:
        _sync(download / name)
    (download / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _sync(download / RECORD_NAME)
    for folder_of_files in {download, *((download / name).parent for name in artifact.files)}:
        _sync(folder_of_files)
    with _alone_on(folder.parent):
        published = read_copy(folder, locator) if folder.exists() else None
        if published is None:
            _replace(download, folder)
    return published or Artifact(folder, locator, artifact.files, artifact.digest)


@contextmanager
def _alone_on(shelf: Path) -> Iterator[None]:
    """Only one process at a time: otherwise one would take another's new copy for the damaged one and move it away."""
    lock = os.open(shelf, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _locked_folder(shelf: Path) -> tuple[Path, int]:
    """A new partial folder and the descriptor that holds its lock; again if a sweep caught it before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=shelf))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _replace(download: Path, folder: Path) -> None:
    """Rename `download` to `folder`, moving a damaged copy out of the way first."""
    with suppress(FileNotFoundError):
        damaged = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent)) / "damaged"
        try:
            folder.rename(damaged)
        finally:
            shutil.rmtree(damaged.parent, ignore_errors=True)
    download.rename(folder)
    _sync(folder.parent)


def sweep_abandoned(shelf: Path) -> None:
    """Remove the partial folders whose process is gone: nobody holds their lock."""
    for folder in shelf.glob(f"{_PARTIAL}*"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            _log.debug("%s is in use", folder)
        finally:
            os.close(lock)


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
