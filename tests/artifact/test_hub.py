"""The Hugging Face source, end to end: the real client against a local stand-in for the hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.artifact.files import Artifact
from jacobian_core.config import SaeConfig
from jacobian_core.errors import ArtifactError, ConfigError
from tests.artifact.conftest import CANARY, published_files
from tests.stand_ins.hub_dataset_server import COMMIT, Hub
from tests.stand_ins.hub_server import ModelRepository, serve_models

pytestmark = pytest.mark.usefixtures("no_accounts")
NAME = "owner/jsae.pythia-70m"
LATER = "b" * 40


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """The pair at the top and once more in a folder, beside a pickle."""
    for folder in ("repository", "repository/layers/3"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, body in published_files().items():
            (tmp_path / folder / name).write_bytes(body)
    (tmp_path / "repository/model.bin").write_bytes(b"a pickle")
    return ModelRepository(tmp_path / "repository", revisions=("main", "v1", LATER))


@pytest.fixture
def hub(repository: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_models({NAME: repository}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", CANARY)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(cache: Path, revision: str | None = None, subfolder: str | None = None) -> Artifact:
    config = SaeConfig(source="huggingface", location=NAME, revision=revision, subfolder=subfolder)
    return fetch_artifact(config, cache)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "huggingface").rglob("*"))


def content_of(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.folder / name).read_bytes() for name in artifact.files}


def test_fetches_by_commit_and_needs_no_network_again(
    hub: Hub, cache: Path, repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = fetch(cache)
    assert content_of(first) == published_files()
    assert first.locator == f"huggingface:{NAME}@{COMMIT}"
    assert not any("model.bin" in request for request in hub.requests if "resolve" in request)
    record = json.loads((first.folder / "artifact.json").read_text())
    assert record["left_out"] == ["layers/3/cfg.json", "layers/3/sae_weights.safetensors", "model.bin"]
    assert leftovers(cache) == sorted([first.folder.name, "artifact.json", *published_files()])
    before = len(hub.requests)
    assert fetch(cache, COMMIT) == first
    assert len(hub.requests) == before
    assert fetch(cache, "v1") == first
    assert len(hub.requests) == before + 1
    assert CANARY not in caplog.text + json.dumps(record)


def test_a_branch_is_resolved_each_time(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    first = fetch(cache)
    (repository.folder / "cfg.json").write_bytes(b'{"changed": true}')
    repository.commit = LATER
    second = fetch(cache)
    assert second.locator == f"huggingface:{NAME}@{LATER}"
    assert second.digest != first.digest
    assert content_of(first) == published_files()


def test_a_subfolder_is_a_copy_of_its_own(hub: Hub, cache: Path) -> None:
    artifact = fetch(cache, subfolder="layers/3/")
    assert artifact.locator == f"huggingface:{NAME}@{COMMIT}/layers/3"
    assert content_of(artifact) == published_files()
    assert artifact.folder != fetch(cache).folder
    with pytest.raises(ArtifactError, match=r"folder layers/4, has no cfg\.json and no sae_weights\.safetensors"):
        fetch(cache, subfolder="layers/4")


def test_a_body_damaged_once_is_fetched_again(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    repository.corrupt_bodies = 1
    assert content_of(fetch(cache)) == published_files()


def test_a_body_damaged_twice_is_an_error(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    repository.corrupt_bodies = 2
    with pytest.raises(ArtifactError, match=r"cfg\.json of .* arrived damaged 2 times"):
        fetch(cache)
    assert leftovers(cache) == []


def test_a_connection_cut_once_is_resumed(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    repository.cut_bodies = 1
    assert content_of(fetch(cache)) == published_files()


def test_a_large_file_is_checked_too(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    (repository.folder / "cfg.json").write_bytes(b"")
    repository.corrupt_bodies = 2
    with pytest.raises(ArtifactError, match=r"sae_weights\.safetensors of .* arrived damaged 2 times"):
        fetch(cache)
    assert leftovers(cache) == []


def test_a_damaged_copy_is_fetched_again(hub: Hub, cache: Path) -> None:
    first = fetch(cache)
    (first.folder / "cfg.json").write_bytes(b"{}")
    assert fetch(cache, COMMIT) == first
    assert content_of(first) == published_files()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "is not on the hub, or is private"), (403, "is gated"), (404, "is not on the hub"), (500, "answered 500")],
)
def test_refusals_are_one_clear_line(
    hub: Hub, cache: Path, repository: ModelRepository, status: int, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if status == 404:
        hub.repositories.clear()
    else:
        repository.status = status
    with pytest.raises(ArtifactError, match=expected) as raised:
        fetch(cache)
    assert leftovers(cache) == []
    assert raised.value.remedy
    assert "\n" not in str(raised.value)
    assert CANARY not in str(raised.value) + caplog.text


def test_an_unknown_revision_says_so(hub: Hub, cache: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no revision 'v9'"):
        fetch(cache, "v9")


def test_no_network_names_what_is_there(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(cache)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match=f"no answer from the hub.*as sae.revision: {COMMIT}"):
        fetch(cache)
    assert content_of(fetch(cache, COMMIT)) == published_files()


def test_a_file_gone_meanwhile_leaves_nothing(hub: Hub, cache: Path, repository: ModelRepository) -> None:
    listed = repository.siblings()
    (repository.folder / "sae_weights.safetensors").unlink()
    repository.siblings = lambda: listed  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"sae_weights\.safetensors of .* the hub answered 404"):
        fetch(cache)
    assert leftovers(cache) == []


@pytest.mark.parametrize("location", ["pair", "a/b/c", "../b", "a/..", "/a/b", "a/b\n", "a/b\0", "a/-b"])
def test_other_forms_of_location_are_refused(cache: Path, location: str) -> None:
    with pytest.raises(ConfigError, match=r"sae\.location"):
        fetch_artifact(SaeConfig(source="huggingface", location=location), cache)
    assert not cache.exists()


@pytest.mark.parametrize("revision", ["../main", "a b", "-x", "refs/../x", "v1\n"])
def test_other_forms_of_revision_are_refused(cache: Path, revision: str) -> None:
    with pytest.raises(ConfigError, match=r"sae\.revision"):
        fetch(cache, revision)


@pytest.mark.parametrize("subfolder", ["../x", "/x", "a/../../x", "a\0", "a\\b"])
def test_a_subfolder_stays_inside(cache: Path, subfolder: str) -> None:
    with pytest.raises(ConfigError, match=r"sae\.subfolder"):
        fetch(cache, subfolder=subfolder)
