"""How many pairs of a run are above thresholds, at each of its stages and with each batch of documents left out.

Counted from the entries that `pair_stats` is summed from: all of a pair are at hand together, so nothing is kept but
counts. Where an output latent alone has more than fit, what its entries add to pairs is kept by stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from jacobian_core.contracts import POSITION_BITS
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.validate import open_part
from jacobian_core.numerics.left_out import LeftOutCounts
from jacobian_core.numerics.masses import Masses, Steps, masses_of
from jacobian_core.numerics.stretches import Stretches, cut_into_stretches
from jacobian_core.pairs.by_pair import SortedEntries

_MERGED = 4
"""Sums of so many parts of the corpus are brought together at once."""


@dataclass(frozen=True)
class Stages:
    """How a run's tokens are cut into stages and batches, and what the counts of its pairs need; see `TaskCounts`."""

    thresholds: Float64[np.ndarray, "thresholds"]
    stretches: Stretches
    steps: Steps
    of_token: Sequence[UInt8[np.ndarray, "_"]]
    """The stretch of each token of each block."""

    @classmethod
    def of(
        cls, lake: Lake, blocks: Sequence[BlockMarker], largest: float, thresholds: Float64[np.ndarray, "thresholds"]
    ) -> Stages:
        """Those of these blocks, whose |J| are at most `largest`."""
        pieces = [_documents(lake, marker) for marker in blocks]
        sizes, starts = _in_corpus_order(pieces)
        stretches = cut_into_stretches(sizes)
        ordinals = [
            np.repeat(start - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
            for (_, count), start in zip(pieces, starts, strict=True)
        ]
        steps = Steps.of(int(sizes.sum()), largest)
        return cls(thresholds, stretches, steps, [stretches.of(each) for each in ordinals])

    def counts(self) -> LeftOutCounts:
        """Counts of nothing."""
        return LeftOutCounts(self.thresholds, self.stretches, self.steps)


class TaskCounts:
    """The counts of some output latents' pairs, from their sorted entries."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._counts = stages, stages.counts()
        self._waiting: list[Masses] = []

    def add(self, entries: SortedEntries, whole: bool) -> None:
        """Count these pairs; if they are not `whole`, once all parts of the corpus were added, in its order."""
        of = self._stages
        masses = masses_of(entries.pair, entries.stretch, np.abs(entries.value), of.thresholds, of.steps)
        self._counts.count_entries(masses.level)
        if whole:
            self._counts.add(masses)
            return
        self._waiting.append(masses.summed())
        if len(self._waiting) > _MERGED:
            self._waiting = [Masses.together(self._waiting).summed()]

    def end(self) -> LeftOutCounts:
        """The counts, of parts too."""
        if self._waiting:
            self._counts.add(Masses.together(self._waiting).summed())
        return self._counts


_Documents = tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]


def _documents(lake: Lake, marker: BlockMarker) -> _Documents:
    """The documents of a block and how many analysed tokens each has, in the order of its tokens."""
    path = lake.root / marker.parts["tokens"].path
    with open_part(path) as file, files.lake_errors(path, "read the file"):
        token_ids = file.read(columns=["token_id"]).column("token_id").to_numpy()
    documents, counts = np.unique(token_ids >> POSITION_BITS, return_counts=True)
    return documents, counts.astype(np.int64)


def _in_corpus_order(pieces: Sequence[_Documents]) -> tuple[Any, list[Any]]:
    """Sizes of all documents in their order, and where each block's pieces of documents begin among all tokens."""
    ids, counts = (np.concatenate([np.zeros(0, np.int64), *(piece[n] for piece in pieces)]) for n in (0, 1))
    order = np.argsort(ids, kind="stable")  # pieces of one document stay in the order of the blocks
    starts = np.empty(len(ids), np.int64)
    starts[order] = np.cumsum(counts[order]) - counts[order]
    _, document = np.unique(ids, return_inverse=True)
    sizes = np.bincount(document, counts).astype(np.int64)
    return sizes, np.split(starts, np.cumsum([len(piece[0]) for piece in pieces])[:-1])
