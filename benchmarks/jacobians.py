"""Jacobian entries by each method and end to end, at one shape: ratios of one run."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.contenders import notebook, ours, published, published_run, torch_func
from benchmarks.measure import Timing, gemm_flops, gemm_rate, interleaved, packed_gemm_rate
from benchmarks.shapes import Shape, make_config
from jacobian_core import pipeline
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.staging import load_block
from jacobian_core.lake.layout import Lake
from jacobian_core.model.activations import block_activations
from jacobian_core.work.compute import BlockComputer, StageSeconds
from jacobian_core.work.worker import Worker, worker_for

NOTEBOOK_TOKENS, FUNC_TOKENS, CHUNK_TOKENS = 3, 16, 512


def necessary_flops(shape: Shape, mean_context: float) -> dict[str, float]:
    """Floating-point operations of a token that no exact method can save, by stage."""
    d, h, n = shape.d_model, 4 * shape.d_model, shape.latents
    attention = 2 * 4 * d * d + 2 * 2 * d * mean_context / 2
    block = attention + 2 * 2 * d * h
    return {
        "language_model": shape.layer * block,
        "encoders": 2 * 2 * d * n,
        "mlp": 2 * 2 * d * h,
        "jacobian": 2 * shape.k * shape.k * h,
    }


def measure_shape(shape: Shape, tokens: int, turns: int) -> dict[str, float]:
    """All figures of one shape; seconds are medians of interleaved turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(shape, folder, tokens)
        run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
        worker = worker_for(run)
        blocks = [b.block_id for b in pipeline.stage_blocks(run, run.shards[0], None, tokens, 1_000).blocks]
        lake = Lake(Path(run.lake))
        block = load_block(lake.staged_path(run.run_id, blocks[0]))
        figures = _methods(worker, block, turns)
        figures |= _end_to_end(worker, run, blocks, folder, turns)
        figures |= _bound(shape, figures)
    return figures


