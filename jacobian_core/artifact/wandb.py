"""Fetch an artifact from wandb: look in the cache first, and ask the client's child process only for what is not there.

A version (`:v4`) never changes, so a verified copy of it is used without any network. An alias (`:latest`) moves, so it
is resolved on the server each time, and the version it stands for is what gets cached and recorded.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacobian_core.artifact.cache import copies_on, copy_folder, partial_folder, publish, read_copy, sweep_abandoned
from jacobian_core.artifact.files import Artifact
from jacobian_core.artifact.redact import redact
from jacobian_core.errors import ArtifactError, ConfigError

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_LOCATION = re.compile(rf"(?P<path>{_NAME}/[A-Za-z0-9_][A-Za-z0-9_. -]{{0,127}}/{_NAME}):(?P<version>{_NAME})")
_FIXED_VERSION = re.compile(r"v\d+")
_POLL_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds: for one answer of the API, and for the next byte of a download."""

    answer_seconds: int = 20
    stall_seconds: float = 120.0


def fetch_wandb(location: str, cache: Path, patience: Patience | None = None) -> Artifact:
    """The artifact 'entity/project/name:version' as a verified copy under `cache`/wandb.

    Raises ConfigError where the location has another form, ArtifactError where the artifact can't be had.
    """
    patience = patience or Patience()
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise ConfigError(
            f"sae.location = {location!r} is not a wandb artifact.", "Write entity/project/name:version, like a/b/c:v4."
        )
    shelf = (cache / "wandb").absolute()
    sweep_abandoned(shelf)
    version = match["version"]
    if not _FIXED_VERSION.fullmatch(version):
        version = _resolve(location, shelf, patience)
    fixed = f"{match['path']}:{version}"
    locator = f"wandb:{fixed}"
    folder = copy_folder(shelf, locator)
    return read_copy(folder, locator) or _download(fixed, locator, folder, patience)


def _resolve(location: str, shelf: Path, patience: Patience) -> str:
    """The version that an alias stands for now."""
    path, _, alias = location.rpartition(":")
    try:
        with partial_folder(shelf) as partial:
            version = str(_ask({"task": "resolve", "location": location}, partial, patience)["version"])
    except ArtifactError as error:
        known = [locator.rpartition(":")[2] for locator in copies_on(shelf, f"wandb:{path}:")]
        hint = f"The alias {alias!r} has to be resolved on the server; "
        remedy = (
            f"name a version instead, fetched before: {', '.join(known)}." if known else "a version like v4 has not."
        )
        raise ArtifactError(error.problem, f"{error.remedy} {hint}{remedy}") from None
    if not _FIXED_VERSION.fullmatch(version):
        raise ArtifactError(f"W&B gave {version!r} as the version of {location}.", "Name a version, like v4.")
    _log.info("%s is %s now", location, version)
    return version


def _download(location: str, locator: str, folder: Path, patience: Patience) -> Artifact:
    started = time.monotonic()
    with partial_folder(folder.parent) as partial:
        files = partial / "files"
        files.mkdir()
        request = {"task": "download", "location": location, "folder": str(files)}
        left_out = _ask(request, partial, patience)["left_out"]
        artifact = publish(files, folder, locator, left_out)
    _log.info("fetched %s in %.1f s", locator, time.monotonic() - started)
    return artifact


def _ask(request: dict[str, Any], partial: Path, patience: Patience) -> dict[str, Any]:
    """Run the client's process for one request, and end it, with its sidecar, when it is done or nothing moves."""
    scratch = partial / "scratch"
    scratch.mkdir()
    with (scratch / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "jacobian_core.artifact.wandb_client"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=_environment(scratch),
            start_new_session=True,
        )  # fmt: skip
        try:
            _send(process, {**request, **asdict(patience)})
            _wait(process, partial, patience.stall_seconds, str(request["location"]))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    return _read_answer(output, scratch / "stderr.txt", str(request["location"]))


def _environment(scratch: Path) -> dict[str, str]:
    """The user's environment (key, server, proxies), with the client's own files kept inside `scratch`."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    private = dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_DIR"), str(scratch))
    return {**os.environ, **private, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "PYTHONPATH": path}


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    """Write the request; standard input stays open, so that the child ends with this process."""
    assert process.stdin is not None  # noqa: S101  Popen was given a pipe
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()


def _wait(process: subprocess.Popen[bytes], partial: Path, stall_seconds: float, location: str) -> None:
    """Until the process ends; ArtifactError when the folder's files have not grown for `stall_seconds`."""
    size, moved = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        now = _bytes_in(partial)
        if now != size:
            size, moved = now, time.monotonic()
        elif time.monotonic() - moved > stall_seconds:
            raise ArtifactError(
                f"The wandb artifact {location}: no byte arrived for {stall_seconds:g} s.",
                "Check the network and try again; nothing was kept.",
            )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _read_answer(output: bytes, stderr: Path, location: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(output.strip().rpartition(b"\n")[2])
    except ValueError:
        lines = stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = redact(lines[-1]) if lines else "it said nothing"
        raise ArtifactError(
            f"The wandb artifact {location}: the client ended without an answer ({last}).", "Try again."
        ) from None
    if "problem" in content:
        raise ArtifactError(content["problem"], content["remedy"])
    return content
