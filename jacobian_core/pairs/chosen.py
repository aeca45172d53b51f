"""What `pair_stats` is summed of: the rows of blocks and, of a run that does not keep entries, the sums of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.pairs.ended import list_ends
from jacobian_core.pairs.levels import alone, cover, list_sources
from jacobian_core.pairs.merging import on_this_machine
from jacobian_core.pairs.rows import rows_folder
from jacobian_core.pairs.summed import sums_folder
from jacobian_core.sql.run_facts import RunSnapshot

_PATIENCE_SECONDS = 3600.0
"""How long the end of a run waits for another worker's merge: nobody may remove what is being summed."""
_ATTEMPTS = 3
_AGAIN = "Start the same command again: blocks without them are computed anew."


@dataclass(frozen=True)
class Chosen:
    """Blocks whose rows are to be summed, the folder of these, and files with the sums of other blocks.

    `merged` is None where entries are kept: all blocks have rows then.
    """

    folder: Path
    blocks: Sequence[BlockMarker]
    merged: Sequence[Path] | None = None


@contextmanager
def merged_sources(lake: Lake, state: RunSnapshot) -> Iterator[Chosen]:
    """What stands for each block of a run that does not keep entries; nothing of it is merged meanwhile.

    Raises LakeError where the run is finished (nothing is left then), or nothing stands for a block.
    """
    if state.complete:
        problem = f"{lake.root}: run {state.run_id} does not keep entries, so its pairs can't be summed again."
        raise LakeError(problem, "Its `pair_stats` are part of the run; analyse the text again to have them anew.")
    with alone(lake, state.run_id, _PATIENCE_SECONDS) as mine:
        if not mine:
            raise LakeError(f"{lake.root}: another worker merges the pairs of run {state.run_id}.", _AGAIN)
        for attempt in range(_ATTEMPTS):
            try:
                found = _found(lake, state)
                break
            except LakeError:
                if lake.locks or attempt == _ATTEMPTS - 1:
                    raise  # in a store, another worker may have merged what was just being copied
        yield found


def _found(lake: Lake, state: RunSnapshot) -> Chosen:
    folder = sums_folder(lake, state.run_id)
    sources = cover(list_sources(folder), state.blocks, list_ends(folder))
    if sources.uncovered:
        problem = f"run {state.run_id}: the sums of {len(sources.uncovered)} blocks are gone ({sources.uncovered[0]})."
        raise LakeError(problem, _AGAIN)
    copies = rows_folder(lake, state.run_id)
    local = [(source, on_this_machine(source, copies)) for source in sources.used]
    of_rows = {source.group.first_block for source, _ in local if source.group.level == 0}
    return Chosen(
        folder=copies,
        blocks=[marker for marker in state.blocks if marker.block_id in of_rows],
        merged=[path for source, path in local if source.group.level > 0],
    )
