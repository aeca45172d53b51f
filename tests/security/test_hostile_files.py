"""Files that are made to hurt: archives that expand, windows that want gigabytes, names that climb out of folders."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.artifact.files import select_files
from jacobian_core.config import CorpusConfig, ModelConfig, SaeConfig
from jacobian_core.corpus.listing import list_shards
from jacobian_core.corpus.shards import read_documents
from jacobian_core.corpus.size import tokens_per_byte
from jacobian_core.errors import CorpusError
from tests.artifact.conftest import CANARY
from tests.stand_ins.hub_server import ModelRepository, serve_models
from tests.stand_ins.wandb_server import serve_wandb

PAIR = {"cfg.json": b"{}", "sae_weights.safetensors": b"weights"}
CLIMBING = (
    "../evil.safetensors",
    "/evil.safetensors",
    "a/../../evil.safetensors",
    "..\\evil.safetensors",
    ".x.safetensors",
)


def test_only_names_of_an_artifact_are_taken() -> None:
    taken = select_files([*PAIR, *CLIMBING, "in/../../x", "cfg.json/../x"], "here")
    assert set(taken) <= {*PAIR, "..\\evil.safetensors"}  # on this system a backslash is a letter


class ClimbingRepository(ModelRepository):
    """Says that it has files outside of itself."""

    def siblings(self) -> list[dict[str, Any]]:
        found = super().siblings()
        return found + [{**found[0], "rfilename": name} for name in CLIMBING[:3]]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache; nothing may be written beside it."""
    (tmp_path / "below").mkdir()
    yield tmp_path / "below" / "cache"
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["cache"]
    assert [str(path) for path in tmp_path.rglob("*evil*") if "repository" not in path.parts] == []


def test_a_hub_s_names_stay_in_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    for name, body in PAIR.items():
        (tmp_path / "repository" / name).write_bytes(body)
    (tmp_path / "evil.safetensors").touch()
    (tmp_path / "evil.safetensors").unlink()
    with serve_models({"owner/pair": ClimbingRepository(tmp_path / "repository")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = fetch_artifact(SaeConfig(source="huggingface", location="owner/pair"), cache)
    assert set(found.files) == set(PAIR)


def test_wandb_s_names_stay_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**PAIR, **dict.fromkeys(CLIMBING[:3], b"evil")}
    with serve_wandb("ent/proj/pair", {"v4": files}, api_key=CANARY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", CANARY)
        found = fetch_artifact(SaeConfig(source="wandb", location="ent/proj/pair:v4"), cache)
    assert set(found.files) == set(PAIR)


def bomb(size: int) -> bytes:
    """A few kilobytes that expand to `size` bytes on one line, after a document."""
    compressor = zstandard.ZstdCompressor().compressobj()
    content = compressor.compress(b'{"text": "one latent drives another"}\n{"text": "')
    content += b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20))
    return content + compressor.flush()


def corpus_of(folder: Path, content: bytes) -> CorpusConfig:
    folder.mkdir()
    (folder / "a.jsonl.zst").write_bytes(content)
    return CorpusConfig(source="folder", location=str(folder), max_document_bytes=1 << 20)


def test_a_plan_decompresses_no_more_than_a_sample(tiny: Path, tmp_path: Path) -> None:
    content = bomb(1 << 28)
    assert len(content) < 1 << 16
    config = corpus_of(tmp_path / "corpus", content)
    tracemalloc.start()
    try:
        estimate = tokens_per_byte(config, ModelConfig(name=str(tiny / "model")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert estimate.total_bytes == len(content)


def test_a_window_of_two_gigabytes_is_refused(tmp_path: Path) -> None:
    """A frame may ask its reader for that much memory before a byte of text is out."""
    text = b'{"text": "one latent drives another"}\n'
    for exponent, refused in ((10, False), (21, True)):  # windows of 2^(10 + exponent) bytes
        block = ((len(text) << 3) | 1).to_bytes(3, "little") + text
        frame = b"\x28\xb5\x2f\xfd" + bytes([0, exponent << 3]) + block
        config = corpus_of(tmp_path / f"corpus-{exponent}", frame)
        rows = read_documents(list_shards(config)[0], config)
        if refused:
            with pytest.raises(CorpusError, match=r"a\.jsonl\.zst can't be read beyond row 0"):
                list(rows)
        else:
            assert len(list(rows)) == 1
