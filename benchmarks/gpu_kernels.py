"""The kernels alone, at pythia-70m's shape: tokens a second, and the roofline from rates measured beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch

from benchmarks.gpu_sandwich import PYTHIA, Size, inputs, random_sandwich, seconds, with_kernels
from jacobian_core.numerics.all_inputs import Accumulator
from jacobian_core.numerics.coo import Thresholds
from jacobian_core.numerics.gpu.compaction import DeviceCollector
from jacobian_core.numerics.precision import Precision, exact_products
from jacobian_core.numerics.sandwich import Sandwich

_SUM_CHUNKS = 4
_RATE_N = 8192


@torch.no_grad()
def measured(turns: int) -> dict[str, float]:
    """Rates of the machine, then every kernel in every precision."""
    exact_products()
    figures = _rates(turns)
    for precision in get_args(Precision):
        figures |= _products(PYTHIA, precision, turns)
        bound = figures[f"{precision}_tflops"] * 1e12 / _sum_flops(PYTHIA)
        figures[f"{precision}_all_inputs_bound_tokens_per_second"] = bound
    reached = {p: figures[f"{p}_all_inputs_tokens_per_second"] for p in get_args(Precision)}
    # The goal is held against TF32: exact float32 has no tensor cores, and its bound lies below the goal.
    figures["all_inputs_tokens_per_second"] = reached["tf32"]
    return figures


def _sum_flops(size: Size) -> float:
    """Operations of a token's active rows of J against all inputs."""
    return 2.0 * size.k * size.latents * size.d_mlp


def _rates(turns: int) -> dict[str, float]:
    """What this GPU reaches in large products of each precision, and in copies."""
    left, right = (torch.randn(_RATE_N, _RATE_N, device="cuda") for _ in range(2))
    flops = 2.0 * _RATE_N**3
    found = {"float32_tflops": flops / seconds(lambda: left @ right, turns) / 1e12}
    torch.set_float32_matmul_precision("high")
    found["tf32_tflops"] = flops / seconds(lambda: left @ right, turns) / 1e12
    exact_products()
    a, b = left.bfloat16(), right.bfloat16()
    found["bf16_tflops"] = flops / seconds(lambda: a @ b, turns) / 1e12
    large = torch.randn(1 << 28, device="cuda")
    found["memory_terabytes_per_second"] = 2 * large.nbytes / seconds(large.clone, turns) / 1e12
    host = torch.empty(1 << 26, pin_memory=True)
    found["to_host_gigabytes_per_second"] = host.nbytes / seconds(lambda: host.copy_(large[: 1 << 26]), turns) / 1e9
    return found


def _products(size: Size, precision: Precision, turns: int) -> dict[str, float]:
    """J, K and the sums by the kernels, and J by the batched products, in tokens a second."""
    batched = random_sandwich(size, "cuda", precision)
    sandwich = with_kernels(batched)
    state = sandwich.state(inputs(size, "cuda"))
    J = sandwich.kernel.first(state)
    work: dict[str, Callable[[], object]] = {
        "J": partial(sandwich.kernel.first, state),
        "K": partial(sandwich.kernel.second, state),
        "J_batched": partial(batched.kernel.first, state),
    }
    if precision == "float32":
        collector = DeviceCollector("cuda")
        work["codes"] = partial(sandwich.state, inputs(size, "cuda"))
        work["collect"] = lambda: collector.collect(J, None, state, Thresholds())
    found = {f"{precision}_{name}_tokens_per_second": size.tokens / seconds(w, turns) for name, w in work.items()}
    gathered = size.k * 2 * size.d_mlp * (2 if precision == "bf16" else 4)
    rate = found[f"{precision}_J_tokens_per_second"]
    found[f"{precision}_J_gathered_terabytes_per_second"] = rate * gathered / 1e12
    found[f"{precision}_J_tflops"] = rate * 2.0 * size.k**2 * size.d_mlp / 1e12
    found[f"{precision}_all_inputs_tokens_per_second"] = _sums(sandwich, size)
    found[f"{precision}_all_inputs_tflops"] = (
        found[f"{precision}_all_inputs_tokens_per_second"] * _sum_flops(size) / 1e12
    )
    return found


def _sums(sandwich: Sandwich, size: Size) -> float:
    """Tokens a second of the sums over all inputs, codes left out."""
    states = [sandwich.state(inputs(size, "cuda")) for _ in range(_SUM_CHUNKS)]
    accumulator = Accumulator(sandwich.kernel, range(size.latents))

    def once() -> None:
        for state in states:
            accumulator.add(state)
        assert accumulator._sums is not None
        accumulator._sums.flush()

    return _SUM_CHUNKS * size.tokens / seconds(once, turns=2)
