"""The tokens of each training step: from the model, run on random windows, or drawn from what it said once.

Whichever it is, a step's tokens depend on the seed and the step's number only, so a training that was killed continues
with the data that it would have seen.
"""

from typing import Protocol

import torch
from jaxtyping import Int

from jacobian_core.training.activation_store import ActivationStore, fill_store
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.loss import MlpBatch
from jacobian_core.training.source import MlpSource
from jacobian_core.training.text import random_windows, with_leading_bos


class Batches(Protocol):
    """MLP inputs and outputs by step; step -1 is the sample that sets the scale of the losses."""

    def draw(self, tokens: int, step: int) -> MlpBatch:
        """About so many tokens, the same ones each time for a step."""
        ...


class WindowBatches:
    """The model is run on windows at random offsets of the text."""

    def __init__(self, config: TrainPairConfig, source: MlpSource, stream: Int[torch.Tensor, " stream"]) -> None:
        self.config, self.source, self.stream = config, source, stream

    def draw(self, tokens: int, step: int) -> MlpBatch:
        """Whole windows of text, as many as make so many tokens."""
        length = self.config.context_tokens
        rows = max(1, tokens // (length - 1))
        windows = random_windows(self.stream, count=rows, length=length, seed=step_seed(self.config, step))
        return self.source.read(with_leading_bos(windows, self.source.bos_token_id))


class StoredBatches:
    """Single tokens out of an activation store."""

    def __init__(self, config: TrainPairConfig, source: MlpSource, store: ActivationStore) -> None:
        self.config, self.source, self.store = config, source, store

    def draw(self, tokens: int, step: int) -> MlpBatch:
        """Tokens of all windows mixed."""
        return self.source.through(self.store.draw(tokens, step_seed(self.config, step)))


def step_seed(config: TrainPairConfig, step: int) -> int:
    """The seed of a step's draw."""
    return (config.seed << 32) + step + 1


def open_batches(config: TrainPairConfig, source: MlpSource, stream: Int[torch.Tensor, " stream"]) -> Batches:
    """The configured kind of batches; an activation store is filled first.

    Raises:
        ConfigError: the activation folder belongs to another model or text.
        CorpusError: the stream is shorter than one window.
        ModelError: an activation does not fit the store.
    """
    if config.activation_folder is None:
        return WindowBatches(config, source, stream)
    return StoredBatches(config, source, fill_store(config.activation_folder, config, source, stream))
