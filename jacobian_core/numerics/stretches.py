"""How a run's tokens are cut into stages (its first 1/16, 1/8, 1/4, 1/2 and all) and, in each stage, into batches.

Batches are whole documents, except that a stage may end inside of one, and follow each other in the corpus; each stage
has its own, as `sql/macros/document_batches.sql` defines them. A stretch is the tokens between two of all these cuts:
about 60 of them, so a token's stretch, one byte, says its batch at every stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

PARTS = (16, 8, 4, 2, 1)
"""A stage is the first 1/part of the tokens, rounded up."""
BATCHES = 20
"""Batches of a stage; fewer hold tokens where there are few documents."""


@dataclass(frozen=True)
class Stretches:
    """Where stretches end (the ordinal behind their last token), and what they belong to.

    `batch` is that of each stretch at each stage, -1 where the stage has ended before; `tokens` counts a batch's.
    """

    ends: Int64[np.ndarray, "stretches"]
    batch: Int64[np.ndarray, "stages stretches"]
    tokens: Int64[np.ndarray, "stages batches"]

    def of(self, ordinal: Int64[np.ndarray, "tokens"]) -> UInt8[np.ndarray, "tokens"]:
        """The stretch of each of these tokens, 0 being the first of the run."""
        found: UInt8[np.ndarray, "tokens"] = np.searchsorted(self.ends, ordinal, "right").astype(np.uint8)
        return found


def cut_into_stretches(sizes: Int64[np.ndarray, "documents"]) -> Stretches:
    """The stretches of a run whose documents have so many analysed tokens each, in corpus order."""
    sizes = sizes[sizes > 0]
    starts, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    ends = [-(-total // part) for part in PARTS]
    of_document = [_batches(starts, sizes, end) for end in ends]
    changes = [starts[1:][batch[1:] != batch[:-1]] for batch in of_document]
    cuts = np.unique(np.concatenate([*changes, np.array(ends, np.int64)]))
    first = np.concatenate([[0], cuts[:-1]]).astype(np.int64)
    document = np.searchsorted(starts, first, "right") - 1
    batch = np.stack([np.where(first < end, found[document], -1) for end, found in zip(ends, of_document, strict=True)])
    tokens = np.stack([np.bincount(row[row >= 0], (cuts - first)[row >= 0], BATCHES) for row in batch])
    return Stretches(cuts, batch, tokens.astype(np.int64))


def _batches(
    starts: Int64[np.ndarray, "documents"], sizes: Int64[np.ndarray, "documents"], end: int
) -> Int64[np.ndarray, "documents"]:
    """The batch of each document in a stage of `end` tokens: where its middle is among them; -1 beyond the stage."""
    inside = np.minimum(sizes, end - starts)
    return np.where(inside > 0, (2 * starts + inside) * BATCHES // max(2 * end, 1), -1)
