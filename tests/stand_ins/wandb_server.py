"""A stand-in for the W&B server: what wandb 0.31's real client asks for when it downloads an artifact.

It proves this project's code together with the real client and its sidecar, not the real server's permissions. The
answers follow the client's own generated query models; a query it does not know is answered with an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def _b64_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _opaque(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}:{number}".encode()).decode()


@dataclass
class WandbServer:
    """One project with one artifact in several versions, and the ways in which its answers can go wrong.

    `versions` maps 'v4' to its files; `aliases` maps 'latest' to 'v4'. `corrupt_bodies` and `cut_bodies` count how many
    file answers are still to be spoilt; `stall` stops in the middle of every file.
    """

    entity: str
    project: str
    name: str
    versions: dict[str, dict[str, bytes]]
    aliases: dict[str, str] = field(default_factory=dict)
    api_key: str | None = None
    graphql_status: int = 200
    file_status: int = 200
    corrupt_bodies: int = 0
    cut_bodies: int = 0
    stall: bool = False
    references: dict[str, str] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer; KeyError for a query that is not stood in for."""
        if "ArtifactMembershipByName" in query:
            return {"project": self._membership(variables)}
        if "FetchArtifactManifest" in query:
            url = f"{self.url}/manifest/{self._version_of(variables['id'])}"
            return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}
        if "GetArtifactMembershipFileUrls" in query:
            return {"project": {"artifactCollection": self._file_urls(variables["alias"])}}
        if "serverInfo" in query:
            limits = {"max_cli_version": "99.0.0"}
            return {"serverInfo": {"features": [], "cliVersionInfo": limits, "latestLocalVersionInfo": None}}
        if "viewer" in query:
            return {"viewer": self._viewer()}
        raise KeyError(query.split("{")[0])

    def manifest(self, version: str) -> dict[str, Any]:
        """The artifact's manifest: each file with its MD5 and size."""
        entries = {name: {"digest": _b64_md5(body), "size": len(body)} for name, body in self.versions[version].items()}
        entries.update({name: {"digest": "etag", "ref": url, "size": 1} for name, url in self.references.items()})
        return {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": {"storageLayout": "V2"},
            "contents": entries,
        }

    def _viewer(self) -> dict[str, Any]:
        return {
            "id": _opaque("User", 1), "entity": self.entity, "username": "reader", "name": "reader", "flags": "{}",
            "email": "reader@localhost", "admin": False, "teams": {"edges": []}, "accountType": "USER",
        }  # fmt: skip

    def _collection(self) -> dict[str, Any]:
        project = {
            "id": _opaque("Project", 1), "internalId": _opaque("ProjectInternalId", 1), "name": self.project,
            "entity": {"name": self.entity},
        }  # fmt: skip
        return {"__typename": "ArtifactSequence", "name": self.name, "project": project}

    def _membership(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        if (variables["entity"], variables["project"]) != (self.entity, self.project):
            return None
        name, _, alias = variables["name"].partition(":")
        version = self.aliases.get(alias, alias)
        if name != self.name or version not in self.versions:
            return {"artifactCollectionMembership": None}
        number = int(version[1:])
        files = self.versions[version]
        artifact = {
            "__typename": "Artifact", "id": _opaque("Artifact", number), "artifactSequence": self._collection(),
            "versionIndex": number, "artifactType": {"name": "model"}, "description": None, "metadata": "{}",
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
            "size": sum(map(len, files.values())), "digest": "0" * 32, "commitHash": "0", "fileCount": len(files),
            "createdAt": "2025-01-01T00:00:00Z", "updatedAt": None,
        }  # fmt: skip
        aliases = [alias for alias, target in self.aliases.items() if target == version]
        membership = {
            "__typename": "ArtifactCollectionMembership", "id": _opaque("Membership", number), "versionIndex": number,
            "createdAt": "2025-01-01T00:00:00Z", "artifactCollection": self._collection(), "artifact": artifact,
            "aliases": [
                {"__typename": "ArtifactAlias", "id": _opaque("Alias", i), "alias": a}
                for i, a in enumerate([version, *aliases])
            ],
        }  # fmt: skip
        return {"artifactCollectionMembership": membership}

    def _file_urls(self, version: str) -> dict[str, Any]:
        nodes = [
            {"__typename": "File", "name": name, "directUrl": f"{self.url}/files/{version}/{name}?signature=SIGNED"}
            for name in [*self.versions[version], *self.references]
        ]
        files = {
            "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
            "edges": [{"node": node} for node in nodes],
        }
        return {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}

    @staticmethod
    def _version_of(artifact_id: str) -> str:
        return "v" + base64.b64decode(artifact_id).decode().split(":")[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: WandbServer

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        """GraphQL."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stand_in.requests.append("graphql " + body["query"].strip().split("(")[0].split("{")[0].strip())
        if self.stand_in.graphql_status != 200:
            return self._send(self.stand_in.graphql_status, b'{"errors": [{"message": "refused"}]}')
        if self.stand_in.api_key is not None and not self._key_is_right():
            return self._send(401, b'{"errors": [{"message": "invalid API key"}]}')
        try:
            answer = {"data": self.stand_in.answer(body["query"], body.get("variables") or {})}
        except KeyError as error:
            answer = {"errors": [{"message": f"not stood in for: {error}"}]}
        return self._send(200, json.dumps(answer).encode())

    def do_GET(self) -> None:
        """A manifest or a file."""
        path = unquote(urlsplit(self.path).path)
        self.stand_in.requests.append(f"get {path}")
        kind, _, rest = path.lstrip("/").partition("/")
        if kind == "manifest":
            return self._send(200, json.dumps(self.stand_in.manifest(rest)).encode())
        version, _, name = rest.partition("/")
        body = self.stand_in.versions.get(version, {}).get(name) if kind == "files" else None
        if body is None or self.stand_in.file_status != 200:
            return self._send(404 if body is None else self.stand_in.file_status, b"no")
        return self._send_file(body)

    def _key_is_right(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        return base64.b64decode(given).decode() == f"api:{self.stand_in.api_key}"

    def _send_file(self, body: bytes) -> None:
        if self.stand_in.stall or self.stand_in.cut_bodies:
            self.stand_in.cut_bodies = max(0, self.stand_in.cut_bodies - 1)
            self._send(200, body[: len(body) // 2], length=len(body))
            self.close_connection = True
            while self.stand_in.stall:
                time.sleep(0.05)
            return
        if self.stand_in.corrupt_bodies:
            self.stand_in.corrupt_bodies -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        self._send(200, body)

    def _send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@contextmanager
def serve_wandb(locator: str, versions: dict[str, dict[str, bytes]], **behaviour: Any) -> Iterator[WandbServer]:
    """Serve an artifact 'entity/project/name' on a free local port; `.url` is what WANDB_BASE_URL must be."""
    entity, project, name = locator.split("/")
    stand_in = WandbServer(entity, project, name, versions, **behaviour)
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.stall = False
        server.shutdown()
        server.server_close()
        thread.join()
