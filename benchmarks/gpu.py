"""`python -m benchmarks.gpu`: the GPU path verified and measured at pythia-70m's shape, the roofline beside it.

Needs torch, Triton and this repository; the language model also needs transformers, and the published part the whole
project. What lacks is named and left out. A few minutes on one GPU; without one, kernels are verified in Triton's
interpreter at a toy's size and nothing is timed. The last line is one JSON object.

    python -m benchmarks.gpu                      everything
    python -m benchmarks.gpu --only verify        equality alone
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib.util import find_spec

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
GOALS = {
    "entries_tokens_per_second": 300_000,
    "published_tokens_per_second": 100_000,
    "all_inputs_tokens_per_second": 60_000,
}
"""Of one H100, at pythia-70m's shape."""

Figures = dict[str, float]


def main() -> None:
    """Verify, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["verify", "kernels", "entries", "published"], help="these alone")
    parser.add_argument("--turns", type=int, default=5, help="timed turns; the median counts")
    arguments = parser.parse_args()
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    results, left_out = _run(arguments.only, arguments.turns, on_gpu)
    for name, figures in results.items():
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key:44} {value:14,.4g}")
    for reason in left_out:
        print(f"not done: {reason}")
    print(json.dumps(_machine(on_gpu) | {"goals": _against_goals(results), "not_done": left_out} | _rounded(results)))


def _run(only: list[str] | None, turns: int, on_gpu: bool) -> tuple[dict[str, Figures], list[str]]:
    results: dict[str, Figures] = {}
    left_out = [] if on_gpu else ["no CUDA device: kernels were interpreted at a toy's size, nothing was timed"]
    for name, needed, section in _sections(turns, on_gpu):
        lacking = [module for module in needed if find_spec(module) is None]
        if only and name not in only:
            continue
        if lacking:
            left_out.append(f"{name}: {', '.join(lacking)} not installed")
        elif name == "verify" or on_gpu:
            results[name] = section()
    return results, left_out


def _sections(turns: int, on_gpu: bool) -> list[tuple[str, list[str], Callable[[], Figures]]]:
    """Name, modules it needs, and what makes its figures."""
    device = "cuda" if on_gpu else "cpu"

    def verify() -> Figures:
        from benchmarks.gpu_sandwich import PYTHIA, TOY
        from benchmarks.gpu_verify import verified

        return verified(PYTHIA if on_gpu else TOY, device)

    def kernels() -> Figures:
        from benchmarks.gpu_kernels import measured

        return measured(turns)

    def entries() -> Figures:
        from benchmarks.gpu_entries import entries_on_the_device

        return entries_on_the_device(turns)

    def published() -> Figures:
        from benchmarks.gpu_published import published_blocks

        return published_blocks(turns)

    whole = ["transformer_lens", "sae_lens", "duckdb", "pyarrow", "datasets"]
    return [
        ("verify", ["triton"], verify),
        ("kernels", ["triton"], kernels),
        ("entries", ["triton", "transformers"], entries),
        ("published", ["triton", *whole], published),
    ]


def _against_goals(results: dict[str, Figures]) -> dict[str, float]:
    """Each goal's figure over the goal, where it was measured."""
    found = {key: value for figures in results.values() for key, value in figures.items()}
    return {name: round(found[name] / goal, 3) for name, goal in GOALS.items() if name in found}


def _rounded(results: dict[str, Figures]) -> dict[str, Figures]:
    return {name: {key: float(f"{value:.5g}") for key, value in figures.items()} for name, figures in results.items()}


def _machine(on_gpu: bool) -> dict[str, object]:
    import torch

    name = torch.cuda.get_device_name() if on_gpu else platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
