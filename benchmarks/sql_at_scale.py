"""Benchmark `sql`: 100 million entries into marts and reports, against a dense accumulation; reports with and without.

The entries are made up (`synthetic.py`) and lie in a temporary folder, 24 blocks as a run leaves them. Each step runs
in a process of its own, so that its peak memory is its own. Core seconds are those in which the process had a core,
for machines that are shared. `pair_stats` is timed from the published parts: sorting the blocks' entries, the sums, the
part, and the counts for `threshold_counts`, which are then written with the manifest. Then every report that the made-
up run has something for. On 8 million entries `threshold_fractions` and `convergence` also take turns with themselves
computed from the entries, which is what they do for a threshold that `threshold_counts` lacks. The dense accumulation
reads the same parts into two float32 matrices of 16384 x 16384, the sum and the largest of |J|, and writes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite import Figures, Options, Results
from jacobian_core.memory import peak_resident_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.manifest import PartInfo

BLOCKS = 24
"""Of 4096 tokens and 1024 entries a token: 100,663,296 entries."""
_FEW_BLOCKS, _TURNS = 2, 2
_NOT_COUNTED = 0.0123
"""A threshold that `threshold_counts` does not have."""
_COUNTED_REPORTS = ("threshold_fractions", "convergence")


def measure(options: Options) -> Results:
    """Generate, aggregate, report, and accumulate densely. All reports of 100 million entries only in a full run."""
    with tempfile.TemporaryDirectory(prefix="jacobian-bench-") as folder:
        _step("generate", folder, BLOCKS)
        sums, dense = _step("aggregate", folder, BLOCKS), _step("dense", folder, BLOCKS)
        results = {"reports_100m": _step("reports", folder, BLOCKS)} if options.full else {}
    with tempfile.TemporaryDirectory(prefix="jacobian-bench-") as folder:
        for step in ("generate", "aggregate"):
            _step(step, folder, _FEW_BLOCKS)
        few = _step("reports", folder, _FEW_BLOCKS) | _step("turns", folder, _FEW_BLOCKS)
    figures = sums | {f"dense_{name}": value for name, value in dense.items()}
    figures["seconds"] = sums["marts_seconds"] + sums["threshold_fractions_seconds"]
    figures["times_of_dense"] = figures["seconds"] / dense["seconds"]
    return {"sql_100m": figures, **results, "reports_8m": few}


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
    """What a run does at its end, and the two reports of pairs, intervals included."""
    from benchmarks.synthetic import RUN
    from jacobian_core.config import LakeConfig, MartsConfig
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.publish import publish_part
    from jacobian_core.pairs.above import pairs_above
    from jacobian_core.pairs.build import build_pair_stats
    from jacobian_core.pairs.threshold_counts import build_threshold_counts
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    lake, config, clock = Lake.open(folder / "lake"), LakeConfig(root=str(folder / "lake")), _Clock()
    above = pairs_above(lake, RUN, MartsConfig().thresholds, ["active"])
    pairs = publish_part(lake, build_pair_stats(lake, RUN, config, above=above["active"]))
    clock.done("pair_stats")
    _publish(lake, [pairs, publish_part(lake, build_threshold_counts(lake, RUN, config, above))])
    clock.done("threshold_counts")
    after_sums = float(peak_resident_bytes())
    with connect(lake, [RUN], config.duckdb_memory) as connection:
        table = run_report(connection, "threshold_fractions", {})
    clock.done("threshold_fractions")
    found = clock.figures
    return found | {
        "entries": float(_entries(lake)), "pairs": float(pairs.rows), "pair_stats_bytes": float(pairs.bytes),
        "marts_seconds": found["pair_stats_seconds"] + found["threshold_counts_seconds"],
        "marts_peak_bytes": after_sums,
        "share_above_0": table.column("share_max")[0].as_py(),
    }  # fmt: skip


class _Clock:
    """Seconds, and seconds on a core, of one thing after another."""

    def __init__(self) -> None:
        self.figures: Figures = {}
        self._last = time.perf_counter(), time.process_time()

    def done(self, name: str) -> None:
        """It ends here."""
        now = time.perf_counter(), time.process_time()
        for kind, before, after in zip(("seconds", "core_seconds"), self._last, now, strict=True):
            self.figures[f"{name}_{kind}"] = after - before
        self._last = now


def _entries(lake: Lake) -> int:
    from benchmarks.synthetic import RUN

    manifest = lake.manifest(RUN)
    assert manifest is not None
    return int(manifest.totals["entries_stored"])


def _reports(folder: Path, _blocks: int) -> Figures:
    """Seconds of every report of one run, each in a connection of its own."""
    from jacobian_core.sql.reports import list_reports

    names = [r.name for r in list_reports() if r.parameter("run_id") and not set(r.reads) & _NOT_MADE_UP]
    return {f"{name}_seconds": _timed(folder, name, {})[0] for name in names}


_NOT_MADE_UP = {"interventions", "intervention_effects", "causal_bins", "function_shapes", "transcoder_tokens",
                "transcoder_latents", "transcoder_effects"}  # fmt: skip
"""What the made-up run has no rows of: reports of these are left out."""


def _turns(folder: Path, _blocks: int) -> Figures:
    """The two reports by their counts, then the same figures from the entries, in turns; the best of each."""
    counted = {name: _timed(folder, name, {})[1] for name in _COUNTED_REPORTS}
    seconds: dict[str, list[float]] = {}
    for _ in range(_TURNS):
        for name, table in counted.items():
            thresholds = sorted({*table.column("threshold").to_pylist(), _NOT_COUNTED})
            for way, given in (("counted", {}), ("from_entries", {"thresholds": thresholds})):
                seconds.setdefault(f"{name}_{way}_seconds", []).append(_timed(folder, name, given)[0])
    return {name: min(each) for name, each in seconds.items()}


def _timed(folder: Path, name: str, given: dict[str, object]) -> tuple[float, pa.Table]:
    from benchmarks.synthetic import RUN
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    started = time.perf_counter()
    with connect(Lake.open(folder / "lake"), [RUN]) as connection:
        table = run_report(connection, name, given)
    return time.perf_counter() - started, table


def _publish(lake: Lake, parts: list[PartInfo]) -> None:
    from benchmarks.synthetic import RUN
    from jacobian_core.lake.manifest import RunManifest
    from jacobian_core.lake.publish import merge_totals
    from jacobian_core.lake.runs import publish_run

    request, blocks = lake.request(RUN), lake.markers(RUN)
    assert request is not None
    record: dict[str, object] = {name: {} for name in ("model", "versions", "quality", "corpus", "seconds")}
    record |= {"run_id": RUN, "identity": request.identity, "config": request.config, "blocks": blocks}
    record |= {"artifact": request.identity["artifact"], "parts": {part.path.split("/")[0]: [part] for part in parts}}
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


if __name__ == "__main__":
    steps = {"generate": _generate, "aggregate": _aggregate, "dense": _dense, "reports": _reports, "turns": _turns}
    found = steps[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found | {"peak_bytes": float(peak_resident_bytes())}))
