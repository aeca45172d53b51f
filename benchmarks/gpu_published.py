"""From staged token ids to published Parquet parts with one GPU and all cores: blocks side by side in threads."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.shapes import PYTHIA_70M, make_config
from jacobian_core import pipeline
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import withdraw_block
from jacobian_core.work.worker import worker_for

_TOKENS, _CHUNK = 100_000, 4096


def published_blocks(turns: int) -> dict[str, float]:
    """Tokens a second, and bytes an entry, of the median turn over all blocks."""
    with tempfile.TemporaryDirectory() as name:
        compute: dict[str, object] = {"device": "cuda", "chunk_tokens": _CHUNK, "forward_batch_tokens": 4 * _CHUNK}
        config = make_config(PYTHIA_70M, Path(name), _TOKENS, compute=compute)
        run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
        worker_for(run)
        staged = pipeline.stage_blocks(run, run.shards[0], None, _TOKENS, 1_000).blocks
        ids, lake = [b.block_id for b in staged], Lake(Path(run.lake))
        kept = {block: lake.staged_path(run.run_id, block).read_bytes() for block in ids}
        spent, tokens, size = [], 0, 0
        for turn in range(turns + 1):
            for block, content in kept.items():
                withdraw_block(lake, run.run_id, block)
                lake.staged_path(run.run_id, block).write_bytes(content)
            started = time.perf_counter()
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                done = list(threads.map(lambda block: pipeline.compute_block(run, block), ids))
            if turn:
                spent.append(time.perf_counter() - started)
            tokens, size = sum(d.tokens for d in done), sum(d.bytes for d in done)
    rate = tokens / statistics.median(spent)
    return {"published_tokens_per_second": rate, "published_tokens": tokens, "published_bytes_per_token": size / tokens}
