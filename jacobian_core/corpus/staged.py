"""Hand out a shard's blocks batch by batch, tokenised and saved in the lake.

The generator that reads a shard stays open between batches, so that going on costs nothing; a process that starts in
the middle reads the shard from its cursor (a compressed shard from its beginning: zstd can't seek).
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.listing import Shard
from jacobian_core.corpus.shards import SkipCounts
from jacobian_core.corpus.staging import save_block
from jacobian_core.corpus.tokenizer import load_tokenizer
from jacobian_core.corpus.tokens import Cursor, cut_blocks
from jacobian_core.errors import ChangedShardError, CorpusError, LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.runs import distrust_shard
from jacobian_core.step_values import BlockRef, StagedBatch
from jacobian_core.work.groups import needs_staged

if TYPE_CHECKING:
    from jacobian_core.step_values import RunRef

Blocks = Generator[tuple[TokenBlock, Cursor, SkipCounts], None, SkipCounts]


@dataclass(frozen=True)
class _Open:
    """A shard that is being read; the next block starts at `cursor`, `budget` tokens are still wanted."""

    key: tuple[str, str, Cursor, int | None]
    blocks: Blocks


_lock = threading.Lock()
_open: dict[str, _Open] = {}
"""The open generator of each run, by run id and lake."""


def next_blocks(run: RunRef, shard: Shard, cursor: Cursor, budget: int | None, max_blocks: int) -> StagedBatch:
    """See `pipeline.stage_blocks`."""
    with _lock:
        blocks = _take(run, shard, cursor, budget)
        staged: list[BlockRef] = []
        skipped = SkipCounts()
        lake = Lake(run.lake)
        while len(staged) < max_blocks:
            try:
                block, cursor, skips = next(blocks)
            except StopIteration as end:
                _ended(run, lake, shard, cursor)
                return _batch(staged, None, skipped + end.value)
            except CorpusError as error:
                if isinstance(error, ChangedShardError):
                    distrust_shard(lake, run.run_id, shard.index)
                if not staged:
                    raise
                # What is whole is computed first: the next call, from this cursor, meets the damage again.
                blocks.close()
                return _batch(staged, cursor, skipped)
            skipped += skips
            staged.append(BlockRef(block.block_id, block.analysed))
            budget = None if budget is None else budget - block.analysed
            if lake.marker(run.run_id, block.block_id) is None or needs_staged(run, block.block_id):
                _save(block, lake, run.run_id)
        _open[_place(run)] = _Open((run.run_id, shard.name, cursor, budget), blocks)
        return _batch(staged, cursor, skipped)


def _save(block: TokenBlock, lake: Lake, run_id: str) -> None:
    try:
        save_block(block, lake.staged_path(run_id, block.block_id))
    except LakeError:
        if lake.manifest(run_id) is None:
            raise  # otherwise another worker has published the run, and cleared its folder away


def _ended(run: RunRef, lake: Lake, shard: Shard, cursor: Cursor) -> None:
    """Where entries are not kept, the sums of the shard's last blocks can be merged once it is known that they are."""
    if run.config.jacobian.keeps_entries:
        return
    from jacobian_core.pairs.ended import record_end
    from jacobian_core.pairs.summed import sums_folder

    record_end(lake, run.run_id, sums_folder(lake, run.run_id), shard.index, cursor.number)


def _place(run: RunRef) -> str:
    return f"{run.lake}\0{run.run_id}"


def _take(run: RunRef, shard: Shard, cursor: Cursor, budget: int | None) -> Blocks:
    """The generator that stands at exactly this place, or a new one that is made to."""
    found = _open.pop(_place(run), None)
    if found is not None and found.key == (run.run_id, shard.name, cursor, budget):
        return found.blocks
    return cut_blocks(shard, load_tokenizer(run.config.model), run.config.corpus, cursor, budget)


def _batch(staged: list[BlockRef], cursor: Cursor | None, skipped: SkipCounts) -> StagedBatch:
    return StagedBatch(tuple(staged), cursor, sum(b.tokens for b in staged), asdict(skipped))
