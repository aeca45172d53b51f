"""One block, from token ids to tables: the heart of a run.

A `BlockComputer` is built once a process (model, dictionaries and the weight products D and E stay loaded) and then
turns blocks into chunks of tables. Each chunk is one thread's work from codes to tables, while the caller writes the
chunks before it. One block's activations are held, and the codes and entries of a few chunks, so memory does not grow
with the block or the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

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
from jacobian_core.work.crew import Crew, Turn
from jacobian_core.work.experiments import Chunk, run_experiments, wanted
from jacobian_core.work.tables import entries_table, latents_table, tokens_table

Tables = dict[str, pa.Table]

_PAIRS_AT_ONCE = 4 << 20
"""Selected pairs of a chunk whose J is held at once: SAEs without a k can have hundreds of latents active a token."""


@dataclass
class StageSeconds:
    """Seconds by stage, added over threads. On a GPU a stage is charged for the work that it waits for."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    _last: float = field(default_factory=time.perf_counter)

    def resume(self) -> None:
        """Charge nobody for the time until now."""
        self._last = time.perf_counter()

    def done(self, stage: str) -> None:
        """Charge the time since the last call to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what a thread spent."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def of_wall(self, wall: float) -> dict[str, float]:
        """Wall seconds, divided among the stages like the threads' time."""
        busy = sum(self.seconds.values())
        return {stage: spent * wall / busy for stage, spent in self.seconds.items()}


class WallSeconds:
    """Wall time divided among blocks that overlap: each is charged from its start, or from the end of the one before.

    So the seconds of a worker's blocks add up to the time that it took.
    """

    def __init__(self) -> None:
        self._lock, self._charged_until = threading.Lock(), 0.0

    def charge(self, began: float) -> float:
        """The seconds of a block that ends now."""
        with self._lock:
            now = time.perf_counter()
            charged = now - max(began, self._charged_until)
            self._charged_until = now
            return charged


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
    crew: Crew
    collector: Collector = HostCollector()  # noqa: RUF009

    def compute(self, block: TokenBlock, clock: StageSeconds, fit: BlockFit | None = None) -> Generator[Tables]:
        """The tables of a block, chunk by chunk in ascending token id; `fit` measures the SAEs on it first.

        The crew's turn is kept until the last chunk is handed out, or the iterator is closed; the turn of the language
        model ends when that one begins, so one block at most is ahead.

        Raises:
            ModelError: an activation or a Jacobian entry is not finite.
        """
        with self.crew.forward_turns.next() as forward:
            clock.resume()
            x = self.activations(block, clock)
            if not bool(torch.isfinite(x).all()):
                raise ModelError(
                    f"block {block.block_id}: the model's activations are not finite.", "Set model.dtype to float32."
                )
            with self.crew.turns.next() as turn:
                forward.give_up()
                yield from self._chunks(x, block, clock, fit, turn)

    def _chunks(
        self, x: Float[Tensor, "tokens d_in"], block: TokenBlock, clock: StageSeconds, fit: BlockFit | None, turn: Turn
    ) -> Iterator[Tables]:
        clock.resume()
        wanted = block.token_ids >= 0
        token_ids, vocab_ids = block.token_ids[wanted], block.vocab_ids[wanted]

        def work(part: slice | None) -> tuple[list[Tables], StageSeconds]:
            mine = StageSeconds()
            if part is not None:
                return self._chunk(x[part], token_ids[part], vocab_ids[part], mine), mine
            if fit is not None:
                fit.measure(self.sandwich, x)
                mine.done("fit")
            return [], mine

        parts = [slice(start, start + self.chunk_tokens) for start in range(0, len(token_ids), self.chunk_tokens)]
        for tables, spent in self.crew.map(work, [None, *parts], turn.give_up):
            clock.add(spent.seconds)
            clock.resume()
            yield from tables

    def activations(self, block: TokenBlock, clock: StageSeconds) -> Float[Tensor, "tokens d_in"]:
        """The MLP input of every analysed token of a block."""

        def in_turn(function: Callable[[Any], None], batches: Iterable[Any]) -> Iterator[None]:
            def timed(batch: Any) -> StageSeconds:
                mine = StageSeconds()
                function(batch)
                mine.done("language_model")
                return mine

            for spent in self.crew.map(timed, batches):
                clock.add(spent.seconds)
                yield

        return block_activations(self.model, block, self.forward_batch_tokens, in_turn)

    def _chunk(
        self, x: Float[Tensor, "tokens d_in"], token_ids: np.ndarray, vocab_ids: np.ndarray, clock: StageSeconds
    ) -> list[Tables]:
        try:
            state = self.sandwich.state(x)
            clock.done("codes")
            return [self._tables(state.rows(few), token_ids[few], vocab_ids[few], clock) for few in _bounded(state)]
        except FloatingPointError as error:
            raise ModelError(f"tokens from {token_ids[0]}: {error}.", "Set model.dtype to float32.") from error

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
        found = self.collector.collect(J, K if second else None, state, thresholds)
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
