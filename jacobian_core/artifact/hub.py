"""Fetch an artifact from a Hugging Face repository, by the commit that its revision stands for.

A commit never changes, so a verified copy of it is used without any network. A branch or tag moves, so it is resolved
on the hub each time. Each file is checked against the hub's own digest: sha256 for large files, git's blob id for small
ones; the client compares sizes only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jacobian_core.artifact.cache import copies_on, copy_folder, partial_folder, publish, read_copy, sweep_abandoned
from jacobian_core.artifact.files import Artifact, file_sha256, select_files
from jacobian_core.artifact.redact import redact
from jacobian_core.errors import ArtifactError, ConfigError

_LOCATION = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,249}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_SECONDS = 20.0
_ATTEMPTS = 2
_log = logging.getLogger(__name__)


def fetch_hub(location: str, revision: str | None, subfolder: str | None, cache: Path) -> Artifact:
    """The pair in `subfolder` of the model repository 'owner/name' as a verified copy under `cache`/huggingface.

    `revision` is a branch, tag or commit, null for the default branch. Raises ConfigError where a name has another
    form, ArtifactError where the artifact can't be had.
    """
    _check_names(location, revision)
    inside = PurePosixPath(subfolder or ".").as_posix()
    shelf = (cache / "huggingface").absolute()
    sweep_abandoned(shelf)
    tail = "" if inside == "." else f"/{inside}"
    if revision is not None and _COMMIT.fullmatch(revision):
        locator = _locator(location, revision, tail)
        copy = read_copy(copy_folder(shelf, locator), locator)
        if copy is not None:
            return copy
    info = _repository(location, revision, shelf)
    if revision != info.sha:
        _log.info("%s at %s is commit %s now", location, revision or "its default branch", info.sha)
    locator = _locator(location, info.sha, tail)
    folder = copy_folder(shelf, locator)
    return read_copy(folder, locator) or _download(info, location, inside, folder, locator)


@dataclass(frozen=True)
class RepositoryAt:
    """A hub repository at one commit: each of its files with the hub's digest of it."""

    location: str
    commit: str
    files: dict[str, Any]

    def names(self) -> set[str]:
        """The files' names."""
        return set(self.files)

    def download(self, name: str, partial: Path) -> Path:
        """Download a file into the partial folder, its digest compared; ArtifactError where it can't be had."""
        return _download_file(self.files[name], self.location, self.commit, partial)


def repository_at(location: str, revision: str | None, shelf: Path) -> RepositoryAt:
    """The repository at the commit that `revision` stands for now (null: the default branch).

    Raises ConfigError where a name has another form, ArtifactError where the hub does not say.
    """
    _check_names(location, revision)
    info = _repository(location, revision, shelf)
    return RepositoryAt(location, str(info.sha), {file.rfilename: file for file in info.siblings or ()})


def is_commit(revision: str) -> bool:
    """Whether a revision names a commit, which never moves."""
    return _COMMIT.fullmatch(revision) is not None


