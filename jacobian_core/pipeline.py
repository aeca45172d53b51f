"""The steps of a run as plain functions over small values: ids, paths and counts.

Flows, the command line and `jacobian plan` call these and nothing below them. Every step can be repeated: the lake
knows what is done. What is loaded for computing stays loaded in the process (`worker.py`). What goes from one step to
the next is in `step_values.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from jacobian_core.ahead import in_order
from jacobian_core.config import RunConfig
from jacobian_core.corpus.tokens import Cursor
from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.resources import cache_folder
from jacobian_core.step_values import (
    ArtifactRef,
    BlockResult,
    CursorRef,
    GroupRef,
    QualityReport,
    RunRef,
    RunSummary,
    ShardRef,
    StagedBatch,
)

_gathering = threading.Lock()  # so that the entries of one block are in memory at a time
_AT_ONCE = 3  # one computes, one is still written, one is loaded and waits


def fetch_artifact(config: RunConfig) -> ArtifactRef:
    """The SAE artifact on the local disk, verified; see `artifact.fetch_artifact` for what it raises."""
    from jacobian_core.artifact import fetch as artifact

    found = artifact.fetch_artifact(config.sae, cache_folder())
    return ArtifactRef(str(found.folder), found.locator, found.digest)


def resolve_run(config: RunConfig, artifact: ArtifactRef) -> RunRef:
    """The run that the request is; it is begun (or found) in the lake.

    Raises ArtifactError, ModelError, CorpusError for what can't be found, and LakeError for a lake that can't be used.
    """
    from jacobian_core.corpus.listing import list_shards
    from jacobian_core.lake.runs import begin_run
    from jacobian_core.model.llm_identity import pinned
    from jacobian_core.request.describe import describe_request
    from jacobian_core.request.identity import run_id
    from jacobian_core.sql.warehouse_file import refresh_warehouse

    config = config.model_copy(update={"model": pinned(config.model)})
    shards = list_shards(config.corpus)
    identity, layer = describe_request(config, Path(artifact.folder), artifact.digest, shards)
    found = run_id(config.name, identity)
    lake = Lake.create(config.lake.root)
    state = begin_run(lake, found, identity, config.model_dump(mode="json"))
    if state == "done":
        refresh_warehouse(lake, found)  # whoever finished the run may have been stopped before it came to that
    if state == "resume" and not config.jacobian.keeps_entries:
        from jacobian_core.pairs.merging import mend_sums

        mend_sums(lake, found)
    return RunRef(found, str(lake.root), state, tuple(shards), config.corpus.max_tokens, config, artifact, layer)


def check_quality(run: RunRef) -> QualityReport:
    """Measure FVU on the run's first tokens and prove the MLP; the figures are kept for the manifest.

    Raises ModelError where the pair explains too little or the MLP is not what its weights say.
    """
    from jacobian_core.lake.files import write_atomic
    from jacobian_core.model.quality import refuse_bad_fit
    from jacobian_core.work.worker import measure_quality, quality_json

    fvu, mlp_error = measure_quality(run)
    report = QualityReport(fvu.fvu_in, fvu.fvu_out, fvu.tokens, mlp_error)
    refuse_bad_fit(fvu, run.config.quality, run.config.model.mlp_input)
    lake = Lake(run.lake)
    try:
        write_atomic(lake.work_folder(run.run_id) / "quality.json", quality_json(report))
    except LakeError:
        if lake.manifest(run.run_id) is None:
            raise  # otherwise another worker has published the run, and cleared its folder away
    return report


def stage_blocks(
    run: RunRef, shard: ShardRef, cursor: CursorRef | None, budget: int | None, max_blocks: int
) -> StagedBatch:
    """Tokenise up to `max_blocks` blocks of a shard from `cursor` on (None: its start) and leave them in the lake.

    `budget` is how many analysed tokens the run still wants. Blocks that are done already are counted, not written.
    Raises CorpusError where the shard is damaged: whole blocks before the damage are staged all the same, and handed
    out by the call before the one that raises.
    """
    from jacobian_core.corpus.staged import next_blocks

    return next_blocks(run, shard, cursor or Cursor(0, 0), budget, max_blocks)


def compute_block(run: RunRef, block_id: str) -> BlockResult:
    """Compute and publish one staged block; returns at once if it is done, by this worker or another.

    Raises ModelError for values that are not finite and LakeError where the block can't be written.
    """
    from jacobian_core.lake.files import remove
    from jacobian_core.work.worker import compute_and_publish

    lake = Lake(run.lake)
    marker = lake.block(run.run_id, block_id)
    fresh = marker is None
    if marker is None:
        marker = compute_and_publish(run, block_id)
    if run.config.jacobian.scope != "all_inputs":
        remove(lake.staged_path(run.run_id, block_id))
    return BlockResult(
        block_id=block_id,
        tokens=int(marker.totals["tokens"]),
        entries_total=int(marker.totals["entries_total"]),
        entries_stored=int(marker.totals["entries_stored"]),
        bytes=sum(part.bytes for part in marker.parts.values()),
        seconds=marker.seconds,
        fresh=fresh,
    )


def compute_and_gather(run: RunRef, block_id: str) -> BlockResult:
    """`compute_block`, and `gather_pairs` where it was not done before: all that is to do for a block."""
    done = compute_block(run, block_id)
    if done.fresh:
        gather_pairs(run, block_id)
    return done


def compute_blocks(run: RunRef, block_ids: Sequence[str], gather: bool = True) -> Iterator[BlockResult]:
    """Compute staged blocks: they take turns with the cores; while one is still written, the next one is computed.

    With `gather` as `compute_and_gather`. Raises what that raises, in its place.
    """
    from concurrent.futures import ThreadPoolExecutor

    step = compute_and_gather if gather else compute_block
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from in_order(pool, lambda block_id: step(run, block_id), block_ids, _AT_ONCE - 1)


def gather_pairs(run: RunRef, block_id: str) -> None:
    """Sort a finished block's entries by pair, for the sums at the end; what is not done by then is done there.

    Where entries are not kept they are sorted already: the sums of finished groups of blocks are made. Raises LakeError
    where that can't be written.
    """
    from jacobian_core.memory import free_pages
    from jacobian_core.pairs.merging import merge_ready
    from jacobian_core.pairs.sorting import gather_rows

    lake = Lake(run.lake)
    with _gathering:
        if run.config.jacobian.keeps_entries:
            gather_rows(lake, run.run_id, block_id)
        else:
            merge_ready(lake, run.run_id)
    free_pages.after_step()


def open_groups(run: RunRef) -> list[GroupRef]:
    """Scope 'all_inputs': the groups of blocks whose sums are still to be made; none for another scope."""
    if run.config.jacobian.scope != "all_inputs":
        return []
    from jacobian_core.work import groups

    return [GroupRef(group, tuple(blocks)) for group, blocks in groups.open_groups(run).items()]


def accumulate_group(run: RunRef, group: GroupRef) -> float:
    """Make the sums over all inputs of a group of staged blocks; returns wall seconds.

    Raises ConfigError, with the number of tiles that would do, where the accumulators do not fit in memory.
    """
    from jacobian_core.work import groups

    try:
        return groups.accumulate_group(run, group.group_id, list(group.block_ids))
    except LakeError:
        if Lake(run.lake).manifest(run.run_id) is None:
            raise
        return 0.0  # another worker has published the run, and cleared away what this needs


def publish_run(run: RunRef, skipped: dict[str, int]) -> RunSummary:
    """Aggregate the pairs, write the run's manifest, and refresh the warehouse: the run is complete.

    Where another worker has published the same run meanwhile, that is the run. Raises LakeError where blocks or parts
    are missing, QueryError where the aggregation fails.
    """
    from jacobian_core.finish import finish_run
    from jacobian_core.memory import give_back_free_pages

    give_back_free_pages()
    manifest = finish_run(run, skipped)
    return RunSummary(
        run_id=run.run_id,
        tokens=int(manifest.totals.get("tokens", 0)),
        entries_stored=int(manifest.totals.get("entries_stored", 0)),
        bytes=sum(part.bytes for parts in manifest.all_parts().values() for part in parts),
        seconds=manifest.seconds,
        manifest_path=str(Lake(run.lake).manifest_path(run.run_id)),
    )
