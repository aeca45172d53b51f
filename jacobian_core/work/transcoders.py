"""One block of a run with a transcoder, from token ids to tables: what `compute.py` does for a pair.

`jacobian_entries` holds the MLP's own effects along the latents' directions, so that every report of them works;
`transcoder_effects` repeats them beside what the transcoder says.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.config import JacobianConfig
from jacobian_core.contracts import TRANSCODER_EFFECTS, TRANSCODER_LATENTS, TRANSCODER_TOKENS
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.errors import ModelError
from jacobian_core.model.activations import block_activations
from jacobian_core.model.llm import LanguageModel
from jacobian_core.model.quality import BlockFit, Fvu, fraction_unexplained
from jacobian_core.numerics.coo import Entries, Thresholds, to_entries
from jacobian_core.numerics.transcoder import Comparison, TranscoderKernel
from jacobian_core.work.compute import StageSeconds, Tables
from jacobian_core.work.crew import Turns
from jacobian_core.work.tables import entries_table, latents_table, make_table, tokens_table


@dataclass(frozen=True)
class TranscoderComputer:
    """Everything that is loaded once: language model, transcoder, output SAE and the vocabulary's text."""

    model: LanguageModel
    kernel: TranscoderKernel
    settings: JacobianConfig
    vocabulary: pa.StringArray
    forward_batch_tokens: int
    chunk_tokens: int
    turns: Turns = field(default_factory=Turns)

    def compute(self, block: TokenBlock, clock: StageSeconds, fit: BlockFit | None = None) -> Generator[Tables]:
        """The tables of a block, part by part in ascending token id; ModelError where a value is not finite.

        Another caller's block waits until this one's last part is made, or the iterator is closed.
        """
        with self.turns.next():
            clock.resume()
            yield from self._compute(block, clock, fit)

    @torch.no_grad()
    def _compute(self, block: TokenBlock, clock: StageSeconds, fit: BlockFit | None) -> Iterator[Tables]:
        x = block_activations(self.model, block, self.forward_batch_tokens)
        clock.done("language_model")
        if not bool(torch.isfinite(x).all()):
            raise ModelError(
                f"block {block.block_id}: the model's activations are not finite.", "Set model.dtype to float32."
            )
        if fit is not None:
            fit.measure_by(self.fvu, x)
            clock.done("fit")
        wanted = block.token_ids >= 0
        token_ids, vocab_ids = block.token_ids[wanted], block.vocab_ids[wanted]
        done = 0
        for start in range(0, len(token_ids), self.chunk_tokens):
            for part in self.kernel.compare(x[start : start + self.chunk_tokens]):
                rows = slice(done, done + part.error_sq.shape[0])
                done = rows.stop
                clock.done("jacobian")
                yield self._tables(part, token_ids[rows], vocab_ids[rows])
                clock.done("coo")

    @torch.no_grad()
    def fvu(self, x: Float[Tensor, "tokens d_in"]) -> Fvu:
        """How much of the MLP's output the transcoder and the output SAE leave unexplained (0 without the latter)."""
        kernel = self.kernel
        y = kernel.mlp(x)
        predicted = kernel.transcoder.output(x, kernel.transcoder.encode(x))
        out = 0.0 if kernel.outputs is None else fraction_unexplained(y, kernel.outputs.reconstruct(y))
        return Fvu(fraction_unexplained(y, predicted), out, x.shape[0])

    def _tables(self, part: Comparison, token_ids: np.ndarray, vocab_ids: np.ndarray) -> Tables:
        thresholds = Thresholds(self.settings.min_abs, self.settings.top_entries_per_token)
        try:
            # What the transcoder says of a pair is carried along, where a second derivative would be.
            entries = to_entries(part.mlp_effect, part.transcoder_effect, part.outputs, part.inputs, thresholds)
        except FloatingPointError as error:
            raise ModelError(f"tokens from {token_ids[0]}: {error}.", "Set model.dtype to float32.") from error
        codes = (part.inputs, part.outputs)
        return {
            "tokens": tokens_table(token_ids, vocab_ids, self.vocabulary, codes, entries),
            "latents": latents_table(token_ids, *codes),
            "jacobian_entries": entries_table(token_ids, entries, second=False),
            "transcoder_tokens": _errors(token_ids, part),
            "transcoder_latents": _directions(token_ids, part),
            "transcoder_effects": _effects(token_ids, entries),
        }


TokenIds = Int64[np.ndarray, "tokens"]


def _errors(token_ids: TokenIds, part: Comparison) -> pa.Table:
    columns = {"error_sq": part.error_sq.double(), "output_sq": part.output_sq.double()}
    return make_table(
        TRANSCODER_TOKENS, {"token_id": token_ids} | {name: tensor.cpu().numpy() for name, tensor in columns.items()}
    )


def _directions(token_ids: TokenIds, part: Comparison) -> pa.Table:
    active = part.inputs.active
    token = torch.nonzero(active)[:, 0].cpu().numpy()
    columns = {
        "latent": part.inputs.index, "cosine": part.cosine, "mlp_norm": part.mlp_norm,
        "transcoder_norm": part.transcoder_norm, "isolation": part.isolation, "direction_norm": part.direction_norm,
    }  # fmt: skip
    return make_table(
        TRANSCODER_LATENTS,
        {"token_id": token_ids[token]} | {name: tensor[active].cpu().numpy() for name, tensor in columns.items()},
    )


def _effects(token_ids: TokenIds, entries: Entries) -> pa.Table:
    said = entries.second_derivative
    assert said is not None  # noqa: S101  it was carried along
    return make_table(
        TRANSCODER_EFFECTS,
        {
            "token_id": np.repeat(token_ids, entries.stored.cpu().numpy()),
            "out_latent": entries.out_latent.cpu().numpy(),
            "in_latent": entries.in_latent.cpu().numpy(),
            "mlp_effect": entries.value.cpu().numpy(),
            "transcoder_effect": said.cpu().numpy(),
        },
    )
