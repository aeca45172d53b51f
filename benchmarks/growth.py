"""Benchmark `growth`: whole runs of more and more tokens, each in a process of its own, and what `plan` said before.

`tokens_per_second` is that of staging and computing blocks, parts published, their entries sorted for the sums. The
peak memory is that of the process that ran, `pair_stats` included; checks and reports run in another one, since
DuckDB takes what its limit allows (`sql_peak_bytes`). The demo's shape runs up to 200,000 tokens in a quick run and a
million in a full one; pythia-70m's shape up to 50,000, in a full run only. The text is `text.py`'s.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite import Figures, Options, Results
from jacobian_core.memory import peak_resident_bytes

if TYPE_CHECKING:
    from jacobian_core.config import RunConfig

QUICK = (("demo", 10_000), ("demo", 50_000), ("demo", 200_000))
FULL = (*QUICK, ("demo", 1_000_000), ("pythia-70m", 10_000), ("pythia-70m", 50_000))
_SQL_REPORTS = ("threshold_fractions", "mean_max_aggregates", "sparsity", "data_quality")


def measure(options: Options) -> Results:
    """A section for each size, and the ratios between them."""
    results: Results = {}
    for shape, tokens in FULL if options.full else QUICK:
        with tempfile.TemporaryDirectory(prefix="jacobian-bench-") as folder:
            results[f"{shape} {tokens}"] = size(shape, tokens, Path(folder))
    small, large = results["demo 10000"], results["demo 200000"]
    results["growth"] = {
        "rss_growth_10k_to_200k": large["peak_bytes"] / small["peak_bytes"] - 1,
        "rate_200k_over_10k": large["tokens_per_second"] / small["tokens_per_second"],
    }
    return results


def size(shape: str, tokens: int, folder: Path) -> Figures:
    """Plan, run, and query a run of one size; another process makes what they read, so that each imports for itself."""
    _step("make", shape, tokens, folder)
    plan, run, sql = (_step(name, shape, tokens, folder) for name in ("plan", "run", "sql"))
    return run | {f"sql_{name}": value for name, value in sql.items()} | {
        "plan_over_run_seconds": plan["seconds"] / (run["seconds"]),
        "plan_over_run_bytes": plan["bytes"] / run["bytes"],
        "plan_over_run_entries": plan["entries"] / run["entries"],
        "plan_over_run_memory": plan["memory"] / run["peak_bytes"],
    }  # fmt: skip


def _step(name: str, shape: str, tokens: int, folder: Path) -> Figures:
    command = [sys.executable, "-m", "benchmarks.growth", name, shape, str(tokens), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def config_of(shape: str, tokens: int, folder: Path) -> RunConfig:
    """A run of so many tokens; model, pair and text are made where they are missing. Checks run by themselves."""
    from benchmarks.shapes import DEMO, PYTHIA_70M, make_config
    from benchmarks.text import write_text

    if not (folder / "text").is_dir():
        write_text(folder / "text", tokens)
    known = {each.name: each for each in (DEMO, PYTHIA_70M)}
    config = make_config(known[shape], folder, tokens)
    return config.model_copy(
        update={
            "corpus": config.corpus.model_copy(update={"location": str(folder / "text")}),
            "quality": config.quality.model_copy(update={"checks_max_entries": 0}),
        }
    )


def _make(config: RunConfig) -> Figures:
    return {"tokens": float(config.corpus.max_tokens or 0)}


def _plan(config: RunConfig) -> Figures:
    from jacobian_core.request.plan import plan_run

    found = plan_run(config)
    return {
        "seconds": found.seconds, "bytes": float(found.bytes_on_disk), "entries": float(found.entries),
        "memory": float(found.peak_memory_bytes),
    }  # fmt: skip


def _run(config: RunConfig) -> Figures:
    from jacobian_core import pipeline
    from jacobian_core.memory import share_heap

    share_heap()  # as the command does
    started = time.perf_counter()
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    pipeline.check_quality(run)
    computing = time.perf_counter()
    cursor, tokens = None, 0
    while True:
        batch = pipeline.stage_blocks(run, run.shards[0], cursor, (run.tokens_wanted or 0) - tokens, 8)
        for _ in pipeline.compute_blocks(run, [block.block_id for block in batch.blocks]):
            pass
        tokens, cursor = tokens + batch.tokens, batch.next_cursor
        if cursor is None or tokens >= (run.tokens_wanted or 0):
            break
    computed = time.perf_counter()
    summary = pipeline.publish_run(run, {})
    ended = time.perf_counter()
    return {
        "tokens": float(summary.tokens), "entries": float(summary.entries_stored), "bytes": float(summary.bytes),
        "tokens_per_second": summary.tokens / (computed - computing), "publish_seconds": ended - computed,
        "seconds": ended - started, "peak_bytes": float(peak_resident_bytes()),
    }  # fmt: skip


def _sql(config: RunConfig) -> Figures:
    """Checks and reports over the run that was made, as commands do it."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql.checks import run_checks
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    lake = Lake.open(config.lake.root)
    (run_id,) = lake.runs()
    started = time.perf_counter()
    with connect(lake, [run_id], config.lake.duckdb_memory) as connection:
        failed = [check.name for check in run_checks(connection, run_id) if not check.passed]
        checked = time.perf_counter()
        for name in _SQL_REPORTS:
            run_report(connection, name, {"batches": 0} if name == "threshold_fractions" else {})
    if failed:
        raise SystemExit(f"checks failed: {', '.join(failed)}")
    reported = time.perf_counter()
    return {
        "check_seconds": checked - started,
        "seconds": reported - checked,
        "peak_bytes": float(peak_resident_bytes()),
    }


if __name__ == "__main__":
    asked = config_of(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    print(json.dumps({"make": _make, "plan": _plan, "run": _run, "sql": _sql}[sys.argv[1]](asked)))
