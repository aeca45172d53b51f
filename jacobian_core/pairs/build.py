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
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import PAIR_STATS
from jacobian_core.errors import LakeError, QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.numerics.pair_sums import PairRows, StripSums, Units, units_of
from jacobian_core.pairs.rows import BlockRows, Codes, Rows, open_rows, rows_folder
from jacobian_core.pairs.sorting import make_rows
from jacobian_core.sql.run_facts import RunSnapshot, run_snapshot
from jacobian_core.work.tables import make_table

PAIR_STATS_ACTIVE = "active"
"""Block id of the part of `pair_stats` that holds scope 'active'."""
_CELLS = 1 << 22
_THREADS = 4
"""Strips that are summed at once at most: each has accumulators of its own (280 MB), and one thread writes the part."""
_ADDED_ENTRIES = 1 << 15
"""Entries that are added at once: torch then stays on the thread that calls it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What every strip needs: the blocks and where their rows are, the matrix' width, the units, idle accumulators."""

    folder: Path
    blocks: Sequence[BlockMarker]
    n_out: int
    n_in: int
    units: Units
    idle: SimpleQueue[StripSums] = field(default_factory=SimpleQueue)

    @property
    def outs(self) -> int:
        """Output latents of a strip: what fits, but a strip for every thread."""
        return max(1, min(_CELLS // self.n_in, -(-self.n_out // _THREADS)))

    @contextmanager
    def sums(self) -> Iterator[StripSums]:
        """Accumulators that are all 0, and must be so again."""
        try:
            sums = self.idle.get_nowait()
        except Empty:
            sums = StripSums(self.outs * self.n_in, self.units)
        yield sums
        self.idle.put(sums)


def build_pair_stats(lake: Lake, run_id: str, config: LakeConfig, threads: int | None = None) -> PreparedPart:
    """Sum the run's finished blocks into `pair_stats`, scope 'active'; the part is for `publish_run` to publish.

    Reads a run in progress (its block markers) as well as a finished one that was not compacted. Raises QueryError
    where there is no such run, LakeError where a part is missing or breaks its contract, or the disk is full.
    """
    state = run_snapshot(lake, run_id)
    if state is None:
        raise QueryError(f"{lake.root} has no run {run_id}.", "`jacobian runs` lists the runs.")
    with _folder(lake, state) as folder, _one_thread_each(), ThreadPoolExecutor(_threads(threads)) as pool:
        made = sum(pool.map(lambda marker: make_rows(lake, run_id, folder, marker), state.blocks))
        run = _widths(folder, state.blocks, int(state.total("tokens")))
        with PartWriter(lake, PAIR_STATS, run_id, PAIR_STATS_ACTIVE, config) as writer:
            for table in _in_order(pool, run):
                writer.write(table)
            prepared = writer.finish()
    logger.info(
        "pair_stats of %s: %d pairs; %d of %d blocks were read", run_id, prepared.info.rows, made, len(state.blocks)
    )
    return prepared


def _threads(asked: int | None) -> int:
    return asked or min(os.cpu_count() or 1, _THREADS)


def count_pairs(lake: Lake, run_id: str, block_ids: Sequence[str]) -> int:
    """Pairs that have an entry in these finished blocks of a run in progress."""
    folder, seen = rows_folder(lake, run_id), 0
    blocks = [marker for marker in lake.markers(run_id) if marker.block_id in block_ids]
    for marker in blocks:
        make_rows(lake, run_id, folder, marker)
    run = _widths(folder, blocks, tokens=1)
    for start in range(0, run.n_out, run.outs):
        outs = range(start, min(start + run.outs, run.n_out))
        used = np.zeros(len(outs) * run.n_in, bool)
        for marker in blocks:
            with _opened(folder, marker) as block:
                for rows in block.strip(outs):
                    used[_cells(rows, start, run.n_in)] = True
        seen += int(used.sum())
    return seen


@contextmanager
def _folder(lake: Lake, state: RunSnapshot) -> Iterator[Path]:
    """Where rows are kept. A finished run has no work folder, and must not get one: it would look as if it went on."""
    if not state.complete:
        yield rows_folder(lake, state.run_id)
        return
    with tempfile.TemporaryDirectory(prefix="jacobian-pairs-") as folder:
        yield Path(folder)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads that torch first meets in here use one thread each; afterwards it is as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _widths(folder: Path, blocks: Sequence[BlockMarker], tokens: int) -> _Run:
    """The run as strips need it."""
    n_out, n_in, largest = 0, 1, 0.0
    for marker in blocks:
        with _opened(folder, marker) as rows:
            n_out, n_in, largest = max(n_out, rows.widths[0]), max(n_in, rows.widths[1]), max(largest, rows.largest)
    return _Run(folder, blocks, n_out, n_in, units_of(tokens, largest))


@contextmanager
def _opened(folder: Path, marker: BlockMarker) -> Iterator[BlockRows]:
    with open_rows(folder, marker) as rows:
        if rows is None:
            problem = f"{folder}: the rows of block {marker.block_id} are gone, or were changed meanwhile."
            raise LakeError(problem, "Start the same command again.")
        yield rows


def _in_order(pool: ThreadPoolExecutor, run: _Run) -> Iterator[pa.Table]:
    """The tables of all strips in their order; a few are made ahead."""
    step = run.outs
    waiting: deque[Future[pa.Table]] = deque()
    for start in range(0, run.n_out, step):
        waiting.append(pool.submit(_strip, run, range(start, min(start + step, run.n_out))))
        if len(waiting) > _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _strip(run: _Run, outs: range) -> pa.Table:
    """`pair_stats` of some output latents."""
    with run.sums() as sums:
        for marker in run.blocks:
            with _opened(run.folder, marker) as block:
                codes = block.codes() if block.thresholded else None
                for rows in block.strip(outs):
                    _add(sums, rows, outs.start, run.n_in, codes)
        return _table(sums.take(), outs.start, run.n_in)


def _add(sums: StripSums, rows: Rows, first: int, n_in: int, codes: Codes | None) -> None:
    cell = torch.from_numpy(_cells(rows, first, n_in))
    value = torch.from_numpy(rows.value)
    for start in range(0, len(cell), _ADDED_ENTRIES):
        sums.add(cell[start : start + _ADDED_ENTRIES], value[start : start + _ADDED_ENTRIES])
    if codes is not None:
        row_cell = (rows.out_latent.astype(np.int64) - first) * n_in
        sums.add_coactive(torch.from_numpy(np.repeat(row_cell, codes.counts(rows.token)) + codes.of(rows.token)), cell)


def _cells(rows: Rows, first: int, n_in: int) -> Int64[np.ndarray, "entries"]:
    """The cell of each entry in a strip that begins with output latent `first`."""
    cells: Int64[np.ndarray, "entries"] = (
        np.repeat((rows.out_latent.astype(np.int64) - first) * n_in, rows.lengths) + rows.in_latent
    )
    return cells


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
