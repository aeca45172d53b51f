"""A stand-in for the Hugging Face hub, as far as its real client asks to list a repository and to read files by range.

It proves this project's code together with the real `huggingface_hub` and `datasets`, not the real hub's limits.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"the only commit", usedforsecurity=False).hexdigest()
_API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Repository:
    """A folder that is served as a repository, and the ways in which its answers can go wrong.

    `status` is the answer to every request; `cut_bodies` file answers end half-way, with the connection closed.
    """

    folder: Path
    revisions: tuple[str, ...] = ("main",)
    status: int = 200
    cut_bodies: int = 0

    def files(self) -> list[dict[str, Any]]:
        """The entries of its tree, as the hub describes files kept by LFS."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [self._entry(path, path.read_bytes()) for path in paths]

    def _entry(self, path: Path, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        name = path.relative_to(self.folder).as_posix()
        return {"type": "file", "path": name, "size": len(content), "oid": oid, "lfs": lfs}


@dataclass
class Hub:
    """What is served: repositories by kind and name ('datasets', 'owner/pile'), and the requests that came."""

    repositories: dict[tuple[str, str], Repository]
    url: str = ""
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('range', '')}".strip())
        if match := _API.match(path):
            kind, name, action, revision, inside = match.groups()
            self._describe(self.hub.repositories.get((kind, name)), action, revision, inside or "", body)
        elif match := _FILE.match(path):
            kind, name, revision, file = match.groups()
            self._file(self.hub.repositories.get((kind or "models", name)), revision, file)
        else:
            self._send(404)

    def _describe(
        self, repository: Repository | None, action: str | None, revision: str | None, inside: str, body: bytes
    ) -> None:
        if self._refused(repository, revision or COMMIT):
            return
        assert repository
        files = [file for file in repository.files() if file["path"].startswith(inside)]
        if action == "paths-info":
            wanted = json.loads(body)["paths"]
            self._json([file for file in files if file["path"] in wanted])
        elif action == "tree":
            self._json(files)
        else:
            siblings = [{"rfilename": file["path"]} for file in files]
            self._json({"_id": "1", "id": "owner/name", "sha": COMMIT, "private": False, "siblings": siblings})

    def _refused(self, repository: Repository | None, revision: str) -> bool:
        """Answer for a repository or revision that is not there, or not for everyone."""
        if repository is None:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
        elif repository.status != 200:
            code = {401: "RepoNotFound", 403: "GatedRepo"}.get(repository.status, "")
            self._send(repository.status, {"X-Error-Code": code} if code else {})
        elif revision not in (COMMIT, *repository.revisions):
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _file(self, repository: Repository | None, revision: str, name: str) -> None:
        if self._refused(repository, revision):
            return
        assert repository
        path = repository.folder / name
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        cut = self.command == "GET" and repository.cut_bodies > 0
        repository.cut_bodies -= cut
        self._send(206 if wanted else 200, headers, content, cut)

    def _json(self, content: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


@contextmanager
def serve_hub(repositories: dict[tuple[str, str], Repository]) -> Iterator[Hub]:
    """Serve on a free local port; `url` is what HF_ENDPOINT should be."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
