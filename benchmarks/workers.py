"""One worker against two: the compute stage of the same blocks, one thread a worker, the same bytes.

    python -m benchmarks.workers --turns 3 --cores 0 1

Each worker is a process that loads the model once and then takes blocks from one list, as Prefect's workers do; what is
timed is from the first block to the last marker: writing is in it, loading and Prefect are not. One and two take turns.
A plain GEMM in the same processes says what the machine itself gives to two. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from jacobian_core.step_values import RunRef

_GEMM_CALLS = 40


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="timed turns of one and of two workers")
    parser.add_argument("--shapes", nargs="+", default=["demo", "pythia-70m"])
    parser.add_argument("--cores", nargs=2, type=int, default=[0, 1], help="the core of each worker")
    arguments = parser.parse_args()
    results: dict[str, object] = {"cores": arguments.cores, "turns": arguments.turns}
    with tempfile.TemporaryDirectory(prefix="jacobian-workers-") as folder:
        for name in arguments.shapes:
            figures = measure(name, Path(folder) / name, arguments.turns, arguments.cores)
            print(f"\n{name}")
            for key, value in figures.items():
                print(f"  {key:40} {value:14,.4g}")
            results[name] = {key: float(f"{value:.5g}") for key, value in figures.items()}
    print(json.dumps(results))


def measure(name: str, folder: Path, turns: int, cores: list[int]) -> dict[str, float]:
    """Figures of one shape; RuntimeError where two workers wrote other bytes than one."""
    run, block_ids, tokens = _staged(name, folder)
    context = multiprocessing.get_context("spawn")
    team = [_Worker(context, run, core) for core in cores]
    try:
        seconds: dict[int, list[float]] = {1: [], 2: []}
        gemm: dict[int, list[float]] = {1: [], 2: []}
        written: list[dict[str, str]] = []
        for turn in range(turns + 1):  # the first is to warm up
            for count in (1, 2):
                took = _gemm(team[:count])
                lake = _copy(run, folder / f"lake-{turn}-{count}")
                spent = _compute(team[:count], lake, block_ids)
                written.append(_digests(Path(lake.lake), run.run_id))
                shutil.rmtree(lake.lake)
                if turn:
                    seconds[count].append(spent)
                    gemm[count].append(took)
    finally:
        for worker in team:
            worker.end()
    if any(each != written[0] or len(each) < len(block_ids) for each in written):
        raise RuntimeError("two workers wrote other bytes than one")
    one, two = (statistics.median(seconds[count]) for count in (1, 2))
    g1, g2 = (statistics.median(gemm[count]) for count in (1, 2))
    return {
        "tokens": tokens, "blocks": len(block_ids), "parts_compared": len(written[0]),
        "one_worker_us_per_token": 1e6 * one / tokens, "two_workers_us_per_token": 1e6 * two / tokens,
        "two_workers_speedup": one / two, "two_workers_share_of_linear": one / two / 2,
        "machine_gemm_share_of_linear": g1 / g2, "two_workers_share_of_machine": one / two / 2 / (g1 / g2),
        "fastest_turns_speedup": min(seconds[1]) / min(seconds[2]),
        "slowest_over_fastest_turn": max(map(_spread, seconds.values())),
    }  # fmt: skip


def _spread(values: list[float]) -> float:
    return max(values) / min(values)


def _staged(name: str, folder: Path) -> tuple[RunRef, list[str], int]:
    """A run of the shape that is begun, with all of its blocks staged."""
    from benchmarks.shapes import DEMO, PYTHIA_70M, make_config
    from jacobian_core import pipeline
    from jacobian_core.resources import project_path

    shape = {each.name: each for each in (DEMO, PYTHIA_70M)}[name]
    tokens, block_tokens = {"demo": (24_000, 1_000), "pythia-70m": (4_000, 250)}[name]
    corpus: dict[str, object] = {
        "source": "folder", "location": str(project_path("demo/corpus")), "context_tokens": shape.context,
        "max_tokens": tokens, "block_tokens": block_tokens,
    }  # fmt: skip
    folder.mkdir(parents=True)
    config = make_config(shape, folder, tokens, corpus=corpus, compute={"threads": 1, "device": "cpu"})
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    block_ids: list[str] = []
    budget = tokens
    for shard in run.shards:
        batch = pipeline.stage_blocks(run, shard, None, budget, 10_000)
        block_ids += [block.block_id for block in batch.blocks]
        budget -= batch.tokens
        if budget <= 0:
            break
    return run, block_ids, tokens - budget


def _copy(run: RunRef, lake: Path) -> RunRef:
    """The same run as it was staged, in a lake of its own."""
    shutil.copytree(run.lake, lake)
    return dataclasses.replace(run, lake=str(lake))


def _digests(lake: Path, run_id: str) -> dict[str, str]:
    from jacobian_core.lake.layout import Lake

    markers = Lake.open(lake).markers(run_id)
    return {part.path: part.sha256 for marker in markers for part in marker.parts.values()}


class _Worker:
    """A process on one core, with the run's model loaded; it does what it is sent, one request at a time."""

    def __init__(self, context: Any, run: RunRef, core: int) -> None:
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, run, core), daemon=True)
        self._process.start()
        self.answer()

    def ask(self, *request: Any) -> None:
        self._here.send(request)

    def answer(self) -> Any:
        return self._here.recv()

    def end(self) -> None:
        self._here.send(("end",))
        self._process.join(30)


def _serve(connection: Any, run: RunRef, core: int) -> None:
    """The worker's side."""
    os.sched_setaffinity(0, {core})
    from jacobian_core import pipeline
    from jacobian_core.work.worker import worker_for

    worker_for(run)
    connection.send("loaded")
    while (request := connection.recv())[0] != "end":
        if request[0] == "gemm":
            _multiply()
            connection.send("done")
        else:
            _, where, block_id = request
            pipeline.compute_block(where, block_id)
            connection.send(block_id)


def _multiply() -> None:
    import torch

    left, right = torch.randn(1024, 512), torch.randn(512, 2048)
    for _ in range(_GEMM_CALLS):
        left @ right


def _gemm(team: list[_Worker]) -> float:
    """Seconds until every worker has done the same products."""
    started = time.perf_counter()
    for worker in team:
        worker.ask("gemm")
    for worker in team:
        worker.answer()
    return time.perf_counter() - started


def _compute(team: list[_Worker], run: RunRef, block_ids: list[str]) -> float:
    """Seconds until all blocks are published, each taken by the next worker that is free."""
    from multiprocessing.connection import wait

    left, busy = list(block_ids), {}
    started = time.perf_counter()
    for worker in team:
        worker.ask("block", run, left.pop(0))
        busy[worker._here] = worker
    while busy:
        for connection in wait(list(busy)):
            worker = busy[connection]
            worker.answer()
            if left:
                worker.ask("block", run, left.pop(0))
            else:
                del busy[connection]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
