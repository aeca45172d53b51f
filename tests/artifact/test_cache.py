"""Verified copies: complete or absent, replaced when damaged, safe with several processes; and the folder source."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from jacobian_core.artifact.cache import copies_on, copy_folder, partial_folder, publish, read_copy
from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.artifact.files import Artifact, describe, select_files
from jacobian_core.artifact.redact import redact
from jacobian_core.config import SaeConfig
from jacobian_core.errors import ArtifactError, ConfigError
from tests.artifact.conftest import published_files

LOCATOR = "wandb:ent/proj/name:v4"
PAIR = ["cfg.json", "sae_weights.safetensors"]
SIDES = [f"{side}/{name}" for side in ("in", "out") for name in PAIR]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


def put(shelf: Path, locator: str = LOCATOR) -> Artifact:
    """Publish the pair as the copy of a locator."""
    with partial_folder(shelf) as partial:
        download = partial / "files"
        download.mkdir()
        for name, body in published_files().items():
            (download / name).write_bytes(body)
        return publish(download, copy_folder(shelf, locator), locator, ["notes.txt"])


def flip(path: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped": lambda folder: flip(folder / "sae_weights.safetensors"),
    "truncated": lambda folder: os.truncate(folder / "sae_weights.safetensors", 10),
    "a file missing": lambda folder: (folder / "cfg.json").unlink(),
    "a file added": lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    "record cut": lambda folder: os.truncate(folder / "artifact.json", 20),
    "record not an object": lambda folder: (folder / "artifact.json").write_text("[]"),
    "record missing": lambda folder: (folder / "artifact.json").unlink(),
    "record of another": lambda folder: (folder / "artifact.json").write_text(
        (folder / "artifact.json").read_text().replace(":v4", ":v5")
    ),
}


def test_a_copy_is_read_back(shelf: Path) -> None:
    artifact = put(shelf)
    assert read_copy(artifact.folder, LOCATOR) == artifact
    assert copies_on(shelf, "wandb:ent/proj/") == [LOCATOR]
    assert copies_on(shelf, "wandb:other/") == []
    assert json.loads((artifact.folder / "artifact.json").read_text())["left_out"] == ["notes.txt"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_no_copy_and_is_replaced(shelf: Path, damage: str) -> None:
    artifact = put(shelf)
    DAMAGE[damage](artifact.folder)
    assert read_copy(artifact.folder, LOCATOR) is None
    assert put(shelf) == artifact
    assert read_copy(artifact.folder, LOCATOR) == artifact
    assert [path.name for path in shelf.iterdir()] == [artifact.folder.name]


def test_digests_follow_the_content(shelf: Path) -> None:
    artifact = put(shelf)
    lines = "".join(f"{name} {sha256(body).hexdigest()}\n" for name, body in sorted(published_files().items()))
    assert artifact.digest == sha256(lines.encode()).hexdigest()
    flip(artifact.folder / "cfg.json")
    assert describe(artifact.folder, LOCATOR).digest != artifact.digest


def test_copies_of_different_locators_never_share_a_folder(shelf: Path) -> None:
    locators = ["wandb:a/b/c:v1", "wandb:a/b-c:v1", "wandb:a-b/c:v1", "wandb:a/b/c:v11", "wandb:../../etc:v1"]
    folders = [copy_folder(shelf, locator) for locator in locators]
    assert len(set(folders)) == len(locators)
    assert all(folder.parent == shelf and not folder.name.startswith(".") for folder in folders)


def test_publishing_twice_keeps_the_first(shelf: Path) -> None:
    before = put(shelf).folder.stat().st_ino
    assert put(shelf).folder.stat().st_ino == before


def test_many_at_once_end_with_one_copy(shelf: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        artifacts = list(pool.map(lambda _: put(shelf), range(24)))
    assert len({artifact.digest for artifact in artifacts}) == 1
    assert read_copy(artifacts[0].folder, LOCATOR) == artifacts[0]
    assert len(list(shelf.iterdir())) == 1


def test_one_publishes_at_a_time(shelf: Path) -> None:
    """While another holds the shelf nothing appears or is moved away."""
    shelf.mkdir()
    lock = os.open(shelf, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(put, shelf)
        time.sleep(0.3)
        assert not waiting.done()
        assert not copy_folder(shelf, LOCATOR).exists()
        os.close(lock)
        assert read_copy(waiting.result().folder, LOCATOR) == waiting.result()


def test_abandoned_downloads_are_swept_and_living_ones_are_not(shelf: Path) -> None:
    abandoned = shelf / ".partial-abandoned"
    living = shelf / ".partial-living"
    for folder in (abandoned, living):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with partial_folder(shelf) as partial:
        assert sorted(path.name for path in shelf.iterdir()) == sorted([living.name, partial.name])
    os.close(lock)
    assert [path.name for path in shelf.iterdir()] == [living.name]


def test_an_error_inside_leaves_no_partial_folder(shelf: Path) -> None:
    def fail() -> None:
        with partial_folder(shelf) as partial:
            (partial / "half").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(shelf.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([*PAIR, "sparsity.safetensors", "notes.md", "model.pt"], PAIR),
        ([*PAIR, "llm.safetensors"], ["cfg.json", "llm.safetensors", "sae_weights.safetensors"]),
        (SIDES, SIDES),
        ([*SIDES, "llm.safetensors"], [*SIDES[:2], "llm.safetensors", *SIDES[2:]]),
        ([*PAIR, *SIDES], PAIR),
        ([*PAIR, "deep/er/model.safetensors", "old/sae_weights.safetensors"], PAIR),
    ],
)
def test_which_files_matter(names: list[str], chosen: list[str]) -> None:
    assert select_files(names, "it") == chosen


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], r"it has no cfg\.json and no sae_weights\.safetensors"),
        (["cfg.json"], r"it has no sae_weights\.safetensors"),
        (["sae_weights.safetensors"], r"it has no cfg\.json\."),
        (["cfg.json", "sae_weights.pt"], r"Convert sae_weights\.pt .* never opened"),
        (SIDES[:3], r"it has no cfg\.json"),
    ],
)
def test_what_is_missing_is_named(names: list[str], expected: str) -> None:
    with pytest.raises(ArtifactError, match=expected):
        select_files(names, "it")


def test_a_local_folder_is_used_where_it_lies(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_pair()
    cache = tmp_path / "cache"
    artifact = fetch_artifact(SaeConfig(source="folder", location=str(folder)), cache)
    assert artifact.folder == folder
    assert artifact.locator == f"folder:{folder}"
    inside = fetch_artifact(SaeConfig(source="folder", location=str(tmp_path), subfolder="pair"), cache)
    assert inside == artifact
    assert not cache.exists()
    copy = shutil.copytree(folder, tmp_path / "moved")
    assert fetch_artifact(SaeConfig(source="folder", location=str(copy)), cache).digest == artifact.digest


def test_a_folder_that_is_not_one(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no folder"):
        fetch_artifact(SaeConfig(source="folder", location=str(tmp_path / "gone")), tmp_path)
    with pytest.raises(ArtifactError, match="There is no folder"):
        fetch_artifact(SaeConfig(source="folder", location=str(write_pair() / "cfg.json")), tmp_path)


def test_settings_without_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sae\.revision"):
        fetch_artifact(SaeConfig(source="folder", location="x", revision="main"), tmp_path)
    with pytest.raises(ConfigError, match=r"sae\.subfolder"):
        fetch_artifact(SaeConfig(source="wandb", location="a/b/c:v1", subfolder="x"), tmp_path)
    with pytest.raises(ConfigError, match=r"sae\.subfolder"):
        fetch_artifact(SaeConfig(source="folder", location=str(tmp_path), subfolder="../x"), tmp_path)


def test_a_cache_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(ArtifactError, match=r"can't be kept in .*cache"):
        fetch_artifact(SaeConfig(source="wandb", location="a/b/c:v1"), tmp_path / "cache")


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    text = redact("GET https://me:pw@host/a/b?signature=xyz#frag\nfailed with 0123456789abcdef, see http://host/c")
    assert text == "GET https://host/a/b failed with ***, see http://host/c"
