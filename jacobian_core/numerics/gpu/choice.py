"""Which products a run uses on its device, decided and proved once, when the model is loaded.

| device | MLP, precision of the model | products |
|---|---|---|
| CPU | any | batched products over gathered rows (`numerics/jacobian.py`) |
| CUDA, Triton installed | plain or gated, without a norm behind it, float32 | the kernels of this package |
| CUDA | with a norm behind it, or float64, or no Triton | batched products |

Nothing here is trusted: the kernels must give what the batched products give in the same precision on a sample of the
run's own sandwich, or the batched products do the work, and a warning says so.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.numerics.all_inputs import Accumulator, units
from jacobian_core.numerics.gpu.gathered import TritonProducts
from jacobian_core.numerics.jacobian import JacobianKernel
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState

log = logging.getLogger(__name__)

AGREEMENT = 2e-5
"""Largest difference from the batched products relative to a token's largest value. Operands are the same in every
precision, so only the order of float32 sums differs: below 2e-6 at 2048 neurons, and growing with their root."""
_PROBE_TOKENS, _PROBE_ROWS = 8, 8


def with_kernels(sandwich: Sandwich) -> Sandwich:
    """The sandwich with the device's own kernels for its products, where they are there and shown to be right."""
    reason = unsuited(sandwich.kernel)
    if reason is not None:
        log.info("Jacobian by batched products: %s", reason)
        return sandwich
    chosen = replace(sandwich, kernel=replace(sandwich.kernel, device=TritonProducts.of(sandwich.kernel)))
    try:
        error = disagreement(chosen, sandwich)
    except Exception as problem:  # a compiler that lacks, a driver that is too old, a shape that does not fit
        log.warning("Jacobian by batched products: the Triton kernels do not run here (%r)", problem)
        return sandwich
    if not error <= AGREEMENT:
        log.warning("Jacobian by batched products: the Triton kernels are off by %.2g of the largest |J|", error)
        return sandwich
    log.info("Jacobian by Triton kernels in %s: within %.1g of the batched products", sandwich.kernel.precision, error)
    return chosen


def unsuited(kernel: JacobianKernel) -> str | None:
    """Why the kernels can't be used, or None."""
    if kernel.E.device.type != "cuda":
        return f"the device is {kernel.E.device.type}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if kernel.mlp.norm is not None:
        return "a norm stands behind the MLP"
    return None if kernel.E.dtype == torch.float32 else f"the model is in {kernel.E.dtype}".replace("torch.", "")


@torch.no_grad()
def disagreement(left: Sandwich, right: Sandwich) -> float:
    """Largest relative difference between two sandwiches' J, K and sums over all inputs, on random MLP inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_TOKENS, left.mlp.d_in, generator=generator)
    state = right.state(x.to(right.kernel.E))
    pairs = [
        (kernel.first(state), kernel.second(state), _sums(kernel, state)) for kernel in (left.kernel, right.kernel)
    ]
    return max(_relative(a, b) for a, b in zip(*pairs, strict=True))


def _sums(kernel: JacobianKernel, state: SandwichState) -> Float[Tensor, "rows n_in"]:
    """Sum of |J| over all inputs plus the largest, for some output latents of which one at least is active."""
    active = state.outputs.index[state.outputs.active]
    start = int(active.min()) if len(active) else 0
    accumulator = Accumulator(kernel, range(start, min(start + _PROBE_ROWS, kernel.E.shape[0])))
    accumulator.add(state)
    partial = accumulator.partial()
    return partial.sum_abs.double() / units(kernel).value + partial.max_abs


def _relative(a: Float[Tensor, "*tokens m n"], b: Float[Tensor, "*tokens m n"]) -> float:
    """The largest difference relative to the largest value of its token; infinite where one is not finite."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double().flatten(-2), b.double().flatten(-2)
    error = (a - b).abs().amax(-1) / b.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(error.nan_to_num(torch.inf).max())
