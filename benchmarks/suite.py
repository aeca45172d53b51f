"""The benchmarks of `make bench` (quick) and `make bench-full`, in the order in which they run; add one here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

Figures = dict[str, float]
Results = dict[str, Figures]


@dataclass(frozen=True)
class Options:
    """What was asked for: timed turns of each contender, the shapes of `jacobians`, and whether time is no object."""

    turns: int
    shapes: tuple[str, ...]
    full: bool


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: `module` has `measure(options)` and returns figures by section; `quick`: `make bench` has it."""

    name: str
    module: str
    quick: bool

    def measure(self, options: Options) -> Results:
        """Run it. Its module is imported here, so that one benchmark's libraries are not another one's memory."""
        results: Results = import_module(self.module).measure(options)
        return results


SUITE: tuple[Benchmark, ...] = (
    Benchmark("jacobians", "benchmarks.shapes_in_turn", quick=True),
    Benchmark("experiments", "benchmarks.experiments", quick=True),
    Benchmark("sql", "benchmarks.sql_at_scale", quick=True),
    Benchmark("growth", "benchmarks.growth", quick=True),
    Benchmark("paper", "benchmarks.paper", quick=False),
    Benchmark("train_cost", "benchmarks.train_cost", quick=True),
)

HEADLINES: dict[str, tuple[str, str]] = {
    name: ("pythia-70m", name)
    for name in (
        "speedup_vs_notebook", "speedup_vs_torch_func", "speedup_vs_published_end_to_end", "fraction_of_gemm_bound",
        "write_share_of_wall", "bytes_per_entry",
    )
} | {"sql_100m_seconds": ("sql_100m", "seconds"), "sql_100m_peak_bytes": ("sql_100m", "peak_bytes")} | {
    name: ("growth", name) for name in ("rss_growth_10k_to_200k", "rate_200k_over_10k")
} | {name: ("experiments", name) for name in ("speedup_interventions", "speedup_all_inputs")}  # fmt: skip
"""The ratios that goals are set for: the section and figure that each is."""


def headlines(results: Mapping[str, Mapping[str, float]]) -> Figures:
    """The headline ratios that these results hold."""
    return {
        name: results[section][figure]
        for name, (section, figure) in HEADLINES.items()
        if figure in results.get(section, {})
    }
