"""Groups of blocks and their partial sums: how scope 'all_inputs' survives crashes and is shared between workers.

A group is a fixed run of blocks of one shard, so its partial sums are the same whoever makes them; a group is done when
its file is there. It is made from the staged blocks, which such a run therefore keeps until it is published.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from jacobian_core.contracts import PAIR_STATS
from jacobian_core.corpus.staging import load_block
from jacobian_core.errors import LakeError, ModelError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.lake.paths import LakePath
from jacobian_core.numerics.all_inputs import Accumulator, tile_rows, units
from jacobian_core.numerics.partial_sums import PairSums, load_partial, merge, save_partial
from jacobian_core.work.compute import StageSeconds
from jacobian_core.work.tables import make_table
from jacobian_core.work.worker import Worker, worker_for

if TYPE_CHECKING:
    from jacobian_core.pairs.above import PairsAbove
    from jacobian_core.step_values import RunRef

log = logging.getLogger(__name__)

PAIR_STATS_ALL_INPUTS = "all_inputs"
"""Block id of the part of `pair_stats` that holds scope 'all_inputs'."""
_MERGED_ROWS = 64


def group_of(block_id: str, group_blocks: int) -> str:
    """The id of a block's group: '<shard index>-<number in the shard>', like a block's."""
    shard, number = block_id.split("-")
    return f"{shard}-{int(number) // group_blocks:06d}"


def partial_path(lake: Lake, run_id: str, group_id: str, tile: int) -> LakePath:
    """Where the partial sums of a group and tile are kept."""
    return lake.work_folder(run_id) / "all_inputs" / f"{group_id}-{tile:03d}.safetensors"


def group_done(run: RunRef, group_id: str) -> bool:
    """Whether all tiles of a group are kept."""
    lake = Lake(run.lake)
    tiles = range(run.config.all_inputs.tiles)
    return all(files.is_file(partial_path(lake, run.run_id, group_id, tile)) for tile in tiles)


def needs_staged(run: RunRef, block_id: str) -> bool:
    """Whether a block's tokens are still wanted for the sums of its group."""
    return run.config.jacobian.scope == "all_inputs" and not group_done(
        run, group_of(block_id, run.config.all_inputs.group_blocks)
    )


def open_groups(run: RunRef) -> dict[str, list[str]]:
    """The groups that are not done, with their staged blocks, in corpus order."""
    if run.config.jacobian.scope != "all_inputs":
        return {}
    folder = Lake(run.lake).work_folder(run.run_id) / "staged"
    found: dict[str, list[str]] = {}
    for path in sorted(files.list_folder(folder)):
        if path.suffix == ".arrow":
            found.setdefault(group_of(path.stem, run.config.all_inputs.group_blocks), []).append(path.stem)
    return {group: blocks for group, blocks in found.items() if not group_done(run, group)}


@torch.no_grad()
def accumulate_group(run: RunRef, group_id: str, block_ids: list[str]) -> float:
    """Make and keep the partial sums of a group from its staged blocks, tile by tile; returns wall seconds."""
    worker, lake = worker_for(run), Lake(run.lake)
    sandwich, clock = worker.sandwich, StageSeconds()
    for tile in range(run.config.all_inputs.tiles):
        path = partial_path(lake, run.run_id, group_id, tile)
        if files.is_file(path):
            continue
        rows = tile_rows(sandwich.outputs.latents, run.config.all_inputs.tiles, tile)
        accumulator = Accumulator(sandwich.kernel, rows)
        for block_id in block_ids:
            for x in _chunks(worker, lake, run.run_id, block_id):
                accumulator.add(sandwich.state(x))
        try:
            partial = accumulator.partial()
        except FloatingPointError as error:
            raise ModelError(
                f"group {group_id}: {error}.", "Set model.dtype to float32, or leave out this scope."
            ) from error
        save_partial(partial, path)
    clock.done("all")
    return clock.seconds["all"]


def _chunks(worker: Worker, lake: Lake, run_id: str, block_id: str) -> Iterator[torch.Tensor]:
    """The activations of a block in the chunks that its entries are computed in."""
    from jacobian_core.model.activations import block_activations

    computer = worker.computer
    block = load_block(lake.staged_path(run_id, block_id))
    x = block_activations(computer.model, block, computer.forward_batch_tokens)
    for start in range(0, len(x), computer.chunk_tokens):
        yield x[start : start + computer.chunk_tokens]


def prepare_pair_stats(run: RunRef, above: PairsAbove | None = None) -> PreparedPart:
    """Merge the partial sums of all groups into a part of `pair_stats`; exact, so the order of files is of no account.

    `above` counts the pairs on the way. Raises LakeError where the part can't be written or sums are missing.
    """
    lake, worker = Lake(run.lake), worker_for(run)
    sandwich = worker.sandwich
    paths = files.list_folder(lake.work_folder(run.run_id) / "all_inputs")
    partials = [load_partial(path) for path in sorted(paths) if path.suffix == ".safetensors"]
    if not partials:
        raise LakeError(f"{lake.root}: run {run.run_id} has no partial sums.", "Start the same command again.")
    unit, n_in = units(sandwich.kernel), sandwich.inputs.latents
    with PartWriter(lake, PAIR_STATS, run.run_id, PAIR_STATS_ALL_INPUTS, run.config.lake) as writer:
        for start in range(0, sandwich.outputs.latents, _MERGED_ROWS):
            rows = range(start, min(start + _MERGED_ROWS, sandwich.outputs.latents))
            merged = merge(partials, rows, n_in, unit)
            if len(merged.out_latent):
                table = pair_stats_table(merged, n_in)
                writer.write(table)
                if above is not None:
                    above.add(table)
        return writer.finish()


def pair_stats_table(sums: PairSums, n_in: int) -> pa.Table:
    """`pair_stats` of some output latents with every input latent; `n_stored` is how often the output was active."""
    rows = len(sums.out_latent)
    return make_table(
        PAIR_STATS,
        {
            "scope": pa.repeat("all_inputs", rows * n_in),
            "out_latent": sums.out_latent.repeat_interleave(n_in).numpy(),
            "in_latent": torch.arange(n_in).repeat(rows).numpy(),
            "n_coactive": sums.n_coactive.flatten().numpy(),
            "n_stored": sums.n_out_active.repeat_interleave(n_in).numpy(),
            "sum": sums.sum.flatten().numpy(),
            "sum_abs": sums.sum_abs.flatten().numpy(),
            "sum_sq": sums.sum_sq.flatten().numpy(),
            "max_abs": sums.max_abs.flatten().numpy(),
        },
    )
