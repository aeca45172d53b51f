"""`pair_stats` of a run, scope 'active': exact sums over its blocks' rows, some output latents at a time.

Each block's rows (`rows.py`) are made when it is finished, so at the end of a run, or when a stopped one goes on, only
blocks without them are read again. Sums are exact and rounded once, so the part has the same bytes whatever the blocks;
`sql/marts/pair_stats.sql`, for a run in progress, may differ in a last digit. The entries of some output latents are
sorted by pair and summed, and the counts above thresholds made of them on the way; memory is that of a task's entries
(`tasks.py`) for every thread.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from jacobian_core.ahead import in_order
from jacobian_core.config import LakeConfig
from jacobian_core.contracts import PAIR_STATS
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.numerics.pair_digits import rounded_sums
from jacobian_core.numerics.pair_sums import PairRows, SumsInParts, sums_of_neighbours, together
from jacobian_core.pairs.above import PairsAbove
from jacobian_core.pairs.chosen import Chosen, merged_sources
from jacobian_core.pairs.counting import Stages, TaskCounts
from jacobian_core.pairs.merging import strip_sums
from jacobian_core.pairs.rows import BlockRows, Facts, opened_rows, rows_folder
from jacobian_core.pairs.sorting import make_rows
from jacobian_core.pairs.sums_file import SumsFile, open_sums
from jacobian_core.pairs.tasks import RunRows
from jacobian_core.sql.run_facts import RunSnapshot, known_run
from jacobian_core.work.tables import make_table

PAIR_STATS_ACTIVE = "active"
"""Block id of the part of `pair_stats` that holds scope 'active'."""
_MERGED_CELLS = 1 << 20
"""Cells that are summed at once where sums are merged, of which every cell can have one in each file."""
_THREADS = 4
"""Threads that sum at most, as one thread writes the part."""

logger = logging.getLogger(__name__)


def build_pair_stats(
    lake: Lake, run_id: str, config: LakeConfig, threads: int | None = None, above: PairsAbove | None = None
) -> PreparedPart:
    """Sum the run's finished blocks into `pair_stats`, scope 'active'; the part is for `publish_run` to publish.

    `above` counts the pairs on the way; by stage too, unless the run keeps aggregates alone, whose sums say nothing of
    when an entry came. Reads a run in progress (its block markers) as well as a finished one that was not compacted and
    kept its entries. Raises QueryError where there is no such run, LakeError where a part is missing or breaks its
    contract, or the disk is full.
    """
    state, threads = known_run(lake, run_id), threads or min(os.cpu_count() or 1, _THREADS)
    with summed_sources(lake, state) as found, ThreadPoolExecutor(threads) as pool:
        made = sum(pool.map(lambda marker: make_rows(lake, run_id, found.folder, marker), found.blocks))
        run = RunRows(found.folder, found.blocks, _facts(found))
        if above is not None and found.merged is None:
            above.stages = Stages.of(lake, run.blocks, run.facts.largest, above.thresholds)
            run = replace(run, stretch=above.stages.of_token)
        tasks = run.tasks() if found.merged is None else _strips(run.facts.widths, threads)
        with PartWriter(lake, PAIR_STATS, run_id, PAIR_STATS_ACTIVE, config) as writer:
            for table in in_order(pool, lambda outs: _made(run, found.merged, outs, above), tasks, threads):
                writer.write(table)
            prepared = writer.finish()
    logger.info(
        "pair_stats of %s: %d pairs; %d of %d blocks were read", run_id, prepared.info.rows, made, len(state.blocks)
    )
    return prepared


def count_pairs(lake: Lake, run_id: str, block_ids: Sequence[str]) -> int:
    """Pairs that have an entry in these finished blocks of a run in progress, none of which were merged."""
    blocks = [marker for marker in lake.markers(run_id) if marker.block_id in block_ids]
    folder, seen = rows_folder(lake, run_id), 0
    for marker in blocks:
        make_rows(lake, run_id, folder, marker)
    run = RunRows(folder, blocks, _facts(Chosen(folder, blocks)))
    for outs in run.tasks():
        seen += len(_summed(run, outs, None).cell)
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


def _facts(found: Chosen) -> Facts:
    """What is known of all entries together."""
    facts = Facts()
    for marker in found.blocks:
        with opened_rows(found.folder, marker) as rows:
            facts |= rows.facts
    for path in found.merged or ():
        with open_sums(path) as sums:
            facts |= sums.facts
    return facts


def _strips(widths: tuple[int, int], threads: int) -> Iterator[range]:
    """The output latents in ranges of so many cells, but a range for every thread."""
    n_out, n_in = widths
    outs = max(1, min(_MERGED_CELLS // n_in, -(-n_out // threads)))
    for start in range(0, n_out, outs):
        yield range(start, min(start + outs, n_out))


def _made(run: RunRows, merged: Sequence[Path] | None, outs: range, above: PairsAbove | None) -> pa.Table:
    """`pair_stats` of some output latents, and its pairs counted."""
    pairs = _summed(run, outs, above) if merged is None else _added(run, merged, outs)
    table = _table(pairs, outs.start, run.n_in)
    if above is not None:
        above.add(table)
    return table


def _summed(run: RunRows, outs: range, above: PairsAbove | None) -> PairRows:
    """The sums of a task's pairs, counted by stage on the way."""
    counts = None if above is None or above.stages is None else TaskCounts(above.stages)
    sums, parts = list[PairRows](), None
    for rows, is_all in run.read(outs):
        if not is_all and parts is None:
            parts = SumsInParts(run.n_in, run.facts.tokens, run.facts.largest)
        for entries in rows.take():
            if parts is None:
                sums.append(sums_of_neighbours(entries.pair, entries.value, entries.n_coactive))
            else:
                parts.add(entries.pair, entries.value)
            if counts is not None:
                counts.add(entries, whole=parts is None)
    if counts is not None and above is not None:
        above.add_stages(counts.end())
    if parts is None:
        return together(sums)
    return parts.sums(run.coactive(outs.start) if run.facts.thresholded else None)


def _added(run: RunRows, merged: Sequence[Path], outs: range) -> PairRows:
    """The sums of some output latents from sums of blocks, and from rows of others."""
    with ExitStack() as held:
        sources: list[BlockRows | SumsFile] = [held.enter_context(open_sums(path)) for path in merged]
        sources += [held.enter_context(opened_rows(run.folder, marker)) for marker in run.blocks]
        return rounded_sums(strip_sums(sources, outs, run.n_in))


def _table(pairs: PairRows, first: int, n_in: int) -> pa.Table:
    cell = pairs.cell
    last = int(cell[-1]) // n_in + 1 if len(cell) else 0
    ends = np.searchsorted(cell, np.arange(last + 1) * n_in)
    out = np.repeat(np.arange(last), np.diff(ends))
    return make_table(
        PAIR_STATS,
        {
            "scope": pa.repeat("active", len(cell)),
            "out_latent": (first + out).astype(np.uint32),
            "in_latent": (cell - out * n_in).astype(np.uint32),
            "n_coactive": pairs.n_coactive,
            "n_stored": pairs.n_stored,
            "sum": pairs.sum,
            "sum_abs": pairs.sum_abs,
            "sum_sq": pairs.sum_sq,
            "max_abs": pairs.max_abs,
        },
    )
