"""`make bench`, `make bench-full`: the benchmarks of `suite.py`. The last line is one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Measure and print: each benchmark's figures as they come, then all of them with the headline ratios on top."""
    from benchmarks.suite import SUITE, Options, headlines

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the long benchmarks too")
    parser.add_argument("--only", nargs="+", choices=[b.name for b in SUITE], help="these benchmarks alone")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each contender")
    parser.add_argument("--shapes", nargs="+", default=["demo", "pythia-70m"], choices=["demo", "pythia-70m"])
    arguments = parser.parse_args()
    options = Options(arguments.turns, tuple(arguments.shapes), arguments.full)
    wanted = [b for b in SUITE if (b.name in arguments.only if arguments.only else options.full or b.quick)]
    results: dict[str, dict[str, float]] = {}
    for benchmark in wanted:
        for section, figures in benchmark.measure(options).items():
            print(f"\n{section}")
            for key, value in figures.items():
                print(f"  {key:40} {value:14,.4g}", flush=True)
            results[section] = figures
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps(machine | _rounded(headlines(results)) | {name: _rounded(f) for name, f in results.items()}))


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") for key, value in figures.items()}


if __name__ == "__main__":
    main()
