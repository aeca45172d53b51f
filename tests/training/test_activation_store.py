"""Activations kept on disk: what the model says, whatever interrupted the filling, and refused for another text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jacobian_core.errors import ConfigError
from jacobian_core.training.activation_store import RECORD_FILE, ROWS_FILE, fill_store
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.pair import PairProgress, train_pair
from jacobian_core.training.source import MlpSource, load_source
from jacobian_core.training.text import consecutive_windows, read_texts, token_stream, with_leading_bos

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")


@pytest.fixture
def source(pair_config: TrainPairConfig) -> MlpSource:
    return load_source(pair_config.model)


@pytest.fixture
def stream(source: MlpSource, corpus: tuple[Path, Path]) -> torch.Tensor:
    return token_stream(read_texts(corpus[:1]), source.tokenizer)


def test_a_store_holds_the_models_activations_and_an_interrupted_filling_continues(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, tmp_path: Path
) -> None:
    whole = fill_store(tmp_path / "whole", pair_config.model_copy(update={"activation_tokens": 300}), source, stream)
    windows = with_leading_bos(consecutive_windows(stream, length=16), 0)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(pair_config.seed))
    expected = source.inputs(windows[order])[: len(whole)]
    # float16 keeps 11 bits; the order of additions in a larger batch moves the last of float32
    np.testing.assert_allclose(whole.rows, expected.numpy(), rtol=1e-3, atol=1e-5)
    assert not np.allclose(whole.rows, expected.flip(0).numpy(), rtol=1e-3, atol=1e-5)
    parts = tmp_path / "parts"
    fill_store(parts, pair_config.model_copy(update={"activation_tokens": 100}), source, stream)
    with (parts / ROWS_FILE).open("ab") as file:
        file.write(b"rows that were written but not recorded")
    fill_store(parts, pair_config.model_copy(update={"activation_tokens": 300}), source, stream)
    assert (parts / ROWS_FILE).read_bytes() == (tmp_path / "whole" / ROWS_FILE).read_bytes()
    assert json.loads((parts / RECORD_FILE).read_text())["rows"] == len(whole)
    with pytest.raises(ConfigError, match="another model or text"):
        fill_store(parts, pair_config, source, stream.flip(0))


def test_training_from_a_store_lowers_the_loss(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, tmp_path: Path
) -> None:
    records: list[PairProgress] = []
    train_pair(pair_config.model_copy(update={"activation_folder": tmp_path}), source, stream, records.append)
    assert records[-1].loss < 0.7 * records[0].loss
