"""The wandb source, end to end: the real client in its own process against a local stand-in for the server."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.artifact.files import Artifact
from jacobian_core.artifact.wandb import Patience, fetch_wandb
from jacobian_core.config import SaeConfig
from jacobian_core.errors import ArtifactError, ConfigError
from tests.artifact.conftest import CANARY, published_files
from tests.stand_ins.wandb_server import WandbServer, serve_wandb

pytestmark = pytest.mark.usefixtures("no_accounts")
LOCATION = "ent/proj/sae_pythia_blocks.3.ln2.hook_normalized_16384:v4"
QUICK = Patience(answer_seconds=2, stall_seconds=4.0)
Serve = Callable[..., WandbServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a stand-in that serves the pair as v4, with the canary as the user's key."""
    with ExitStack() as stack:

        def start(files: dict[str, bytes] | None = None, **behaviour: Any) -> WandbServer:
            content = published_files() if files is None else files
            server = stack.enter_context(serve_wandb(LOCATION.split(":")[0], {"v4": content}, **behaviour))
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            monkeypatch.setenv("WANDB_API_KEY", CANARY)
            return server

        yield start


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    """Everything on the wandb shelf."""
    return sorted(path.relative_to(cache).as_posix() for path in (cache / "wandb").rglob("*"))


def content_of(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.folder / name).read_bytes() for name in artifact.files}


def test_fetches_verifies_and_needs_no_network_again(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(
        {**published_files(), "optimizer.pt": b"a pickle", "sparsity.safetensors": b"unused"}, api_key=CANARY
    )
    config = SaeConfig(source="wandb", location=LOCATION)
    first = fetch_artifact(config, cache)
    assert content_of(first) == published_files()
    assert first.locator == f"wandb:{LOCATION}"
    assert first.folder.is_relative_to(cache / "wandb")
    assert not any("optimizer" in request for request in server.requests)
    record = json.loads((first.folder / "artifact.json").read_text())
    assert record["files"] == first.files
    assert record["left_out"] == ["optimizer.pt", "sparsity.safetensors"]
    assert len(leftovers(cache)) == 4
    monkeypatch.delenv("WANDB_API_KEY")
    before = len(server.requests)
    assert fetch_artifact(config, cache) == first
    assert len(server.requests) == before
    kept = "".join(path.read_text(errors="replace") for path in cache.rglob("*") if path.is_file())
    assert CANARY not in kept + caplog.text


def test_a_damaged_copy_is_fetched_again(serve: Serve, cache: Path) -> None:
    server = serve()
    first = fetch_wandb(LOCATION, cache)
    weights = first.folder / "sae_weights.safetensors"
    body = weights.read_bytes()
    weights.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    before = len(server.requests)
    assert fetch_wandb(LOCATION, cache) == first
    assert content_of(first) == published_files()
    assert len(server.requests) > before
    assert len(leftovers(cache)) == 4


def test_an_alias_is_resolved_each_time_and_cached_as_its_version(
    serve: Serve, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    alias = LOCATION.replace(":v4", ":latest")
    server = serve(aliases={"latest": "v4"})
    first = fetch_wandb(alias, cache)
    assert first.locator == f"wandb:{LOCATION}"
    assert f"{alias} is v4 now" in caplog.text
    server.versions["v5"] = {**published_files(), "cfg.json": b"{}"}
    server.aliases["latest"] = "v5"
    second = fetch_wandb(alias, cache)
    assert second.locator.endswith(":v5")
    assert second.digest != first.digest
    server.graphql_status = 500
    with pytest.raises(ArtifactError, match=r"name a version instead, fetched before: v4, v5\."):
        fetch_wandb(alias, cache, QUICK)


def test_a_body_damaged_once_is_fetched_again(serve: Serve, cache: Path) -> None:
    serve(corrupt_bodies=1)
    assert content_of(fetch_wandb(LOCATION, cache)) == published_files()


def test_a_connection_cut_once_is_tried_again(serve: Serve, cache: Path) -> None:
    serve(cut_bodies=1)
    assert content_of(fetch_wandb(LOCATION, cache)) == published_files()


def test_a_poisoned_client_cache_does_no_harm(serve: Serve, cache: Path, tmp_path: Path) -> None:
    """The client keeps a corrupted body in its cache and serves it again without asking; this project does not."""
    os.environ["WANDB_CACHE_DIR"] = str(tmp_path / "client")
    server = serve(corrupt_bodies=1000)
    plain = [
        sys.executable,
        "-c",
        f"import wandb; wandb.Api().artifact({LOCATION!r}).download(root={str(tmp_path / 'plain')!r})",
    ]
    try:
        subprocess.run(plain, check=True, env={**os.environ, "WANDB_SILENT": "true"}, capture_output=True)
        server.corrupt_bodies = 0
        asked = [request for request in server.requests if request.startswith("get /files")]
        (tmp_path / "plain/cfg.json").unlink()
        subprocess.run(plain, check=True, env={**os.environ, "WANDB_SILENT": "true"}, capture_output=True)
        assert [request for request in server.requests if request.startswith("get /files")] == asked
        assert (tmp_path / "plain/cfg.json").read_bytes() != published_files()["cfg.json"]
        assert content_of(fetch_wandb(LOCATION, cache)) == published_files()
    finally:
        del os.environ["WANDB_CACHE_DIR"]


SITUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "key refused": ({"api_key": "another" * 6}, "W&B refused the API key"),
    "forbidden": ({"graphql_status": 403}, "W&B refused the API key"),
    "server broken": ({"graphql_status": 500}, "no answer from the W&B server"),
    "file gone": ({"file_status": 404}, "a file's download answered 404"),
    "always corrupt": ({"corrupt_bodies": 1000}, r"cfg\.json .* arrived damaged 2 times"),
    "always cut": ({"cut_bodies": 1000}, "the connection broke"),
    "stalled": ({"stall": True}, r"no byte arrived for 4 s"),
    "reference": ({"references": {"model.safetensors": "s3://bucket/model.safetensors"}}, "only a reference"),
    "pickle only": ({"files": {"cfg.json": b"{}", "sae_weights.pt": b"x"}}, r"Convert sae_weights\.pt"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_failure_is_one_clear_line_and_leaves_nothing(
    serve: Serve, cache: Path, situation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    behaviour, expected = SITUATIONS[situation]
    serve(**behaviour)
    with pytest.raises(ArtifactError, match=expected) as raised:
        fetch_wandb(LOCATION, cache, QUICK)
    assert leftovers(cache) == []
    assert raised.value.remedy
    assert "\n" not in str(raised.value)
    chain = str(raised.value) + str(raised.value.__cause__) + caplog.text
    assert CANARY not in chain
    assert "SIGNED" not in chain


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (LOCATION.replace(":v4", ":v9"), "does not exist"),
        (LOCATION.replace("proj", "project"), "project 'project' not found under entity 'ent'"),
    ],
)
def test_wrong_names_say_so(serve: Serve, cache: Path, location: str, expected: str) -> None:
    serve()
    with pytest.raises(ArtifactError, match=expected):
        fetch_wandb(location, cache, QUICK)
    assert leftovers(cache) == []


@pytest.mark.parametrize(("key", "expected"), [(None, "needs a W&B API key"), ("short", "refused the API key")])
def test_keys_missing_or_malformed(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, expected: str
) -> None:
    serve()
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY")
    else:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ArtifactError, match=expected):
        fetch_wandb(LOCATION, cache, QUICK)
    assert leftovers(cache) == []


def test_no_network_ends_in_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    started = time.monotonic()
    with pytest.raises(ArtifactError, match="no answer from the W&B server"):
        fetch_wandb(LOCATION, cache, QUICK)
    assert time.monotonic() - started < 20
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "location",
    [
        "name:v4", "proj/name:v4", "ent/proj/name", "ent/proj/name:", "../../etc/name:v4", "ent/../name:v4",
        "/e/p/n:v4", "ent/proj/name:../../v4", "ent/proj/na\0me:v4", "ent/proj/name:v4\n", "ent/proj/sub/name:v4",
        "ent/proj/.:v4",
    ],
)  # fmt: skip
def test_other_forms_of_location_are_refused_unasked(cache: Path, location: str) -> None:
    with pytest.raises(ConfigError, match=r"sae\.location"):
        fetch_wandb(location, cache)
    assert not cache.exists()


