"""One block, from token ids to tables: the heart of a run.

A `BlockComputer` is built once a process (model, dictionaries and the weight products D and E stay loaded) and then
turns blocks into chunks of tables. It holds one block's activations and one chunk's codes and entries at a time, so
memory does not grow with the block or the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from jacobian_core.config import InterventionConfig, JacobianConfig
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.errors import ModelError
from jacobian_core.model.activations import block_activations
from jacobian_core.model.llm import LanguageModel
from jacobian_core.model.quality import BlockFit
from jacobian_core.numerics.collect import Collector, HostCollector
from jacobian_core.numerics.coo import Thresholds
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState
from jacobian_core.work.experiments import Chunk, run_experiments, wanted
from jacobian_core.work.tables import entries_table, latents_table, tokens_table

Tables = dict[str, pa.Table]

_PAIRS_AT_ONCE = 16 << 20
"""Selected pairs of a chunk whose J is held at once: SAEs without a k can have hundreds of latents active a token."""


@dataclass
class StageSeconds:
    """Wall seconds by stage. On a GPU a stage is charged for the work that it waits for."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def done(self, stage: str) -> None:
        """Charge the time since the last call to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True)
class BlockComputer:
    """Everything that is loaded once: language model, sandwich and the vocabulary's text."""

    model: LanguageModel
    sandwich: Sandwich
    settings: JacobianConfig
    experiments: InterventionConfig
    vocabulary: pa.StringArray
    forward_batch_tokens: int
    chunk_tokens: int
    collector: Collector = HostCollector()  # noqa: RUF009

    @torch.no_grad()
    def compute(self, block: TokenBlock, clock: StageSeconds, fit: BlockFit | None = None) -> Iterator[Tables]:
        """The tables of a block, chunk by chunk in ascending token id; `fit` measures the SAEs on it first.

        Raises:
            ModelError: an activation or a Jacobian entry is not finite.
        """
        x = block_activations(self.model, block, self.forward_batch_tokens)
        clock.done("language_model")
        if not bool(torch.isfinite(x).all()):
            raise ModelError(
                f"block {block.block_id}: the model's activations are not finite.", "Set model.dtype to float32."
            )
        if fit is not None:
            fit.measure(self.sandwich, x)
            clock.done("fit")
        wanted = block.token_ids >= 0
        token_ids, vocab_ids = block.token_ids[wanted], block.vocab_ids[wanted]
        for start in range(0, len(token_ids), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            state = self.sandwich.state(x[part])
            clock.done("codes")
            for few in _bounded(state):
                yield self._tables(state.rows(few), token_ids[part][few], vocab_ids[part][few], clock)

    def _tables(
        self, state: SandwichState, token_ids: np.ndarray, vocab_ids: np.ndarray, clock: StageSeconds
    ) -> Tables:
        kernel = self.sandwich.kernel
        experiments = wanted(self.experiments)
        J = kernel.first(state)
        second = self.settings.derivatives == "second"
        K = kernel.second(state, J) if second or experiments else None
        clock.done("jacobian")
        thresholds = Thresholds(self.settings.min_abs, self.settings.top_entries_per_token)
        try:
            found = self.collector.collect(J, K if second else None, state, thresholds)
        except FloatingPointError as error:
            raise ModelError(f"tokens from {token_ids[0]}: {error}.", "Set model.dtype to float32.") from error
        tables = {
            "tokens": tokens_table(token_ids, vocab_ids, self.vocabulary, (found.inputs, found.outputs), found.entries),
            "latents": latents_table(token_ids, found.inputs, found.outputs),
            "jacobian_entries": entries_table(token_ids, found.entries),
        }
        clock.done("coo")
        if experiments and K is not None:
            chunk = Chunk(token_ids, state, J, K)
            tables |= run_experiments(self.sandwich, chunk, self.experiments)
            clock.done("interventions")
        return tables


def _bounded(state: SandwichState) -> Iterator[slice]:
    """A chunk in parts of at most `_PAIRS_AT_ONCE` selected pairs, one token at least."""
    tokens, k_out = state.outputs.index.shape
    step = max(1, _PAIRS_AT_ONCE // (k_out * state.inputs.index.shape[1]))
    for start in range(0, tokens, step):
        yield slice(start, start + step)
