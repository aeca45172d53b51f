"""MLP inputs of a block's analysed tokens, in token order.

Rows are batched by length, so that little of a right-padded batch is padding; results go back to their places in the
flat block. A block's activations are `analysed * d_in` floats: small beside the codes, so one block is held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.model.llm import LanguageModel

CPU_POSITIONS = 512
"""Padded positions of a forward pass on a CPU at most: as fast as more, with less padding, and more passes to share."""


def batches_by_length(lengths: Int64[np.ndarray, "rows"], positions: int) -> list[Int64[np.ndarray, "batch"]]:
    """Row numbers, longest first, in batches whose padded size is at most `positions` (or a single row)."""
    order = np.argsort(-lengths, kind="stable")
    batches: list[Int64[np.ndarray, "batch"]] = []
    start = 0
    while start < len(order):
        rows = max(1, positions // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def block_activations(
    model: LanguageModel,
    block: TokenBlock,
    batch_positions: int,
    in_turn: Callable[[Callable[[Any], None], Iterable[Any]], Iterable[None]] = map,
) -> Float[Tensor, "tokens d_in"]:
    """The MLP input of every analysed token of a block, in ascending token id, on the model's device.

    Args:
        model: the language model.
        block: rows of token ids.
        batch_positions: padded positions of one forward pass at most (or one row); on a CPU `CPU_POSITIONS` if fewer.
        in_turn: does the batches, one after another or several at a time.
    """
    lengths = np.diff(block.row_offsets)
    wanted = block.token_ids >= 0
    place = np.cumsum(wanted) - 1
    result = torch.empty(int(wanted.sum()), model.mlp.d_in, dtype=model.dtype, device=model.device)

    if torch.device(model.device).type == "cpu":
        batch_positions = min(batch_positions, CPU_POSITIONS)

    def run(rows: Int64[np.ndarray, "batch"]) -> None:
        width = int(lengths[rows[0]])
        column = np.arange(width)
        real = column < lengths[rows][:, None]
        flat = np.where(real, block.row_offsets[rows][:, None] + column, 0)
        ids = np.where(real, block.vocab_ids[flat], 0)
        x = model.mlp_inputs(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(real))
        analysed = real & wanted[flat]
        target = torch.from_numpy(place[flat[analysed]]).to(model.device)
        result[target] = x[torch.from_numpy(analysed).to(model.device)]

    for _ in in_turn(run, batches_by_length(lengths, batch_positions)):
        pass
    return result
