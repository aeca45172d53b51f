"""`pair_stats` of a run, scope 'active': exact sums over its blocks' rows, one strip of output latents at a time.

Each block's rows (`rows.py`) are made when it is finished, so at the end of a run, or when a stopped one goes on, only
blocks without them are read again. Sums are exact and rounded once, so the part has the same bytes whatever the blocks;
`sql/marts/pair_stats.sql`, for a run in progress, may differ in a last digit. Memory is that of the strips that are
being summed, about `_CELLS` cells a thread, whatever the run's size.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import pyarrow as pa
import torch

from jacobian_core.ahead import in_order
from jacobian_core.config import LakeConfig
from jacobian_core.contracts import PAIR_STATS
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.numerics.pair_digits import rounded_sums
from jacobian_core.numerics.pair_sums import PairRows, StripSums, Units, units_of
from jacobian_core.pairs.above import PairsAbove
from jacobian_core.pairs.adding import add_block, cells_of
from jacobian_core.pairs.chosen import Chosen, merged_sources
from jacobian_core.pairs.merging import strip_sums
from jacobian_core.pairs.rows import BlockRows, Facts, opened_rows, rows_folder
from jacobian_core.pairs.sorting import make_rows
from jacobian_core.pairs.sums_file import SumsFile, open_sums
from jacobian_core.sql.run_facts import RunSnapshot, known_run
from jacobian_core.work.tables import make_table

PAIR_STATS_ACTIVE = "active"
"""Block id of the part of `pair_stats` that holds scope 'active'."""
_CELLS = 1 << 22
_MERGED_CELLS = 1 << 20
"""The same where sums are merged, of which every cell can have one in each file."""
_THREADS = 4
"""Strips that are summed at once at most: each has accumulators of its own (280 MB), and one thread writes the part."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What every strip needs: blocks and where their rows are, sums of others, the matrix' width, units, idle sums."""

    folder: Path
    blocks: Sequence[BlockMarker]
    merged: Sequence[Path] | None
    n_out: int
    n_in: int
    units: Units
    idle: SimpleQueue[StripSums] = field(default_factory=SimpleQueue)

    @property
    def outs(self) -> int:
        """Output latents of a strip: what fits, but a strip for every thread."""
        cells = _CELLS if self.merged is None else _MERGED_CELLS
        return max(1, min(cells // self.n_in, -(-self.n_out // _THREADS)))

    @contextmanager
    def sums(self) -> Iterator[StripSums]:
        """Accumulators that are all 0, and must be so again."""
        try:
            sums = self.idle.get_nowait()
        except Empty:
            sums = StripSums(self.outs * self.n_in, self.units)
        yield sums
        self.idle.put(sums)


def build_pair_stats(
    lake: Lake, run_id: str, config: LakeConfig, threads: int | None = None, above: PairsAbove | None = None
) -> PreparedPart:
    """Sum the run's finished blocks into `pair_stats`, scope 'active'; the part is for `publish_run` to publish.

    `above` counts the pairs on the way. Reads a run in progress (its block markers) as well as a finished one that was
    not compacted and kept its entries. Raises QueryError where there is no such run, LakeError where a part is missing
    or breaks its contract, or the disk is full.
    """
    state = known_run(lake, run_id)
    with summed_sources(lake, state) as found, _one_thread_each(), ThreadPoolExecutor(pair_threads(threads)) as pool:
        made = sum(pool.map(lambda marker: make_rows(lake, run_id, found.folder, marker), found.blocks))
        run = _widths(found, int(state.total("tokens")))
        with PartWriter(lake, PAIR_STATS, run_id, PAIR_STATS_ACTIVE, config) as writer:
            for table in _in_order(pool, run, above):
                writer.write(table)
            prepared = writer.finish()
    logger.info(
        "pair_stats of %s: %d pairs; %d of %d blocks were read", run_id, prepared.info.rows, made, len(state.blocks)
    )
    return prepared


def pair_threads(asked: int | None) -> int:
    """Threads that work on a run's pairs."""
    return asked or min(os.cpu_count() or 1, _THREADS)


def count_pairs(lake: Lake, run_id: str, block_ids: Sequence[str]) -> int:
    """Pairs that have an entry in these finished blocks of a run in progress, none of which were merged."""
    blocks = [marker for marker in lake.markers(run_id) if marker.block_id in block_ids]
    folder, seen = rows_folder(lake, run_id), 0
    for marker in blocks:
        make_rows(lake, run_id, folder, marker)
    run = _widths(Chosen(folder, blocks), tokens=1)
    for start in range(0, run.n_out, run.outs):
        outs = range(start, min(start + run.outs, run.n_out))
        used = np.zeros(len(outs) * run.n_in, bool)
        for marker in blocks:
            with opened_rows(folder, marker) as block:
                for rows in block.strip(outs):
                    used[cells_of(rows, start, run.n_in)] = True
        seen += int(used.sum())
    return seen


@contextmanager
def summed_sources(lake: Lake, state: RunSnapshot) -> Iterator[Chosen]:
    """What to sum, and where rows are: a finished run must not get a work folder, or it would look as if it went on."""
    if any(marker.entries_sha256 for marker in state.blocks):
        with merged_sources(lake, state) as found:
            yield found
    elif not state.complete:
        yield Chosen(rows_folder(lake, state.run_id), state.blocks)
    else:
        with tempfile.TemporaryDirectory(prefix="jacobian-pairs-") as folder:
            yield Chosen(Path(folder), state.blocks)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads that torch first meets in here use one thread each; afterwards it is as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _widths(found: Chosen, tokens: int) -> _Run:
    """The run as strips need it."""
    facts = Facts()
    for marker in found.blocks:
        with opened_rows(found.folder, marker) as rows:
            facts |= rows.facts
    for path in found.merged or ():
        with open_sums(path) as sums:
            facts |= sums.facts
    return _Run(found.folder, found.blocks, found.merged, *facts.widths, units_of(tokens, facts.largest))


def _in_order(pool: ThreadPoolExecutor, run: _Run, above: PairsAbove | None) -> Iterator[pa.Table]:
    """The tables of all strips in their order; a few are made ahead."""
    strips = (range(start, min(start + run.outs, run.n_out)) for start in range(0, run.n_out, run.outs))
    return in_order(pool, lambda outs: _counted(run, outs, above), strips, _THREADS)


def _counted(run: _Run, outs: range, above: PairsAbove | None) -> pa.Table:
    """`pair_stats` of some output latents, and its pairs counted."""
    table = _strip(run, outs)
    if above is not None:
        above.add(table)
    return table


def _strip(run: _Run, outs: range) -> pa.Table:
    """`pair_stats` of some output latents."""
    if run.merged is not None:
        with ExitStack() as held:
            sources: list[BlockRows | SumsFile] = [held.enter_context(open_sums(path)) for path in run.merged]
            sources += [held.enter_context(opened_rows(run.folder, marker)) for marker in run.blocks]
            return _table(rounded_sums(strip_sums(sources, outs, run.n_in)), outs.start, run.n_in)
    with run.sums() as sums:
        for marker in run.blocks:
            with opened_rows(run.folder, marker) as block:
                add_block(block, sums, outs, run.n_in)
        return _table(sums.take(), outs.start, run.n_in)


def _table(pairs: PairRows, first: int, n_in: int) -> pa.Table:
    cell = pairs.cell.numpy()
    last = int(cell[-1]) // n_in + 1 if len(cell) else 0
    ends = np.searchsorted(cell, np.arange(last + 1) * n_in)
    out = np.repeat(np.arange(last), np.diff(ends))
    return make_table(
        PAIR_STATS,
        {
            "scope": pa.repeat("active", len(cell)),
            "out_latent": (first + out).astype(np.uint32),
            "in_latent": (cell - out * n_in).astype(np.uint32),
            "n_coactive": pairs.n_coactive.numpy(),
            "n_stored": pairs.n_stored.numpy(),
            "sum": pairs.sum.numpy(),
            "sum_abs": pairs.sum_abs.numpy(),
            "sum_sq": pairs.sum_sq.numpy(),
            "max_abs": pairs.max_abs.numpy(),
        },
    )
