"""The language-model trainer: it learns, it can be stopped, and its figures are what they say."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from jacobian_core.errors import ConfigError
from jacobian_core.training.language_model import (
    LanguageModelProgress,
    build_language_model,
    evaluate_language_model,
    schedule,
    train_language_model,
)
from jacobian_core.training.text import read_texts, token_stream
from tests.training.conftest import LANGUAGE_MODEL


@pytest.fixture(scope="module")
def stream(model_folder: Path, corpus: tuple[Path, Path]) -> torch.Tensor:
    return token_stream(read_texts(corpus[:1]), AutoTokenizer.from_pretrained(model_folder))


def test_training_lowers_the_loss_and_repeats(stream: torch.Tensor, tmp_path: Path) -> None:
    records: list[LanguageModelProgress] = []
    trained = train_language_model(LANGUAGE_MODEL, stream, tmp_path / "a.checkpoint", records.append)
    assert trained.tokens == LANGUAGE_MODEL.tokens
    assert [record.step for record in records] == [10, 20, 30, 40]
    figures = evaluate_language_model(trained.model, stream, context_tokens=16, text_bytes=1000)
    start = evaluate_language_model(build_language_model(LANGUAGE_MODEL), stream, context_tokens=16, text_bytes=1000)
    assert start.nats_per_token == pytest.approx(math.log(280), abs=0.3)
    assert figures.nats_per_token < start.nats_per_token - 0.5
    words = int((stream != 0).sum())
    assert figures.bits_per_byte == pytest.approx(figures.nats_per_token / math.log(2) * words / 1000)


def test_a_training_that_was_stopped_continues_to_the_same_weights(stream: torch.Tensor, tmp_path: Path) -> None:
    config = LANGUAGE_MODEL.model_copy(update={"tokens": 12 * 64, "log_every_steps": 1, "checkpoint_seconds": 0.0})
    whole = train_language_model(config, stream, tmp_path / "whole.checkpoint").model.state_dict()

    class StoppedError(Exception):
        pass

    def stop(record: LanguageModelProgress) -> None:
        if record.step == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_language_model(config, stream, tmp_path / "cut.checkpoint", stop)
    resumed = train_language_model(config, stream, tmp_path / "cut.checkpoint").model.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor)
    with pytest.raises(ConfigError, match="other settings"):
        train_language_model(config.model_copy(update={"width": 32}), stream, tmp_path / "cut.checkpoint")


def test_schedule_rises_then_falls() -> None:
    assert schedule(0.0, 0.1) < schedule(0.05, 0.1) < schedule(0.1, 0.1) == 1
    assert schedule(0.5, 0.1) > schedule(0.9, 0.1) > schedule(1.0, 0.1) == pytest.approx(0.05)
