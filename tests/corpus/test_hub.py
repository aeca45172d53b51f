"""The hub, end to end: the real client against a local stand-in gives what the same files in a folder give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jacobian_core.config import CorpusConfig
from tests.corpus.helpers import record, write_lines
from tests.stand_ins.hub_dataset_server import COMMIT, Hub, Repository, serve_hub

CANARY = "hf_canary_that_must_not_show"
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pile")
    lines = [record(f"the cat sat on the mat {row * 7919}") for row in range(3000)]
    lines[1000] = b"broken"
    lines[2000] = b'{"text": "the dog ran", "meta": {"a_new_key": {"in": ["a", "later line"]}}}'
    write_lines(root / "train" / "00.jsonl.zst", lines)
    write_lines(root / "train" / "01.jsonl", lines[:50])
    texts = [json.loads(line)["text"] for line in lines[:900]]
    meta = [{"pile_set_name": "Books"}] * len(texts)
    pq.write_table(pa.table({"text": texts, "meta": meta}), root / "val.parquet", row_group_size=200)
    (root / "README.md").write_text("a dataset card")
    return root


@pytest.fixture(scope="module")
def damaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    content = (folder / "train" / "00.jsonl.zst").read_bytes()
    (root / "train").mkdir()
    (root / "train" / "00.jsonl.zst").write_bytes(content[: len(content) - 50])
    return root


@pytest.fixture(scope="module")
def hub(folder: Path, damaged: Path, model_folder: Path) -> Iterator[Hub]:
    with serve_hub(
        {
            ("datasets", "owner/pile"): Repository(folder, ("main", "v2")),
            ("datasets", "owner/flaky"): Repository(folder, cut_bodies=1),
            ("datasets", "owner/damaged"): Repository(damaged),
            ("datasets", "owner/private"): Repository(folder, status=401),
            ("datasets", "owner/gated"): Repository(folder, status=403),
            ("models", "owner/model"): Repository(model_folder),
        }
    ) as served:
        yield served


def corpus(location: str, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"source": "hub", "location": location, "block_tokens": 500, "context_tokens": 16}
    return CorpusConfig(**(settings | changes)).model_dump(mode="json")


@pytest.fixture(scope="module")
def results(hub: Hub, folder: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    local, remote = {"name": str(model_folder)}, {"name": "owner/model"}
    requests = {
        "hub": (corpus("owner/pile"), remote),
        "folder": (corpus(str(folder), source="folder"), local),
        "revision": (corpus("owner/pile", revision="v2", shards=["val.parquet"]), local),
        "flaky": (corpus("owner/flaky"), local),
        "damaged": (corpus("owner/damaged"), local),
        "private": (corpus("owner/private"), local),
        "gated": (corpus("owner/gated"), local),
        "missing": (corpus("owner/missing"), local),
        "no revision": (corpus("owner/pile", revision="v3"), local),
        "no shard": (corpus("owner/pile", shards=["test/*"]), local),
        "no name": (corpus("../pile"), local),
        "no model": (corpus("owner/pile"), {"name": "owner/none"}),
        "no model revision": (corpus("owner/pile"), {"name": "owner/model", "revision": "v9"}),
    }
    sent = json.dumps([{"corpus": wanted, "model": model} for wanted, model in requests.values()])
    return dict(zip(requests, ask(sent, hub.url, tmp_path_factory.mktemp("home")), strict=True))


def ask(sent: str, endpoint: str, home: Path) -> list[dict[str, Any]]:
    """What the client process answers."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": CANARY,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "tests.corpus.hub_client"]
    done = subprocess.run(
        command, input=sent, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=True
    )
    assert CANARY not in done.stdout + done.stderr
    shutil.rmtree(home)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_gives_what_the_folder_gives(results: Results) -> None:
    hub, folder = results["hub"], results["folder"]
    assert hub["error"] is folder["error"] is None
    assert len(hub["blocks"]) > 50
    assert hub["blocks"] == folder["blocks"]
    assert sum(block[4] for block in hub["blocks"]) == 1
    for (*there, digest), (*here, own_digest) in zip(hub["shards"], folder["shards"], strict=True):
        assert (there[:2], there[3], digest) == (here[:2], here[3], own_digest)


def test_a_shard_names_the_commit_that_its_revision_meant(results: Results) -> None:
    (shard,) = results["revision"]["shards"]
    assert shard[:3] == ["val.parquet", 2, f"hf://datasets/owner/pile@{COMMIT}/val.parquet"]
    assert results["revision"]["blocks"] == [b for b in results["folder"]["blocks"] if b[0].startswith("0002")]


def test_only_ranges_are_fetched_never_a_whole_shard_at_once(results: Results, hub: Hub) -> None:
    fetched = [request for request in hub.requests if "/datasets/owner/pile/resolve/" in request]
    assert fetched
    assert all("bytes=" in request for request in fetched if request.startswith("GET"))


def test_a_connection_that_breaks_is_taken_up_again(results: Results, hub: Hub) -> None:
    assert hub.repositories["datasets", "owner/flaky"].cut_bodies == 0
    assert results["flaky"]["error"] is None
    assert results["flaky"]["blocks"] == results["folder"]["blocks"]


def test_a_damaged_shard_on_the_hub_keeps_its_blocks(results: Results) -> None:
    damaged = results["damaged"]
    assert "CorpusError: shard train/00.jsonl.zst can't be read beyond row" in damaged["error"]
    assert len(damaged["blocks"]) > 10
    assert damaged["blocks"] == results["folder"]["blocks"][: len(damaged["blocks"])]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("private", "dataset owner/private (revision main) can't be listed: not found, or no permission."),
        ("gated", "dataset owner/gated (revision main) can't be listed: no permission."),
        ("missing", "dataset owner/missing (revision main) can't be listed: not found."),
        ("no revision", "dataset owner/pile (revision v3) can't be listed: not found."),
        ("no shard", "matches corpus.shards = test/*; there are 3: train/00.jsonl.zst, train/01.jsonl, val.parquet."),
        ("no name", "dataset ../pile (revision main) can't be listed: HFValidationError"),
        ("no model", "ModelError: tokenizer.json of model owner/none can't be fetched: RepositoryNotFoundError"),
        (
            "no model revision",
            "ModelError: tokenizer.json of model owner/model can't be fetched: RevisionNotFoundError",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(results: Results, name: str, text: str) -> None:
    error = results[name]["error"]
    assert text in error
    assert "\n" not in error


def test_a_hub_that_can_not_be_reached_is_a_clear_error(model_folder: Path, tmp_path: Path) -> None:
    sent = json.dumps([{"corpus": corpus("owner/pile"), "model": {"name": str(model_folder)}}])
    (result,) = ask(sent, "http://127.0.0.1:9", tmp_path)
    assert "dataset owner/pile (revision main) can't be listed: ConnectError" in result["error"]
    assert "Check the network" in result["error"]
