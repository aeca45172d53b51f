"""Which pairs of a token are looked at: a sample stratified by |J| whose weights un-bias it, or all.

Near-zero entries are most of all, and the few large ones matter most; so from each stratum of |J| the same number of a
token's pairs is drawn. The draw is a hash of (seed, token, pair) and of nothing else, so a block computed again,
elsewhere or in other chunks has the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jacobian_core.numerics.codes import Codes

_MASK = (1 << 63) - 1
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of splitmix64 (Steele, Lea, Flood 2014) as signed 64-bit integers."""


@dataclass(frozen=True)
class PairSample:
    """Chosen pairs of a chunk, in (token, out slot, in slot) order.

    `token` counts within the chunk; slots are positions in the codes' k selected latents; `weight` is how many pairs of
    the run a row stands for.
    """

    token: Int64[Tensor, "pairs"]
    out_slot: Int64[Tensor, "pairs"]
    in_slot: Int64[Tensor, "pairs"]
    weight: Float[Tensor, "pairs"]


def _shift_right(x: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """Logical right shift of int64 seen as 64 bits; torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """splitmix64's finaliser: every input bit moves every output bit."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def hash_uniform(seed: int, *keys: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A number in [0, 1) from the keys (broadcast against each other) and a seed, float64."""
    state = torch.full((), seed, dtype=torch.int64, device=keys[0].device)
    for key in keys:
        state = _mix(state ^ key)
    return (_shift_right(_mix(state), 11)).double() * 2.0**-53


def chosen_tokens(token_ids: Int64[Tensor, "tokens"], share: float, seed: int) -> Bool[Tensor, "tokens"]:
    """The tokens of a sample that takes each token with probability `share`."""
    return hash_uniform(seed ^ 0x7F4A7C15, token_ids) < share


def all_pairs(out: Codes, in_: Codes, tokens: Bool[Tensor, "tokens"], share: float) -> PairSample:
    """Every pair of active latents of the given tokens; each stands for `1 / share` pairs."""
    active = out.active[:, :, None] & in_.active[:, None, :] & tokens[:, None, None]
    token, out_slot, in_slot = torch.nonzero(active, as_tuple=True)
    return PairSample(token, out_slot, in_slot, torch.full_like(token, 1, dtype=torch.float64) / share)


def stratified_pairs(
    J: Float[Tensor, "tokens k_out k_in"],
    codes: tuple[Codes, Codes],
    token_ids: Int64[Tensor, "tokens"],
    tokens: Bool[Tensor, "tokens"],
    plan: StrataPlan,
) -> PairSample:
    """Up to `plan.per_stratum` active pairs of each given token from each stratum of |J|.

    The weight of a row is the number of its token's pairs in its stratum over those drawn, over `plan.share`.
    """
    in_, out = codes
    k_in = in_.index.shape[1]
    active = (out.active[:, :, None] & in_.active[:, None, :] & tokens[:, None, None]).flatten(1)
    edges = torch.tensor(plan.edges, dtype=J.dtype, device=J.device)
    stratum = torch.bucketize(J.abs().flatten(1), edges, right=True)
    draw = hash_uniform(
        plan.seed, token_ids[:, None, None], out.index[:, :, None], in_.index[:, None, :].expand_as(J)
    ).flatten(1)
    weight = torch.zeros_like(draw)
    for number in range(len(plan.edges) + 1):
        member = active & (stratum == number)
        count = member.sum(1)
        taken = min(plan.per_stratum, draw.shape[1])
        smallest = torch.topk(torch.where(member, draw, 2.0), taken, dim=1, largest=False)
        drawn = torch.zeros_like(member).scatter_(1, smallest.indices, True) & member
        each = count / count.clamp(max=taken).clamp(min=1) / plan.share
        weight = torch.where(drawn, each[:, None].double(), weight)
    token, pair = torch.nonzero(weight, as_tuple=True)
    return PairSample(token, pair // k_in, pair % k_in, weight[token, pair])


@dataclass(frozen=True)
class StrataPlan:
    """Edges of the strata (ascending |J|), pairs a stratum, the share of tokens, and the seed of the draw."""

    edges: tuple[float, ...]
    per_stratum: int
    share: float
    seed: int
