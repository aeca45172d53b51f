"""A stand-in for the hub's model repositories: what its client asks for to resolve a revision and download files.

It adds to `hub_dataset_server` what downloads are verified with: each file's digest, sha256 for files kept by LFS and
git's blob id for the small ones.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.stand_ins.hub_dataset_server import COMMIT, Hub, Repository, _Handler


@dataclass
class ModelRepository(Repository):
    """A model repository; `corrupt_bodies` file answers are still to be spoilt, `commit` is its head."""

    corrupt_bodies: int = 0
    commit: str = COMMIT

    def siblings(self) -> list[dict[str, Any]]:
        """The files with their digests, as the hub gives them when asked for `blobs`."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [self._sibling(path, path.read_bytes()) for path in paths]

    def _sibling(self, path: Path, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        sibling: dict[str, Any] = {
            "rfilename": path.relative_to(self.folder).as_posix(),
            "size": len(content),
            "blobId": blob,
        }
        if path.suffix in (".safetensors", ".npz"):
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return sibling


class _ModelHandler(_Handler):
    def _describe(
        self, repository: Repository | None, action: str | None, revision: str | None, inside: str, body: bytes
    ) -> None:
        if not isinstance(repository, ModelRepository) or action not in (None, "revision"):
            return super()._describe(repository, action, revision, inside, body)
        if not self._refused(repository, revision or COMMIT):
            sha = repository.commit
            self._json(
                {"_id": "1", "id": "owner/name", "sha": sha, "private": False, "siblings": repository.siblings()}
            )
        return None

    def _file(self, repository: Repository | None, revision: str, name: str) -> None:
        self._served = repository
        super()._file(repository, revision, name)

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", cut: bool = False) -> None:
        served = getattr(self, "_served", None)
        if isinstance(served, ModelRepository) and self.command == "GET" and body and served.corrupt_bodies:
            served.corrupt_bodies -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        self._served = None
        super()._send(status, headers, body, cut)


@contextmanager
def serve_models(repositories: dict[str, ModelRepository]) -> Iterator[Hub]:
    """Serve 'owner/name' model repositories on a free local port; `url` is what HF_ENDPOINT should be."""
    hub = Hub({("models", name): repository for name, repository in repositories.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_ModelHandler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
