"""A tiny model folder and shards of text that it has a tokenizer for, made once."""

import json
from pathlib import Path

import pytest
import zstandard

from jacobian_core.config import ModelConfig
from jacobian_core.training.config import LanguageModelConfig, TrainPairConfig

SENTENCE = "the cat sat on a mat and then it saw another cat which was on its own mat under the old tree"
WORDS = SENTENCE.split(" ")
LANGUAGE_MODEL = LanguageModelConfig(
    vocabulary_size=280,
    layers=2,
    width=16,
    mlp_width=32,
    heads=2,
    max_positions=64,
    context_tokens=16,
    windows_per_step=4,
    tokens=40 * 64,
    log_every_steps=10,
)


def some_texts(count: int, start: int) -> list[str]:
    return [" ".join(WORDS[(start + i * 7 + j * j) % len(WORDS)] for j in range(30 + i % 5)) for i in range(count)]


def write_shard(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text, "meta": {"pile_set_name": "Cats"}}) + "\n" for text in texts)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()) if path.suffix == ".zst" else lines.encode())
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training shard (zstandard) and a held-out shard (plain)."""
    folder = tmp_path_factory.mktemp("corpus")
    return (
        write_shard(folder / "train.jsonl.zst", some_texts(60, 0)),
        write_shard(folder / "held.jsonl", some_texts(20, 3)),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, Path]) -> Path:
    """An untrained GPT-NeoX of two layers with its tokenizer."""
    from jacobian_core.training.language_model import build_language_model
    from jacobian_core.training.text import read_texts
    from jacobian_core.training.tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(read_texts(corpus[:1]), LANGUAGE_MODEL.vocabulary_size, LANGUAGE_MODEL.max_positions)
    save_tokenizer(tokenizer, folder)
    build_language_model(LANGUAGE_MODEL).save_pretrained(folder)
    return folder


@pytest.fixture
def pair_config(tmp_path: Path, corpus: tuple[Path, Path], model_folder: Path) -> TrainPairConfig:
    """A training of some seconds at layer 1."""
    return TrainPairConfig(
        model=ModelConfig(name=str(model_folder), layer=1),
        training_shards=corpus[:1],
        held_out_shards=corpus[1:],
        output=tmp_path / "pair",
        latents=48,
        active_latents=4,
        tokens=40 * 60,
        context_tokens=16,
        windows_per_step=4,
        learning_rate=5e-3,
        statistics_tokens=200,
        evaluation_tokens=200,
        log_every_steps=10,
    )
