"""The shape of an output activation as a function of one input activation: linear, JumpReLU-like, or neither.

The published rule calls a function linear if the best line leaves no residual of 0.01 or more, and JumpReLU-like if it
is zero up to a point and such a line beyond. A fixed residual makes every small function linear, so the same rule is
also applied with the residual relative to the function's range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jacobian_core.numerics.interventions import change_latents
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState
from jacobian_core.numerics.strata import PairSample

RESIDUAL_LIMIT = 0.01
"""The published limit of a residual, in units of the output's activation (or of the function's range)."""
SHAPES = ("linear", "jumprelu", "other")
_LEAST_MAX, _BEYOND = 5.0, 1.0


@dataclass(frozen=True)
class Shapes:
    """Traced functions: t_i over [0, in_max] of s_j, and how well lines describe them; `shape` indexes `SHAPES`."""

    in_before: Float[Tensor, "pairs"]
    in_max: Float[Tensor, "pairs"]
    out_range: Float[Tensor, "pairs"]
    linear_residual: Float[Tensor, "pairs"]
    jumprelu_residual: Float[Tensor, "pairs"]
    shape: Int64[Tensor, "pairs"]
    shape_scale_free: Int64[Tensor, "pairs"]


def line_residual(
    s: Float[Tensor, "pairs points"], t: Float[Tensor, "pairs points"], where: Bool[Tensor, "pairs points"]
) -> Float[Tensor, "pairs"]:
    """Largest |t - line| over the points in `where`, for the line that fits them best in least squares; 0 for none."""
    weight = where.to(t.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    s_mean, t_mean = (s * weight).sum(1, keepdim=True) / count, (t * weight).sum(1, keepdim=True) / count
    ds, dt = (s - s_mean) * weight, (t - t_mean) * weight
    variance = ds.square().sum(1, keepdim=True)
    slope = (ds * dt).sum(1, keepdim=True) / torch.where(variance > 0, variance, 1)
    return ((dt - slope * ds).abs() * weight).amax(1)


def classify(
    s: Float[Tensor, "pairs points"], t: Float[Tensor, "pairs points"]
) -> tuple[Float[Tensor, "pairs"], Float[Tensor, "pairs"], Int64[Tensor, "pairs"], Int64[Tensor, "pairs"]]:
    """Linear residual, JumpReLU residual, shape and scale-free shape of each function given at its points.

    JumpReLU-like is zero on one side and a line on the other: the positive points must be one run that reaches an end
    of the range (a decreasing function jumps to zero at its right).
    """
    out_range = t.amax(1) - t.amin(1)
    everywhere = torch.ones_like(t, dtype=torch.bool)
    linear = line_residual(s, t, everywhere)
    positive = t > 0
    switches = (positive[:, 1:] != positive[:, :-1]).sum(1)
    jump = torch.where((switches == 1) & positive.any(1), line_residual(s, t, positive), out_range)
    scale = torch.where(out_range > 0, out_range, 1)
    return linear, jump, _first_below(linear, jump), _first_below(linear / scale, jump / scale)


def _first_below(linear: Float[Tensor, "pairs"], jump: Float[Tensor, "pairs"]) -> Int64[Tensor, "pairs"]:
    other = torch.where(jump < RESIDUAL_LIMIT, 1, 2)
    return torch.where(linear < RESIDUAL_LIMIT, 0, other)


def trace(sandwich: Sandwich, state: SandwichState, pairs: PairSample, points: int) -> Shapes:
    """Trace t_i over `points` equally spaced s_j in [0, max(5, s_j + 1)], the selection redone at each."""
    before = state.inputs.value[pairs.token, pairs.in_slot]
    in_max = (before + _BEYOND).clamp(min=_LEAST_MAX)
    grid = torch.linspace(0, 1, points, dtype=before.dtype, device=before.device)
    s = in_max[:, None] * grid
    repeated = PairSample(
        pairs.token.repeat_interleave(points),
        pairs.out_slot.repeat_interleave(points),
        pairs.in_slot.repeat_interleave(points),
        pairs.weight.repeat_interleave(points),
    )
    t = change_latents(sandwich, state, repeated, s.flatten()).out_after.reshape(s.shape)
    linear, jump, shape, scale_free = classify(s.double(), t.double())
    return Shapes(before, in_max, (t.amax(1) - t.amin(1)), linear, jump, shape, scale_free)
