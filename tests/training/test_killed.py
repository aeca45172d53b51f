"""SIGKILL at random moments: the trained pair and its stored activations are the same bits as undisturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ConfigError
from jacobian_core.training.activation_store import ROWS_FILE
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.pair import train_pair
from jacobian_core.training.source import MlpSource, load_source
from jacobian_core.training.text import read_texts, token_stream
from tests.training.killed import until_it_ends

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")
STEPS = 150
_ALONE = "JACOBIAN_TEST_ALONE"


@pytest.fixture(scope="module")
def source(model_folder: Path) -> MlpSource:
    torch.set_num_threads(1)  # forks of a process with a pool of threads would wait for them forever
    return load_source(ModelConfig(name=str(model_folder), layer=1))


@pytest.fixture(scope="module")
def stream(source: MlpSource, corpus: tuple[Path, Path]) -> torch.Tensor:
    return token_stream(read_texts(corpus[:1]), source.tokenizer)


@pytest.mark.parametrize("case", ["6-True", pytest.param("40-False", marks=pytest.mark.slow)])
def test_killed_at_random_moments(case: str) -> None:
    """The next test in an interpreter of its own: forks of one that has run other tests inherit what these left."""
    node = f"{__file__}::test_a_killed_training_ends_with_the_same_bits[{case}]"
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-m", "", node]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {_ALONE: "1"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "1 passed" in done.stdout


@pytest.mark.skipif(_ALONE not in os.environ, reason="the test above runs it in an interpreter of its own")
@pytest.mark.parametrize(("kills", "stored"), [(6, True), pytest.param(40, False, marks=pytest.mark.slow)])
def test_a_killed_training_ends_with_the_same_bits(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, tmp_path: Path, kills: int, stored: bool
) -> None:
    asked = {"tokens": STEPS * 60, "checkpoint_seconds": 0.0, "activation_tokens": 600, "log_every_steps": 1000}

    def config(name: str) -> TrainPairConfig:
        places = {"checkpoint": tmp_path / f"{name}.checkpoint"}
        places |= {"activation_folder": tmp_path / name} if stored else {}
        return pair_config.model_copy(update=asked | places)

    began = time.monotonic()
    train_pair(config("whole"), source, stream)
    moments = time.monotonic() - began  # so that most kills come before the end, however fast the machine is
    killed = until_it_ends(lambda: _train(config("cut"), source, stream), kills, random.Random(5), 0.5 * moments)
    assert killed, "the training is too short to be killed"
    whole, cut = (load_file(tmp_path / f"{name}.checkpoint") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    if stored:
        assert (tmp_path / "whole" / ROWS_FILE).read_bytes() == (tmp_path / "cut" / ROWS_FILE).read_bytes()


def _train(config: TrainPairConfig, source: MlpSource, stream: torch.Tensor) -> None:
    train_pair(config, source, stream)


def test_a_resumption_with_other_data_would_be_noticed(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, tmp_path: Path
) -> None:
    """The sibling: one weight of the checkpoint moved by one bit gives other final bits; another text is refused."""
    config = pair_config.model_copy(update={"tokens": 20 * 60, "checkpoint": tmp_path / "a", "checkpoint_seconds": 0})

    class StoppedError(Exception):
        pass

    def stop(record: object) -> None:
        raise StoppedError

    whole = train_pair(config.model_copy(update={"checkpoint": None}), source, stream).pair.state_dict()
    with pytest.raises(StoppedError):
        train_pair(config, source, stream, stop)
    tensors = load_file(tmp_path / "a")
    weights = tensors["module/inputs.W_enc"]
    weights[0, 0] = torch.nextafter(weights[0, 0], torch.tensor(9.0))
    save_file(tensors, tmp_path / "a", _facts(tmp_path / "a"))
    moved = train_pair(config, source, stream).pair.state_dict()
    assert any(not torch.equal(moved[name], whole[name]) for name in whole)
    with pytest.raises(ConfigError, match="another text"):
        train_pair(config, source, stream.flip(0))
    (tmp_path / "a").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        train_pair(config, source, stream)


def _facts(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())
