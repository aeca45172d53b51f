"""How exactly products are formed: the one place where TF32 and bf16 are allowed or refused.

| `jacobian.precision` | operands of the products that give J and its second derivative | measured error (1) |
|---|---|---|
| `float32` | as they are | 1e-6 |
| `tf32` | rounded to 10 bits of mantissa, as the tensor cores read them | 1e-3 |
| `bf16` | D and E kept in bf16, operands rounded to 7 bits of mantissa | 1.5e-2 |

(1) An upper limit of what was seen over 512 tokens of random sandwiches, plain and gated, and of the demo's pair,
relative to the token's largest value, against float64; `tests/numerics/test_precision.py` measures it again. Sums are
float32 in all of them. Everything before J (the language model, the encoders, the MLP) is never rounded so: a
pre-activation that is off by 1e-3 makes another latent win the selection, and then there is no tolerance, but another
answer.

Operands are rounded to nearest before they are multiplied, here and in the GPU kernels alike. A tensor core that is
given float32 instead cuts the digits off, which makes every |J| smaller by about 0.05 %; and so a CPU gives the same
data as a GPU, within the roundings of the sum.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]

TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "tf32": 4e-3, "bf16": 6e-2}
"""How far an entry may be from the exact one, relative to its token's largest: at least four times what was seen."""

_TF32_DROPPED_BITS = 13


def exact_products() -> None:
    """Forbid torch to round the operands or partial sums of float32 and bf16 products by itself, in this process."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def as_tf32(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """`x` rounded to nearest even in TF32: float32's range, 10 bits of mantissa. Finite values only."""
    bits = x.float().view(torch.int32)
    half = (1 << (_TF32_DROPPED_BITS - 1)) - 1
    even = (bits >> _TF32_DROPPED_BITS) & 1
    rounded = (bits + (half + even)) & -(1 << _TF32_DROPPED_BITS)
    return rounded.view(torch.float32).to(x.dtype)


def as_bf16(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """`x` rounded to nearest even in bf16, in its own dtype."""
    return x.to(torch.bfloat16).to(x.dtype)


def operand(x: Float[Tensor, "*any"], precision: Precision) -> Float[Tensor, "*any"]:
    """An operand of a product as the precision reads it."""
    if precision == "float32":
        return x
    return as_tf32(x) if precision == "tf32" else as_bf16(x)


def kept(weights: Float[Tensor, "*any"], precision: Precision) -> Float[Tensor, "*any"]:
    """Rows of D or E as the precision keeps them."""
    return as_bf16(weights) if precision == "bf16" else weights
