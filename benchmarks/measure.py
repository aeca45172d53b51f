"""Timing: contenders take turns, so a slow minute of a shared machine hits all of them; the median turn counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median turn."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Slowest over fastest turn."""
        return max(self.turns) / min(self.turns)


def interleaved(
    contenders: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Run every contender once to warm up, then `turns` times each, in turn."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, run in contenders.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def gemm_rate(rows: int = 2048, inner: int = 512, columns: int = 2048) -> Callable[[], object]:
    """A float32 GEMM of an MLP's shape, to measure this machine's rate in the same run; see `gemm_flops`."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    return lambda: [left @ right for _ in range(8)]


def packed_gemm_rate(rows: int = 2048, inner: int = 512, columns: int = 2048) -> Callable[[], object]:
    """The same product by the library that our own affine maps use, on all cores; `gemm_flops` holds for it too."""
    from jacobian_core.model.affine import Affine

    left, right = torch.randn(rows, inner), Affine.of(torch.randn(columns, inner), None)
    return lambda: [right(left) for _ in range(8)]


def gemm_flops(rows: int = 2048, inner: int = 512, columns: int = 2048) -> float:
    """Floating-point operations of one call of `gemm_rate`."""
    return 8 * 2.0 * rows * inner * columns
