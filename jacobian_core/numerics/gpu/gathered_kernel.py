"""The Triton kernel behind J and K: one program makes a tile of one token's matrix.

Rows of E and D are read where they lie, multiplied by the token's slopes in registers and summed in float32; gathered
operands never reach memory. Rows past `k_out` and `k_in` read latent 0 and are not stored.

Tile sizes are a fixed function of the shapes, not tuned where it runs: the size along the neurons decides the order of
the sum, and the same request must give the same bits on every machine of a kind.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter cuts off what bf16 can't hold and can't multiply it; float32 then carries the same rounded values."""


@triton.jit
def rounded(x, DROPPED: tl.constexpr):
    """A float32 without its last bits of mantissa: to nearest even, finite values only."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1))) & -(1 << DROPPED)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_operand(x, PRECISION: tl.constexpr):
    """`precision.operand` in registers."""
    if PRECISION == "bf16":
        y = rounded(x.to(tl.float32), 16) if _INTERPRETED else x.to(tl.bfloat16)
    elif PRECISION == "tf32":
        y = rounded(x, 13)
    else:
        y = x
    return y


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr):
    """`total + left @ right`, summed in float32."""
    if PRECISION == "float32":
        return tl.dot(left, right, total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision="tf32")


@triton.jit
def gathered_product(
    E, D, per_neuron, out_index, in_index, result,
    k_out, k_in, d_mlp, tiles_in,
    CHANNELS: tl.constexpr, SECOND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_MLP: tl.constexpr,
):  # fmt: skip
    """A tile of J (`per_neuron` is the slopes) or, if SECOND, of K (the curvatures), of one token."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    i = (tile // tiles_in) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    j = (tile % tiles_in) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    d_state = d_mlp * CHANNELS
    row = tl.load(out_index + token * k_out + i, mask=i < k_out, other=0)
    column = tl.load(in_index + token * k_in + j, mask=j < k_in, other=0)
    E_row = E + row[:, None] * d_mlp
    D_row = D + column[:, None] * d_state
    neuron = per_neuron + token * d_state
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in range(0, d_mlp, BLOCK_MLP):
        h = start + tl.arange(0, BLOCK_MLP)
        inside = h < d_mlp
        e = tl.load(E_row + h[None, :], mask=inside[None, :], other=0.0)
        d = tl.load(D_row + h[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
        w = tl.load(neuron + h, mask=inside, other=0.0)
        moved = d * w[None, :]
        if CHANNELS == 2:
            d_u = tl.load(D_row + d_mlp + h[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
            w_u = tl.load(neuron + d_mlp + h, mask=inside, other=0.0)
            moved += d_u * w_u[None, :]
        if SECOND:
            moved *= d
        right = tl.trans(as_operand(moved, PRECISION))
        total = product(as_operand(e, PRECISION), right, total, PRECISION)
    at = (token * k_out + i[:, None]) * k_in + j[None, :]
    tl.store(result + at, total, mask=(i[:, None] < k_out) & (j[None, :] < k_in))
