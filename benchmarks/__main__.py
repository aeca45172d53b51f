"""`make bench`: the comparisons at the demo's and pythia-70m's shapes. The last line is one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each contender")
    parser.add_argument("--shapes", nargs="+", default=["demo", "pythia-70m"])
    arguments = parser.parse_args()

    import torch

    from benchmarks.jacobians import measure_shape
    from benchmarks.shapes import DEMO, PYTHIA_70M

    known = {shape.name: shape for shape in (DEMO, PYTHIA_70M)}
    tokens = {"demo": 4_000, "pythia-70m": 4_000}
    results: dict[str, object] = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    for name in arguments.shapes:
        figures = measure_shape(known[name], tokens[name], arguments.turns)
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key:40} {value:14,.4g}")
        results[name] = {key: float(f"{value:.5g}") for key, value in figures.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
