"""The Triton kernel behind the sums over all inputs: one program owns one output latent and a tile of input latents.

Its tokens lie side by side in `pair_token`, so the program forms J of a few of them at a time, rounds it to whole steps
and adds them up in registers: the rows of J never reach memory, no two programs write to one place, and no atomic
operation is needed. Programs that run at the same time share output latents and tiles of D, which then stay in the
cache: without that, D would be read from memory once for every output latent.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import triton
import triton.language as tl

from jacobian_core.numerics.gpu.gathered_kernel import as_operand, product


@triton.jit
def whole(x):
    """Round to nearest even, for |x| < 2^51: from 2^52 on float64 has no fractions."""
    return (x + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def latent_sums(
    E, D, slopes, pair_token, segment_row, segment_start, segment_tokens, unit,
    total, total_abs, total_sq, largest,
    segments, n_in, d_mlp, tiles_in,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_MLP: tl.constexpr,
):  # fmt: skip
    """Add J of a segment's tokens (all of one output latent) against a tile of input latents to the totals."""
    first = (tl.program_id(0) // (GROUP * tiles_in)) * GROUP
    within = tl.program_id(0) % (GROUP * tiles_in)
    together = min(segments - first, GROUP)
    segment = first + within % together
    j = (within // together) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row = tl.load(segment_row + segment)
    begin, tokens = tl.load(segment_start + segment), tl.load(segment_tokens + segment)
    value_unit, square_unit = tl.load(unit), tl.load(unit + 1)
    d_state = d_mlp * CHANNELS
    D_row = D + j.to(tl.int64)[:, None] * d_state
    sum_, sum_abs, sum_sq = (
        tl.zeros((BLOCK_IN,), tl.int64),
        tl.zeros((BLOCK_IN,), tl.int64),
        tl.zeros((BLOCK_IN,), tl.int64),
    )
    most = tl.zeros((BLOCK_IN,), tl.float32)
    for t in range(0, tokens, BLOCK_TOKENS):
        mine = t + tl.arange(0, BLOCK_TOKENS)
        token = tl.load(pair_token + begin + mine, mask=mine < tokens, other=0)
        J = tl.zeros((BLOCK_TOKENS, BLOCK_IN), tl.float32)
        for channel in tl.static_range(CHANNELS):
            for start in range(0, d_mlp, BLOCK_MLP):
                h = start + tl.arange(0, BLOCK_MLP)
                inside = h < d_mlp
                at = channel * d_mlp + h
                e = tl.load(E + row * d_mlp + h, mask=inside, other=0.0).to(tl.float32)
                w = tl.load(
                    slopes + token[:, None] * d_state + at[None, :],
                    mask=(mine[:, None] < tokens) & inside[None, :], other=0.0,
                )  # fmt: skip
                d = tl.load(D_row + at[None, :], mask=(j[:, None] < n_in) & inside[None, :], other=0.0)
                left = as_operand(w * e[None, :], PRECISION)
                J = product(left, tl.trans(as_operand(d, PRECISION)), J, PRECISION)
        size = tl.where(J == J, tl.abs(J), float("inf"))  # not a number: refused later, like all that is too large
        wide = tl.where(size < float("inf"), J, 0.0).to(tl.float64)
        # Whole numbers below 2^42 each: float64 adds BLOCK_TOKENS of them exactly, in any order.
        steps = whole(wide * value_unit)
        sum_ += tl.sum(steps, 0).to(tl.int64)
        sum_abs += tl.sum(tl.abs(steps), 0).to(tl.int64)
        sum_sq += tl.sum(whole(wide * wide * square_unit), 0).to(tl.int64)
        most = tl.maximum(most, tl.max(size, 0))
    place = row * n_in + j
    kept = j < n_in
    tl.store(total + place, tl.load(total + place, mask=kept) + sum_, mask=kept)
    tl.store(total_abs + place, tl.load(total_abs + place, mask=kept) + sum_abs, mask=kept)
    tl.store(total_sq + place, tl.load(total_sq + place, mask=kept) + sum_sq, mask=kept)
    tl.store(largest + place, tl.maximum(tl.load(largest + place, mask=kept), most), mask=kept)
