"""How many pairs of a run are above thresholds, at each of its stages and with each batch of documents left out.

Made from the same rows as `pair_stats`, some output latents at a time, in parallel: all entries of a pair are at hand
together, so nothing is kept but counts. Memory is that of about `_TASK_ENTRIES` entries a thread; where an output
latent alone has more, they are added by pair and stretch as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
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
from jacobian_core.pairs.above import PairsAbove
from jacobian_core.pairs.build import pair_threads, summed_sources
from jacobian_core.pairs.by_pair import RowsByPair
from jacobian_core.pairs.rows import Facts, opened_rows
from jacobian_core.pairs.sorting import make_rows
from jacobian_core.sql.run_facts import RunSnapshot

_TASK_ENTRIES = 500_000
"""With 2 million two threads need 300 MB more, which a short run has not got entries for."""
_TASK_PAIRS = (1 << 31) - 1
_MERGED = 4
"""Sums of so many parts of the corpus are brought together at once."""


@dataclass(frozen=True)
class _Run:
    """What every task needs: the blocks' rows and the stretch of each of their tokens."""

    folder: Path
    blocks: Sequence[BlockMarker]
    stretch: Sequence[UInt8[np.ndarray, "_"]]
    stretches: Stretches
    steps: Steps
    n_in: int
    thresholds: Float64[np.ndarray, "thresholds"]

    def counts(self) -> LeftOutCounts:
        """Counts of nothing."""
        return LeftOutCounts(self.thresholds, self.stretches, self.steps)


def count_stages(
    lake: Lake, state: RunSnapshot, active: PairsAbove, threads: int | None = None
) -> tuple[LeftOutCounts, Stretches]:
    """The counts of a run's finished blocks above the thresholds of `active`, and how its tokens were cut."""
    with summed_sources(lake, state) as found, ThreadPoolExecutor(pair_threads(threads)) as pool:
        list(pool.map(lambda marker: make_rows(lake, state.run_id, found.folder, marker), found.blocks))
        run = _run(lake, found.folder, found.blocks, active.thresholds)
        counts = run.counts()
        for of_task in pool.map(lambda outs: _count(run, outs), list(_tasks(active.out_active, run))):
            counts.merge(of_task)
    return counts, run.stretches


def _run(
    lake: Lake, folder: Path, blocks: Sequence[BlockMarker], thresholds: Float64[np.ndarray, "thresholds"]
) -> _Run:
    """Cut the run into stretches, and find the stretch of each token of each block."""
    facts = Facts()
    for marker in blocks:
        with opened_rows(folder, marker) as rows:
            facts |= rows.facts
    pieces = [_documents(lake, marker) for marker in blocks]
    sizes, starts = _in_corpus_order(pieces)
    stretches = cut_into_stretches(sizes)
    ordinals = [
        np.repeat(start - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
        for (_, count), start in zip(pieces, starts, strict=True)
    ]
    steps = Steps.of(int(sizes.sum()), facts.largest)
    return _Run(
        folder, blocks, [stretches.of(each) for each in ordinals], stretches, steps, facts.widths[1], thresholds
    )


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


def _tasks(out_active: Int64[np.ndarray, "n_out"], run: _Run) -> Iterator[range]:
    """The output latents in ranges of about `_TASK_ENTRIES` entries, or one of them."""
    entries = sum(int(marker.totals["entries_stored"]) for marker in run.blocks)
    expected = np.append(0, np.cumsum(out_active * (entries / max(int(out_active.sum()), 1))))
    first, most = 0, max(1, _TASK_PAIRS // run.n_in)
    while first < len(out_active):
        last = int(np.searchsorted(expected, expected[first] + _TASK_ENTRIES, "right")) - 1
        last = min(max(last, first + 1), first + most)
        yield range(first, last)
        first = last


def _count(run: _Run, outs: range) -> LeftOutCounts:
    """The counts of some output latents."""
    counts, rows = run.counts(), RowsByPair(outs, run.n_in)
    summed: list[Masses] = []
    for marker, stretch in zip(run.blocks, run.stretch, strict=True):
        with opened_rows(run.folder, marker) as block:
            for part in block.strip(outs):
                rows.add(part, stretch[part.token])
        if rows.entries > 2 * _TASK_ENTRIES:
            summed.append(Masses.together([masses.summed() for masses in _taken(run, rows, counts)]))
            if len(summed) >= _MERGED:
                summed = [Masses.together(summed).summed()]
    if not summed:
        for masses in _taken(run, rows, counts):
            counts.add(masses)
        return counts
    counts.add(Masses.together([*summed, *_taken(run, rows, counts)]).summed())
    return counts


def _taken(run: _Run, rows: RowsByPair, counts: LeftOutCounts) -> Iterator[Masses]:
    """The masses of rows, each entry counted."""
    for entries in rows.take():
        masses = masses_of(entries.pair, entries.stretch, entries.magnitude, run.thresholds, run.steps)
        counts.count_entries(masses.level)
        yield masses
