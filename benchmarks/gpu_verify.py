"""The GPU path against float64 and against the batched products: largest errors, relative to a token's largest |J|.

AssertionError where one is beyond its tolerance, so that nothing is timed that is wrong.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import torch

from benchmarks.gpu_sandwich import Size, inputs, random_sandwich, with_kernels
from jacobian_core.numerics.all_inputs import Accumulator
from jacobian_core.numerics.collect import HostCollector
from jacobian_core.numerics.coo import Entries, Thresholds
from jacobian_core.numerics.gpu.choice import AGREEMENT, disagreement
from jacobian_core.numerics.gpu.compaction import DeviceCollector
from jacobian_core.numerics.partial_sums import Partial
from jacobian_core.numerics.precision import TOLERANCE, Precision
from jacobian_core.numerics.sandwich import Sandwich

_EXACT_TOKENS = 64


@torch.no_grad()
def verified(size: Size, device: str) -> dict[str, float]:
    """Every precision, plain and gated; sums in two groupings; compaction entry by entry."""
    figures: dict[str, float] = {}
    for gated in (False, True):
        for precision in get_args(Precision):
            single = random_sandwich(size, device, precision, gated)
            name = f"{precision}_{'gated' if gated else 'plain'}"
            figures[f"{name}_to_batched"] = _at_most(AGREEMENT, disagreement(with_kernels(single), single))
            exact = random_sandwich(size, device, "float32", gated, torch.float64)
            error = _to_float64(with_kernels(single), exact, size)
            figures[f"{name}_to_float64"] = _at_most(TOLERANCE[precision], error)
            assert precision == "float32" or error > TOLERANCE["float32"], f"{name}: operands were not rounded"
    single = with_kernels(random_sandwich(size, device))
    figures["groupings_that_differ"] = _at_most(0, _groupings_that_differ(single, size, device))
    figures["compacted_columns_that_differ"] = _at_most(0, _columns_that_differ(single, size, device))
    return figures


def _at_most(limit: float, found: float) -> float:
    assert found <= limit, f"{found} is more than {limit}"
    return found


def _to_float64(single: Sandwich, exact: Sandwich, size: Size) -> float:
    device = str(exact.kernel.E.device)
    state = exact.state(inputs(size, device, min(size.tokens, _EXACT_TOKENS)).double())
    expected, found = exact.kernel.first(state), single.kernel.first(replace(state, z=state.z.float()))
    return float(((found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))).max())


def _partial(sandwich: Sandwich, chunks: list[torch.Tensor]) -> Partial:
    accumulator = Accumulator(sandwich.kernel, range(min(64, sandwich.outputs.latents)))
    for x in chunks:
        accumulator.add(sandwich.state(x))
    return accumulator.partial()


def _groupings_that_differ(sandwich: Sandwich, size: Size, device: str) -> int:
    """0 if two halves, added as integers, are the whole: any grouping gives the same bits."""
    x = inputs(size, device)
    # Chunks of one size throughout: a product's own rounding may depend on the rows of its matrices.
    chunks = list(x.split(len(x) // 2))
    whole = _partial(sandwich, chunks)
    total = torch.zeros_like(whole.sum_abs)
    for half in chunks:
        part = _partial(sandwich, [half])
        total[torch.searchsorted(whole.out_latent, part.out_latent)] += part.sum_abs
    return int((total != whole.sum_abs).sum())


def _columns_that_differ(sandwich: Sandwich, size: Size, device: str) -> int:
    state = sandwich.state(inputs(size, device, min(size.tokens, 256)))
    J = sandwich.kernel.first(state)
    limit = Thresholds(float(J.abs().median()), 100)
    found = DeviceCollector(device).collect(J, J, state, limit).entries
    expected = HostCollector().collect(J, J, state, limit).entries
    names = [f.name for f in fields(Entries)]
    return sum(not _same(getattr(found, name), getattr(expected, name).cpu()) for name in names)


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found.to(expected.dtype), expected, rtol=1e-13, atol=0)