def _check_names(location: str, revision: str | None) -> None:
    if not _LOCATION.fullmatch(location) or ".." in location:
        raise ConfigError(f"sae.location = {location!r} is not a repository of the hub.", "Write owner/repository.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(f"sae.revision = {revision!r} is not a branch, tag or commit.", "Correct it, or remove it.")


def _locator(location: str, commit: str, tail: str) -> str:
    return f"huggingface:{location}@{commit}{tail}"


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _repository(location: str, revision: str | None, shelf: Path) -> Any:
    """What the hub says of the repository at that revision: its commit, and each file's size and digest."""
    try:
        info = _client().model_info(location, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS)
    except Exception as error:  # the client raises its own, httpx's and built-in errors
        problem = _explain(error, location, revision)
        prefix = f"huggingface:{location}@"
        known = [locator.removeprefix(prefix) for locator in copies_on(shelf, prefix)]
        hint = f" Fetched before, usable without any network as sae.revision: {', '.join(known)}." if known else ""
        raise ArtifactError(problem.problem, problem.remedy + hint) from None
    if not _COMMIT.fullmatch(str(info.sha)):
        raise ArtifactError(f"The hub gave {info.sha!r} as the commit of {location}.", "Check HF_ENDPOINT.")
    return info


def _download(info: Any, location: str, inside: str, folder: Path, locator: str) -> Artifact:
    root = PurePosixPath(inside)
    files = {PurePosixPath(file.rfilename): file for file in info.siblings or ()}
    names = {path.relative_to(root).as_posix(): file for path, file in files.items() if path.is_relative_to(root)}
    wanted = select_files(names, f"{location} at {info.sha[:12]}" + ("" if inside == "." else f", folder {inside},"))
    with partial_folder(folder.parent) as partial:
        target = partial / "files"
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _download_file(names[name], location, info.sha, partial).replace(target / name)
        return publish(target, folder, locator, sorted(set(names) - set(wanted)))


def _download_file(file: Any, location: str, commit: str, partial: Path) -> Path:
    """Download one file beside the others and compare its digest with the hub's."""
    for _ in range(_ATTEMPTS):
        try:
            # A cache of its own: a body that another program left in the user's is not trusted.
            path = _client().hf_hub_download(
                location, file.rfilename, revision=commit, local_dir=partial / "hub", cache_dir=partial / "cache",
                force_download=True, etag_timeout=_ANSWER_SECONDS,
            )  # fmt: skip
        except Exception as error:  # the client raises its own, httpx's and built-in errors
            raise _explain(error, location, commit, file.rfilename) from None
        if _is_intact(Path(path), file):
            return Path(path)
    raise ArtifactError(
        f"{file.rfilename} of {location} arrived damaged {_ATTEMPTS} times: its digest is not the hub's.",
        "Try again later; if it stays, the file is damaged on the server: use another revision.",
    )


def _is_intact(path: Path, file: Any) -> bool:
    if file.lfs is not None:
        return file_sha256(path) == str(file.lfs.sha256)
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == str(file.blob_id)


def _explain(error: Exception, location: str, revision: str | None, name: str = "") -> ArtifactError:
    """One line and a remedy for whatever the client raised; never a token, never a signed URL."""
    from huggingface_hub import errors

    what = f"{name} of {location}" if name else location
    chain = [link for link in (error, error.__cause__, error.__context__) if link is not None]

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        raise error  # the disk's fault, not the hub's
    if is_any(errors.OfflineModeIsEnabled):
        return ArtifactError(
            f"{what} is not in the cache, and HF_HUB_OFFLINE forbids the network.", "Unset it to fetch."
        )
    if is_any(errors.RevisionNotFoundError):
        return ArtifactError(f"{location} has no revision {revision!r}.", "Check sae.revision.")
    if is_any(errors.GatedRepoError):
        return ArtifactError(f"{location} is gated.", "Ask for access on its page, and set HF_TOKEN.")
    if is_any(errors.RepositoryNotFoundError):
        return ArtifactError(f"{location} is not on the hub, or is private.", "Check sae.location, and set HF_TOKEN.")
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None:
            return ArtifactError(
                f"{what}: the hub answered {status}.", "Try again later; if it was 401, check HF_TOKEN."
            )
    if is_any(ConnectionError, TimeoutError) or any(_is_network_error(link) for link in chain):
        return ArtifactError(
            f"{what}: no answer from the hub (no network, or the connection broke).",
            "Check the network, the proxy and HF_ENDPOINT; a commit fetched before is used without any network.",
        )
    return ArtifactError(f"{what} can't be fetched: {type(error).__name__}: {redact(str(error))}.", "Try again later.")


def _is_network_error(error: BaseException) -> bool:
    """True for the errors of the client's HTTP library, which is none of this project's dependencies."""
    return any(kind.__module__.partition(".")[0].startswith("httpx") for kind in type(error).__mro__)
