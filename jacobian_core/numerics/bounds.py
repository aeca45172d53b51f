"""Upper bounds of an encoder's pre-activations: one product in low precision, that can't be below any of them.

With `x~`, `w~` the rounded vectors, by Cauchy and Schwarz

    x.w + b  <=  x~.w~ + |x - x~| |w~| + |x| |w - w~| + b  (+ roundings of the sums)

and what stands behind the first term are columns of the same product: the weights carry the lengths of latents, the
token its own, each rounded up. `integer_bounds.py` has the same for int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.model.affine import Affine

ROOM = 1 + 2.0**-6
"""Factor on what is rounded up: more than bfloat16's rounding down (2^-8) can take away."""


def unit(dtype: torch.dtype) -> float:
    """The relative error of rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


@dataclass(frozen=True)
class Bounded:
    """`values * scale` are the bounds of each token, but for a rounding of `values` to their precision."""

    values: Float[Tensor, "tokens n"]
    scale: Float[Tensor, "tokens"]


class Bounds(Protocol):
    """The bounds of one encoder."""

    def of(self, x: Float[Tensor, "tokens d"]) -> Bounded:
        """The bounds of every latent of some tokens."""
        ...


class FloatBounds:
    """Bounds by a product in a floating-point precision; the columns are `[b, its remainder, |w~|, |w - w~|]`."""

    def __init__(self, weights: Float[Tensor, "n d"], bias: Float[Tensor, "n"], dtype: torch.dtype) -> None:
        self._dtype = dtype
        summed = torch.float64 if dtype == torch.float64 else torch.float32
        self._sum_error = 2 * (weights.shape[1] + 8) * (unit(summed) + unit(weights.dtype))
        self.product = Affine.of(self._weights(weights, bias.double()), None)

    def of(self, x: Float[Tensor, "tokens d"]) -> Bounded:
        """See `Bounds`; the scale is 1."""
        return Bounded(self.product(self.inputs(x)), torch.ones(len(x), dtype=torch.float64, device=x.device))

    def _weights(self, weights: Float[Tensor, "n d"], bias: Float[Tensor, "n"]) -> Float[Tensor, "n d_and_4"]:
        low = weights.to(self._dtype)
        kept = low.double()
        missed = (weights.double() - kept).norm(dim=1)
        bias = bias + 4 * self._sum_error * bias.abs()
        coarse = bias.to(self._dtype)
        rest = bias - coarse.double()
        rest = torch.where(rest > 0, rest * ROOM, rest / ROOM)
        columns = [coarse.double(), rest, kept.norm(dim=1) * ROOM, missed * ROOM]
        return torch.cat([low, torch.stack(columns, 1).to(self._dtype)], 1)

    def inputs(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d_and_4"]:
        """What is multiplied: the rounded tokens with `[1, 1, |x - x~|, |x|]`."""
        low = x.to(self._dtype)
        length = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        missed = torch.zeros_like(length)
        if low.dtype != x.dtype:
            missed = torch.linalg.vector_norm(x - low.to(x.dtype), dim=1, dtype=torch.float64)
        ones = torch.ones_like(length)
        error = (missed + self._sum_error * (length + missed)) * ROOM
        columns = torch.stack([ones, ones, error, length * ROOM], 1).to(self._dtype)
        return torch.cat([low, columns], 1)
