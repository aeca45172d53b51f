"""What a run would cost, from a short real run: the same steps on the same text and weights, in a temporary lake.

Nothing is modelled that can be measured: the first blocks of the request are fetched, tokenised, computed, written and
aggregated, and the rates of the second half are extrapolated (the first half warms caches and allocators up).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jacobian_core import pipeline
from jacobian_core.artifact.sae_pair import describe_pair
from jacobian_core.config import RunConfig
from jacobian_core.errors import CorpusError
from jacobian_core.numerics.all_inputs import accumulator_bytes
from jacobian_core.pipeline import BlockResult, RunRef

_BLOCKS = 6
"""Blocks of the calibration; rates are those of the later half."""


@dataclass(frozen=True)
class Plan:
    """The cost of a run: tokens, stored entries, bytes in the lake, peak memory in bytes, wall seconds.

    `accumulator_bytes` is device memory of scope 'all_inputs' (0 for another), on a CPU a part of the peak. `basis`
    says what was measured, `pair` where the SAEs are from.
    """

    tokens: int
    entries: int
    bytes_on_disk: int
    peak_memory_bytes: int
    accumulator_bytes: int
    seconds: float
    basis: str
    pair: str = ""


@dataclass(frozen=True)
class _Calibration:
    """A short run's measurements: its blocks, and wall seconds to start, to aggregate and to stage and compute."""

    results: list[BlockResult]
    block_seconds: list[float]
    start_seconds: float
    publish_seconds: float
    bytes: int
    whole_corpus: bool
    group_seconds: float
    accumulator_bytes: int
    pair: str


def plan_run(config: RunConfig) -> Plan:
    """Calibrate and extrapolate; raises what the run itself would raise at its start."""
    with tempfile.TemporaryDirectory(prefix="jacobian-plan-") as folder:
        lake = config.lake.model_copy(update={"root": str(Path(folder) / "lake")})
        measured = _calibrate(config.model_copy(update={"lake": lake}))
    return _extrapolate(config, measured)


def _calibrate(config: RunConfig) -> _Calibration:
    wanted = config.corpus.max_tokens
    limit = _BLOCKS * config.corpus.block_tokens
    corpus = config.corpus.model_copy(update={"max_tokens": limit if wanted is None else min(wanted, limit)})
    started = time.perf_counter()
    request = config.model_copy(update={"corpus": corpus})
    run = pipeline.resolve_run(request, pipeline.fetch_artifact(request))
    pipeline.check_quality(run)
    start_seconds = time.perf_counter() - started
    results, seconds, whole = _run_blocks(run)
    groups = pipeline.open_groups(run)
    group_seconds = sum(pipeline.accumulate_group(run, group) for group in groups)
    started = time.perf_counter()
    summary = pipeline.publish_run(run, {})
    publish_seconds = time.perf_counter() - started
    return _Calibration(
        results,
        seconds,
        start_seconds,
        publish_seconds,
        summary.bytes,
        whole,
        group_seconds,
        _accumulators(run),
        run.artifact.locator,
    )


def _run_blocks(run: RunRef) -> tuple[list[BlockResult], list[float], bool]:
    """Blocks in corpus order with their wall seconds, staging included, and whether they are the whole corpus."""
    results: list[BlockResult] = []
    seconds: list[float] = []
    budget = run.tokens_wanted or 0
    for shard in run.shards:
        cursor = None
        while True:
            started = time.perf_counter()
            batch = pipeline.stage_blocks(run, shard, cursor, budget, 1)
            for block in batch.blocks:
                results.append(pipeline.compute_block(run, block.block_id))
                seconds.append(time.perf_counter() - started)
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


def _extrapolate(config: RunConfig, measured: _Calibration) -> Plan:
    later = slice(len(measured.results) // 2, None)
    results, seconds = measured.results[later], measured.block_seconds[later]
    sampled = sum(r.tokens for r in measured.results)
    tokens, source = _corpus_tokens(config, sampled, measured.whole_corpus)
    per_token = 1 / sum(r.tokens for r in results)
    scale = tokens / sampled
    seconds_total = (
        measured.start_seconds
        + tokens * sum(seconds) * per_token
        + scale * measured.group_seconds
        + max(1.0, scale) * measured.publish_seconds
    )
    return Plan(
        tokens=tokens,
        entries=round(scale * sum(r.entries_stored for r in measured.results)),
        bytes_on_disk=round(scale * measured.bytes),
        peak_memory_bytes=_peak_memory(),
        accumulator_bytes=measured.accumulator_bytes,
        seconds=seconds_total,
        basis=f"{len(measured.results)} blocks ({sampled:,} tokens) computed and aggregated here; tokens: {source}",
        pair=measured.pair,
    )


def _accumulators(run: RunRef) -> int:
    if run.config.jacobian.scope != "all_inputs":
        return 0
    pair = describe_pair(Path(run.artifact.folder))
    return accumulator_bytes(pair.n_out_latents, pair.n_in_latents, run.config.all_inputs.tiles)


def _peak_memory() -> int:
    """The process' largest resident set so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