def _methods(worker: Worker, block: TokenBlock, turns: int) -> dict[str, float]:
    """Microseconds a token from MLP inputs to J, by method."""
    computer = worker.computer
    x = block_activations(computer.model, block, computer.forward_batch_tokens)[:CHUNK_TOKENS]
    sandwich = computer.sandwich
    sizes = {"notebook": NOTEBOOK_TOKENS, "torch_func": FUNC_TOKENS, "published": len(x), "ours": len(x)}
    methods = {"notebook": notebook, "torch_func": torch_func, "published": published}

    def caller(name: str):  # type: ignore[no-untyped-def]
        if name == "ours":
            return lambda: ours(computer, x)
        return lambda: methods[name](sandwich, x[: sizes[name]])

    with torch.no_grad():
        timings = interleaved({name: caller(name) for name in sizes if name != "notebook"}, turns)
    timings |= interleaved({"notebook": caller("notebook")}, max(1, turns // 2))
    return {f"us_per_token_{name}": 1e6 * t.median / sizes[name] for name, t in timings.items()}


def _end_to_end(worker: Worker, run: pipeline.RunRef, blocks: list[str], folder: Path, turns: int) -> dict[str, float]:
    """From staged token ids to published parts, ours and the published way; with the stages of ours.

    Ours computes several blocks, as runs do; the others the first one, which costs them the same a token.
    """
    from jacobian_core.lake.publish import withdraw_block

    lake = Lake(Path(run.lake))
    kept = {block_id: lake.staged_path(run.run_id, block_id).read_bytes() for block_id in blocks}
    loaded = [load_block(lake.staged_path(run.run_id, block_id)) for block_id in blocks]
    first, tokens = loaded[0], sum(block.analysed for block in loaded)
    stages: dict[str, list[float]] = {}

    def ours_once() -> None:
        for block_id, content in kept.items():
            withdraw_block(lake, run.run_id, block_id)
            lake.staged_path(run.run_id, block_id).write_bytes(content)
        results = list(pipeline.compute_blocks(run, blocks, gather=False))
        for stage in results[0].seconds:
            stages.setdefault(stage, []).append(sum(result.seconds[stage] for result in results))

    computer = worker.computer
    exact = replace(
        computer.sandwich,
        inputs=computer.sandwich.inputs.searched_in("exact"),
        outputs=computer.sandwich.outputs.searched_in("exact"),
    )
    with torch.no_grad():
        timings = interleaved(
            {
                "ours_run": ours_once,
                "ours_compute": lambda: _computed(computer, loaded),
                "ours_compute_float32": lambda: _computed(replace(computer, sandwich=exact), [first]),
                "published_run": lambda: published_run(computer, first, folder),
                "gemm": gemm_rate(),
                "packed_gemm": packed_gemm_rate(),
            },
            turns,
        )
    wall = timings["ours_run"].median
    busy = {stage: Timing(tuple(seconds)).median for stage, seconds in stages.items()}
    search = computer.sandwich.outputs.search
    parts = [lake.marker(run.run_id, block_id).parts["jacobian_entries"] for block_id in blocks]  # type: ignore[union-attr]
    sizes = {"ours_run": tokens, "ours_compute": tokens, "ours_compute_float32": first.analysed}
    return {
        **{
            f"us_per_token_{name}": 1e6 * timings[name].median / size
            for name, size in (sizes | {"published_run": first.analysed}).items()
        },
        **{f"us_per_token_stage_{stage}": 1e6 * seconds / tokens for stage, seconds in busy.items()},
        "write_share_of_wall": 1 - timings["ours_compute"].median / wall,
        "write_share_of_busy_time": busy["write"] / sum(busy.values()),
        "share_of_widened_searches": search.widened / max(1, search.rows),
        "bytes_per_entry": sum(part.bytes for part in parts) / sum(part.rows for part in parts),
        "gemm_gflops": gemm_flops() / timings["gemm"].median / 1e9,
        "packed_gemm_gflops": gemm_flops() / timings["packed_gemm"].median / 1e9,
        "mean_row_tokens": tokens / sum(len(block.row_offsets) - 1 for block in loaded),
        "spread_ours_run": timings["ours_run"].spread,
    }


def _computed(computer: BlockComputer, blocks: list[TokenBlock]) -> None:
    """The compute path: the tables of blocks, made and thrown away; a block begins while the last one ends."""

    def whole(block: TokenBlock) -> None:
        for _ in computer.compute(block, StageSeconds()):
            pass

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(torch.no_grad()(whole), blocks))


def _bound(shape: Shape, figures: dict[str, float]) -> dict[str, float]:
    """Ratios, and how near the run is to its necessary operations at the measured GEMM rate."""
    flops = sum(necessary_flops(shape, figures["mean_row_tokens"]).values())
    bound = flops / figures["gemm_gflops"] / 1e3
    per_token_notebook = figures["us_per_token_notebook"]
    return {
        "gemm_bound_us_per_token": bound,
        "fraction_of_gemm_bound": bound / figures["us_per_token_ours_compute"],
        "fraction_of_gemm_bound_float32": bound / figures["us_per_token_ours_compute_float32"],
        "fraction_of_gemm_bound_end_to_end": bound / figures["us_per_token_ours_run"],
        "fraction_of_packed_gemm_bound": flops
        / figures["packed_gemm_gflops"]
        / 1e3
        / figures["us_per_token_ours_compute"],
        "speedup_vs_notebook": per_token_notebook / figures["us_per_token_ours_run"],
        "speedup_vs_torch_func": figures["us_per_token_torch_func"] / figures["us_per_token_ours"],
        "speedup_vs_published_jacobian": figures["us_per_token_published"] / figures["us_per_token_ours"],
        "speedup_vs_published_end_to_end": figures["us_per_token_published_run"] / figures["us_per_token_ours_run"],
        "tokens_per_second": 1e6 / figures["us_per_token_ours_run"],
    }
