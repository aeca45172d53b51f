"""Benchmark `sql`: 100 million entries into `pair_stats` and `threshold_fractions`, against a dense accumulation.

The entries are made up (`synthetic.py`) and lie in a temporary folder, 24 blocks as a run leaves them. Each step runs
in a process of its own, so that its peak memory is its own. Core seconds are those in which the process had a core,
for machines that are shared. `pair_stats` is timed from the published parts: sorting the blocks' entries, the sums, the
part and the manifest. The dense accumulation reads the same parts into two float32 matrices of 16384 x 16384, the sum
and the largest of |J|, and writes nothing.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite import Figures, Options, Results

if TYPE_CHECKING:
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.manifest import PartInfo

BLOCKS = 24
"""Of 4096 tokens and 1024 entries a token: 100,663,296 entries."""


def measure(options: Options) -> Results:
    """Generate, aggregate, and accumulate densely."""
    del options
    blocks = BLOCKS
    with tempfile.TemporaryDirectory(prefix="jacobian-bench-") as folder:
        _step("generate", folder, blocks)
        sums, dense = _step("aggregate", folder, blocks), _step("dense", folder, blocks)
    figures = sums | {f"dense_{name}": value for name, value in dense.items()}
    figures["seconds"] = sums["pair_stats_seconds"] + sums["threshold_fractions_seconds"]
    figures["times_of_dense"] = figures["seconds"] / dense["seconds"]
    return {"sql_100m": figures}


def _step(name: str, folder: str, blocks: int) -> Figures:
    """Run one step in a process of its own; what it prints last is its figures."""
    command = [sys.executable, "-m", "benchmarks.sql_at_scale", name, folder, str(blocks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _generate(folder: Path, blocks: int) -> Figures:
    from benchmarks.synthetic import write_run

    write_run(folder / "lake", blocks)
    return {}


def _aggregate(folder: Path, _blocks: int) -> Figures:
    """What a run does at its end, and a report."""
    from benchmarks.synthetic import RUN
    from jacobian_core.config import LakeConfig
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.publish import publish_part
    from jacobian_core.pairs.build import build_pair_stats
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    lake, config = Lake.open(folder / "lake"), LakeConfig(root=str(folder / "lake"))
    clock, used = [time.perf_counter()], [time.process_time()]
    part = publish_part(lake, build_pair_stats(lake, RUN, config))
    _publish(lake, part)
    clock.append(time.perf_counter())
    used.append(time.process_time())
    after_sums = _peak()
    with connect(lake, [RUN], config.duckdb_memory) as connection:
        table = run_report(connection, "threshold_fractions", {"batches": 0})
        entries = connection.execute("SELECT sum(n_stored) FROM pair_stats").fetchall()[0][0]
    clock.append(time.perf_counter())
    used.append(time.process_time())
    return {
        "entries": float(entries), "pairs": float(part.rows), "pair_stats_bytes": float(part.bytes),
        "pair_stats_seconds": clock[1] - clock[0], "threshold_fractions_seconds": clock[2] - clock[1],
        "pair_stats_core_seconds": used[1] - used[0], "threshold_fractions_core_seconds": used[2] - used[1],
        "pair_stats_peak_bytes": after_sums,
        "share_above_0": table.column("share_max")[0].as_py(),
    }  # fmt: skip


def _publish(lake: Lake, part: PartInfo) -> None:
    from benchmarks.synthetic import RUN
    from jacobian_core.lake.manifest import RunManifest
    from jacobian_core.lake.publish import merge_totals
    from jacobian_core.lake.runs import publish_run

    request, blocks = lake.request(RUN), lake.markers(RUN)
    assert request is not None
    record: dict[str, object] = {name: {} for name in ("model", "versions", "quality", "corpus", "seconds")}
    record |= {"run_id": RUN, "identity": request.identity, "config": request.config, "blocks": blocks}
    record |= {"artifact": request.identity["artifact"], "parts": {"pair_stats": [part]}}
    record |= {"totals": merge_totals(blocks), "created_utc": datetime.now(UTC)}
    publish_run(lake, RunManifest.model_validate(record))


def _dense(folder: Path, _blocks: int) -> Figures:
    """Two dense float32 matrices, filled a row group at a time."""
    import pyarrow.parquet as pq
    import torch

    from benchmarks.synthetic import LATENTS

    started, used = time.perf_counter(), time.process_time()
    total, largest = torch.zeros(LATENTS * LATENTS), torch.zeros(LATENTS * LATENTS)
    for path in sorted((folder / "lake" / "jacobian_entries").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number, columns=["out_latent", "in_latent", "value"])
                out, in_, value = (torch.from_numpy(rows.column(n).to_numpy().copy()) for n in rows.column_names)
                cell, size = out.long() * LATENTS + in_.long(), value.abs()
                total.index_add_(0, cell, size)
                largest.scatter_reduce_(0, cell, size, "amax")
    pairs = float(torch.count_nonzero(largest))
    return {"seconds": time.perf_counter() - started, "core_seconds": time.process_time() - used, "pairs": pairs}


def _peak() -> float:
    """This process' largest resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


if __name__ == "__main__":
    steps = {"generate": _generate, "aggregate": _aggregate, "dense": _dense}
    found = steps[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found | {"peak_bytes": _peak()}))
