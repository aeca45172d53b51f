"""Bounds of pre-activations by a product of int8: in half of bfloat16's time, and about six times as wide.

A token is `s q` and a latent `r p`, with whole numbers `q`, `p` of at most 127, but for what rounding leaves. Divided
by the token's `s`, and with the bias as `_BIAS_INPUTS` more inputs of a constant size,

    (x.w + b) / s  <=  r (q.p + |x/s - q| |p| + |x/s| |w/r - p|)  (+ roundings of the score's sum)

and here the lengths are whole numbers too, rounded up: the weights carry `|p|` and `|w/r - p|` in units of a 127th of
their largest, the token its own in the inverse of these units, in as many columns of at most 127 as that can take.
The sums are exact, and only their product with `r` is rounded, to bfloat16; `s` stays outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from jacobian_core.numerics.bounds import Bounded, unit

_MOST = 127
_BIAS_INPUTS = 16
"""The bias can be this many times a latent's largest weight before its steps become coarser."""
_USUAL = 0.999
"""Share of the latents whose biases set the size of these inputs; the steps of the others are coarser."""
_SMALLEST = 1e-30
_NEARLY = 1 + 2.0**-20
"""Factor on lengths that covers their own roundings."""


class IntegerBounds:
    """The bounds of one encoder."""

    def __init__(self, weights: Float[Tensor, "n d"], bias: Float[Tensor, "n"]) -> None:
        self._sum_error = 2 * (weights.shape[1] + 8) * unit(weights.dtype)
        largest = weights.abs().amax(1).double().clamp(min=_SMALLEST)
        usual = (bias.double().abs() / largest).sort().values[math.ceil(_USUAL * (len(bias) - 1))]
        self._constant = float(usual) / _BIAS_INPUTS
        self._biased = _BIAS_INPUTS if bool(bias.any()) else 0
        if self._biased and self._constant == 0:
            self._constant = float(bias.abs().max())
        share = bias.double()[:, None] / max(self._biased * self._constant, _SMALLEST)
        widened = torch.cat([weights.double(), share.expand(-1, self._biased)], 1)
        scale = (widened.abs().amax(1) / _MOST).clamp(min=_SMALLEST).float()
        self.product = IntegerProduct.of(self._weights(widened / scale.double()[:, None]), scale)

    def of(self, x: Float[Tensor, "tokens d"]) -> Bounded:
        """See `Bounds`; the scale is that of a token's whole numbers."""
        inputs, scale = self.inputs(x)
        return Bounded(self.product(inputs), scale.double())

    def _weights(self, exact: Float[Tensor, "n widened"]) -> Int8[Tensor, "n columns"]:
        """The whole numbers of latents that are given in units of their scale, and their lengths."""
        whole = exact.round().clamp(-_MOST, _MOST)
        length = whole.norm(dim=1) * _NEARLY
        missed = (exact - whole).norm(dim=1) * (_NEARLY + self._sum_error)
        self._length_unit = max(float(length.max()) / _MOST, 2.0**-10)
        self._missed_unit = max(float(missed.max()) / _MOST, 2.0**-10)
        # Each of a token's numbers misses half a unit at most and is 127 units at most.
        token = _NEARLY**2 * exact.shape[1] ** 0.5
        self._missed_columns = _columns((0.5 + _MOST * self._sum_error) * token * self._length_unit)
        self._length_columns = _columns(_MOST * token * self._missed_unit)
        columns = [
            torch.ceil(length / self._length_unit)[:, None].expand(-1, self._missed_columns),
            torch.ceil(missed / self._missed_unit)[:, None].expand(-1, self._length_columns),
        ]
        return torch.cat([whole, *columns], 1).clamp(-_MOST, _MOST).to(torch.int8)

    def inputs(self, x: Float[Tensor, "tokens d"]) -> tuple[UInt8[Tensor, "tokens columns"], Float[Tensor, "tokens"]]:
        """What is multiplied, the tokens' whole numbers and lengths with 128 added, and each token's scale."""
        scale = (x.abs().amax(1).clamp(min=max(self._constant, _SMALLEST)) / _MOST).to(x.dtype)
        d = x.shape[1]
        exact = x.new_empty(len(x), d + self._biased)
        torch.div(x, scale[:, None], out=exact[:, :d])
        exact[:, d:] = (self._constant / scale)[:, None]
        whole = exact.round()
        length = torch.linalg.vector_norm(exact, dim=1, dtype=torch.float64)
        missed = torch.linalg.vector_norm(exact.sub_(whole), dim=1, dtype=torch.float64)
        missed = (missed + self._sum_error * length) * (_NEARLY * self._length_unit)
        columns = [
            _spread(torch.ceil(missed), self._missed_columns),
            _spread(torch.ceil(length * (_NEARLY * self._missed_unit)), self._length_columns),
        ]
        return torch.cat([whole, *(part.to(x.dtype) for part in columns)], 1).add_(128).to(torch.uint8), scale


def _columns(largest: float) -> int:
    """Columns of at most 127 that hold a whole number that is as large as this, rounded up."""
    return math.ceil((largest + 1) / _MOST)


def _spread(wholes: Float[Tensor, "tokens"], columns: int) -> Float[Tensor, "tokens columns"]:
    """Whole numbers as sums of some of at most 127."""
    before = _MOST * torch.arange(columns, device=wholes.device)
    return (wholes[:, None] - before).clamp(0, _MOST)


@dataclass(frozen=True)
class IntegerProduct:
    """`(q - 128) p^T scale` in bfloat16, rounded once; `packed` is `p` as oneDNN lays it out, None where torch
    multiplies floats that hold whole numbers."""

    p: Int8[Tensor, "n columns"]
    scale: Float[Tensor, "n"]
    packed: Any = None

    @classmethod
    def of(cls, p: Int8[Tensor, "n columns"], scale: Float[Tensor, "n"]) -> IntegerProduct:
        """The product, by oneDNN if that is there and gives what torch gives; without VNNI its sums can saturate."""
        plain = cls(p, scale)
        if p.device.type != "cpu" or not _has_instructions():
            return plain
        found = cls(p, scale, torch.ops.onednn.qlinear_prepack(p.contiguous(), None))
        g = torch.Generator().manual_seed(0)
        probe = torch.randint(0, 256, (3, p.shape[1]), dtype=torch.uint8, generator=g)
        probe[0] = 255
        return found if torch.equal(found(probe), plain(probe)) else plain

    def __call__(self, q: UInt8[Tensor, "tokens columns"]) -> Float[Tensor, "tokens n"]:
        """The product of every row."""
        if self.packed is None or not q.numel():
            # Sums of whole numbers below 2^53, exact in any order.
            whole = (q.double() - 128) @ self.p.double().T
            return (whole.float() * self.scale).bfloat16()
        zero = torch.zeros(len(self.scale), dtype=torch.int32)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 128, self.packed, self.scale, zero, None, 1.0, 0, torch.bfloat16, "none", [], "none"
        )
        return result


def _has_instructions() -> bool:
    """Whether this CPU adds up products of bytes in 32 bits, and torch has oneDNN's product of them."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):  # type: ignore[no-untyped-call]
        return False
    return bool(torch.cpu._is_vnni_supported())
