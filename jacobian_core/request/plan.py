"""What a run would cost, from a short real run: the same steps on the same text and weights, in a temporary lake.

Nothing is modelled that can be measured: the first blocks of the request are fetched, tokenised, computed, written and
aggregated, and the rates of the second half are extrapolated (the first half warms caches and allocators up). Only the
number of pairs, which grows ever slower, follows a fitted curve (`unit_costs.py`). What a short run mostly consists of
is measured too: libraries are imported where the run imports them, so that a plan in a fresh process counts that, and
what the first blocks took beyond the later ones' rate is added once.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from jacobian_core import pipeline
from jacobian_core.config import RunConfig
from jacobian_core.errors import CorpusError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import RunManifest
from jacobian_core.memory import peak_resident_bytes
from jacobian_core.request.unit_costs import Merging, PairGrowth, UnitCosts
from jacobian_core.step_values import BlockResult, RunRef

_BLOCKS = 6
"""Blocks of the calibration; rates are those of the later half."""


@dataclass(frozen=True)
class Plan:
    """The cost of a run: tokens, stored entries, bytes in the lake, peak memory in bytes, wall seconds.

    `accumulator_bytes` is device memory of scope 'all_inputs' (0 for another), on a CPU a part of the peak. `steps` are
    the seconds of each step, `basis` says what was measured, `pair` where the SAEs are from.
    """

    tokens: int
    entries: int
    bytes_on_disk: int
    peak_memory_bytes: int
    accumulator_bytes: int
    seconds: float
    basis: str
    pair: str = ""
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A short run's measurements: its blocks, wall seconds of each step, and what it left in the lake."""

    results: list[BlockResult]
    block_seconds: list[float]
    start_seconds: float
    publish_seconds: float
    group_seconds: float
    half_pairs: int
    manifest: RunManifest
    whole_corpus: bool
    accumulator_bytes: int
    pair: str

    @property
    def tokens(self) -> int:
        """Tokens that were computed."""
        return sum(result.tokens for result in self.results)

    @property
    def later(self) -> slice:
        """The blocks whose rates count."""
        return slice(len(self.results) // 2, None)


def plan_run(config: RunConfig) -> Plan:
    """Calibrate and extrapolate; raises what the run itself would raise at its start."""
    measured = calibrate(config)
    tokens, source = _corpus_tokens(config, measured.tokens, measured.whole_corpus)
    cost = unit_costs(config, measured).cost(tokens)
    sampled = f"{len(measured.results)} blocks ({measured.tokens:,} tokens) computed and aggregated here"
    return Plan(
        tokens=tokens,
        entries=round(cost.entries),
        bytes_on_disk=round(cost.bytes),
        peak_memory_bytes=peak_resident_bytes(),
        accumulator_bytes=measured.accumulator_bytes,
        seconds=cost.total_seconds,
        basis=f"{sampled}; tokens: {source}",
        pair=measured.pair,
        steps=cost.seconds,
    )


def calibrate(config: RunConfig) -> Calibration:
    """Run the first blocks of the request in a temporary lake."""
    wanted = config.corpus.max_tokens
    limit = _BLOCKS * config.corpus.block_tokens
    corpus = config.corpus.model_copy(update={"max_tokens": limit if wanted is None else min(wanted, limit)})
    with tempfile.TemporaryDirectory(prefix="jacobian-plan-") as folder:
        lake = config.lake.model_copy(update={"root": str(Path(folder) / "lake")})
        return _measured(config.model_copy(update={"lake": lake, "corpus": corpus}))


def _measured(config: RunConfig) -> Calibration:
    started = time.perf_counter()
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    pipeline.check_quality(run)
    start_seconds = time.perf_counter() - started
    results, seconds, whole = _run_blocks(run)
    half_pairs = _pairs_so_far(run, [result.block_id for result in results[: max(1, len(results) // 2)]])
    group_seconds = sum(pipeline.accumulate_group(run, group) for group in pipeline.open_groups(run))
    started = time.perf_counter()
    from jacobian_core.finish import finish_run

    manifest = finish_run(run, {})
    publish_seconds = time.perf_counter() - started
    return Calibration(
        results, seconds, start_seconds, publish_seconds, group_seconds, half_pairs, manifest, whole,
        _accumulators(run), run.artifact.locator,
    )  # fmt: skip


def _pairs_so_far(run: RunRef, block_ids: list[str]) -> int:
    """Pairs that have an entry in these blocks."""
    from jacobian_core.pairs.build import count_pairs

    return count_pairs(Lake(run.lake), run.run_id, block_ids)


def unit_costs(config: RunConfig, measured: Calibration) -> UnitCosts:
    """What a token, an entry and a pair of this request cost."""
    manifest, tokens = measured.manifest, measured.tokens
    sizes = {table: sum(part.bytes for part in parts) for table, parts in manifest.all_parts().items()}
    active = next(part for part in manifest.parts["pair_stats"] if part.path.endswith("part-active.parquet"))
    entries, entry_bytes = int(manifest.totals["entries_stored"]), sizes.pop("jacobian_entries", 0)
    # Sums over all inputs have a row for every pair from the start, sums by latent soon one for every latent, counts
    # above thresholds one for each of these.
    fixed = sizes.pop("pair_stats") - active.bytes + sizes.pop("threshold_counts", 0) + sizes.pop("latent_stats", 0)
    halves = measured.results[: max(1, len(measured.results) // 2)]
    timed = sum(result.tokens for result in measured.results[measured.later])
    per_token = sum(measured.block_seconds[measured.later]) / timed
    sums = manifest.seconds.get("aggregate", 0.0)
    width = measured.manifest.artifact
    possible = int(str(width["n_out_latents"])) * int(str(width["n_in_latents"]))
    return UnitCosts(
        growth=PairGrowth(sum(r.tokens for r in halves), measured.half_pairs, tokens, active.rows, possible),
        entries_per_token=entries / tokens,
        bytes_per_token=sum(sizes.values()) / tokens,
        bytes_per_entry=entry_bytes / entries if entries else 0.0,
        bytes_per_pair=active.bytes / active.rows if active.rows else 0.0,
        fixed_bytes=fixed,
        start_seconds=measured.start_seconds,
        warm_up_seconds=max(0.0, sum(measured.block_seconds) - per_token * tokens),
        seconds_per_token=per_token + measured.group_seconds / tokens,
        sum_seconds=sums,
        check_seconds=max(0.0, measured.publish_seconds - sums),
        checks_max_entries=config.quality.checks_max_entries,
        merging=_merging(config, measured),
    )


def _merging(config: RunConfig, measured: Calibration) -> Merging | None:
    """How the run merges on its way; the calibration has too few blocks to do so."""
    if config.jacobian.keeps_entries:
        return None
    from jacobian_core.pairs.levels import FAN_IN

    return Merging(measured.tokens / len(measured.results), FAN_IN)


def _run_blocks(run: RunRef) -> tuple[list[BlockResult], list[float], bool]:
    """Blocks in corpus order, the wall seconds that each added, and whether they are the whole corpus.

    Staging and sorting are in the seconds; blocks overlap as a run's do.
    """
    results: list[BlockResult] = []
    seconds: list[float] = []
    budget = run.tokens_wanted or 0
    last = time.perf_counter()
    for shard in run.shards:
        cursor = None
        while True:
            batch = pipeline.stage_blocks(run, shard, cursor, budget, _BLOCKS)
            for result in pipeline.compute_blocks(run, [block.block_id for block in batch.blocks]):
                results.append(result)
                seconds.append(time.perf_counter() - last)
                last = time.perf_counter()
            budget -= batch.tokens
            cursor = batch.next_cursor
            if cursor is None or budget <= 0:
                break
        if budget <= 0:
            break
    if not results:
        raise CorpusError("the corpus has no document that can be analysed.", "Check corpus.location and its shards.")
    return results, seconds, budget > 0


def _corpus_tokens(config: RunConfig, tokens: int, whole: bool) -> tuple[int, str]:
    """Analysed tokens of the request, and where the number is from."""
    wanted = config.corpus.max_tokens
    if whole:
        return tokens, "the whole corpus"
    if wanted is not None:
        return wanted, "corpus.max_tokens"
    from jacobian_core.corpus.size import tokens_per_byte

    estimate = tokens_per_byte(config.corpus, config.model)
    return int(estimate.total_bytes * estimate.tokens_per_byte), "shard sizes and the first documents' tokens per byte"


def _accumulators(run: RunRef) -> int:
    if run.config.jacobian.scope != "all_inputs":
        return 0
    from jacobian_core.artifact.sae_pair import describe_pair
    from jacobian_core.numerics.all_inputs import accumulator_bytes

    pair = describe_pair(Path(run.artifact.folder))
    return accumulator_bytes(pair.n_out_latents, pair.n_in_latents, run.config.all_inputs.tiles)