def test_a_full_disk_is_the_disks_fault(serve: Serve, cache: Path) -> None:
    """A limit on the size of files stands in for the disk; the client's process inherits it."""
    serve({**published_files(), "model.safetensors": bytes(3_000_000)})
    fetch = f"fetch_wandb({LOCATION!r}, Path({str(cache)!r}))"
    code = f"""
import resource
from jacobian_core.artifact.wandb import *
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    {fetch}
except ArtifactError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "can't be written to the cache: File too large. Free space" in done.stdout
    assert leftovers(cache) == []


def test_a_fetch_killed_half_way_leaves_nothing_for_the_next(serve: Serve, cache: Path) -> None:
    server = serve(stall=True)
    code = f"fetch_wandb({LOCATION!r}, Path({str(cache)!r}))"
    process = subprocess.Popen([sys.executable, "-c", f"from jacobian_core.artifact.wandb import *; {code}"])
    deadline = time.monotonic() + 30
    while not any(request.startswith("get /files") for request in server.requests) and time.monotonic() < deadline:
        time.sleep(0.05)
    partial = [name for name in leftovers(cache) if name.endswith("/files")]
    assert len(partial) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.stall = False
    artifact = fetch_wandb(LOCATION, cache)
    assert content_of(artifact) == published_files()
    assert len(leftovers(cache)) == 4


def test_what_a_kill_left_is_swept_even_where_nothing_is_fetched(serve: Serve, cache: Path) -> None:
    serve()
    artifact = fetch_wandb(LOCATION, cache)
    (cache / "wandb/.partial-abandoned").mkdir()
    assert fetch_wandb(LOCATION, cache) == artifact
    assert len(leftovers(cache)) == 4
