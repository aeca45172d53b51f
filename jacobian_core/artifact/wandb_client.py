"""The real wandb client, alone in a process of its own: resolve an artifact's version, or download its files.

wandb retries for up to 20 minutes, has no read timeout, asks for a key on a terminal, and keeps corrupted bodies in its
cache, whose checksums it does not compare. In a child process all that is bounded: `artifact_wandb` can end it, nobody
can be asked, and its cache is a folder that dies with the download. It costs one start of Python and wandb, about 2 s.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jacobian_core.artifact.files import select_files
from jacobian_core.artifact.redact import redact
from jacobian_core.errors import ArtifactError

_ATTEMPTS = 2


def main() -> None:
    """Serve the one request on the first line of standard input; the answer is the last line of standard output."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = _serve(request)
    except ArtifactError as error:
        answer = {"problem": error.problem, "remedy": error.remedy}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the client's own farewells to its sidecar take most of a second, and the parent ends the sidecar


def _end_with_parent() -> None:
    """The parent holds the other end of standard input; when it is gone, so is this process."""
    sys.stdin.read()
    os._exit(1)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    location = request["location"]
    try:
        artifact = _find(location, request["answer_seconds"])
        if request["task"] == "resolve":
            return {"version": artifact.version}
        return {"left_out": _download(artifact, location, Path(request["folder"]))}
    except ArtifactError:
        raise
    except Exception as error:  # the client raises its own, requests', GraphQL's and built-in errors
        raise _explain(error, location) from None


def _find(location: str, answer_seconds: int) -> Any:
    import wandb

    return wandb.Api(timeout=answer_seconds).artifact(location)


def _download(artifact: Any, location: str, folder: Path) -> list[str]:
    """Download the files that make the artifact, each checked against its digest; the names of the others."""
    entries = artifact.manifest.entries
    wanted = select_files(entries, f"The wandb artifact {location}")
    for name in wanted:
        if entries[name].ref is not None:
            raise ArtifactError(
                f"{name} of the wandb artifact {location} is only a reference to another place.",
                "Download it by hand and use sae.source = 'folder'.",
            )
        _download_file(artifact, entries[name], name, location, folder)
    for path in folder.rglob("*"):  # the client takes every file that starts with the wanted name
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    return sorted(set(entries) - set(wanted))


def _download_file(artifact: Any, entry: Any, name: str, location: str, folder: Path) -> None:
    import requests

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            artifact.download(root=str(folder), skip_cache=True, path_prefix=name)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == _ATTEMPTS:
                raise
        else:
            if _digest(entry, folder / name) == entry.digest:
                return
        # A file left here would be trusted: the client remembers the digest that it expected, not the one it got.
        (folder / name).unlink(missing_ok=True)
    raise ArtifactError(
        f"{name} of the wandb artifact {location} arrived damaged {_ATTEMPTS} times: its digest is not the manifest's.",
        "Try again later; if it stays, the artifact is damaged on the server: use another version.",
    )


def _digest(entry: Any, path: Path) -> str:
    """The file's digest by the algorithm that the manifest names for it, base64 as the manifest writes it."""
    from wandb.sdk.lib import hashutil

    digest = hashutil.xxh128_file_b64 if "XXH128" in str(entry.digest_algorithm()) else hashutil.md5_file_b64
    return str(digest(str(path)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _explain(error: Exception, location: str) -> ArtifactError:
    """One line and a remedy for whatever the client raised; never the key, never a signed URL."""
    import requests
    import wandb.errors

    text = redact(str(error))
    what = f"The wandb artifact {location}"
    if (
        isinstance(error, OSError)
        and error.strerror
        and not isinstance(error, requests.RequestException | TimeoutError)
    ):
        return ArtifactError(
            f"{what} can't be written to the cache: {error.strerror}.", "Free space, or use another cache."
        )
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return ArtifactError(
            f"{what}: a file's download answered {error.response.status_code}.",
            "The artifact is incomplete on the server, or not for your account; use another version.",
        )
    if isinstance(error, wandb.errors.UsageError):
        return ArtifactError(
            f"{what} needs a W&B API key, and none is configured.",
            "Run `wandb login` or set WANDB_API_KEY (any account will do); or use sae.source = 'folder'.",
        )
    if any(isinstance(link, TimeoutError | requests.ConnectionError | requests.Timeout) for link in _chain(error)) or (
        isinstance(error, requests.exceptions.ChunkedEncodingError)
    ):
        return ArtifactError(
            f"{what}: no answer from the W&B server (no network, or the connection broke).",
            "Check the network, the proxy and WANDB_BASE_URL; a version fetched before is used without any network.",
        )
    if isinstance(error, wandb.errors.AuthenticationError):
        return ArtifactError(
            f"{what}: W&B refused the API key ({text}).", "Run `wandb login --relogin`, or set WANDB_API_KEY."
        )
    if "not found" in text:
        return ArtifactError(
            f"{what} does not exist, or your account may not see it ({text}).", "Check entity/project/name:version."
        )
    return ArtifactError(
        f"{what} can't be fetched: {type(error).__name__}: {text}.", "Try again, or use sae.source = 'folder'."
    )


if __name__ == "__main__":
    main()
