"""From a chunk's Jacobian blocks to COO columns, with exact accounting of what thresholds drop.

An entry exists where both latents are active. Sums are taken in float64 over all entries before any threshold, so that
stored plus dropped always adds up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from jacobian_core.numerics.codes import Codes

_SUMMED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Entries:
    """The stored entries of a chunk, in (token, out_latent, in_latent) order, and each token's totals."""

    out_latent: Int[Tensor, "entries"]
    in_latent: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    second_derivative: Float[Tensor, "entries"] | None
    total: Int64[Tensor, "tokens"]
    stored: Int64[Tensor, "tokens"]
    abs_sum_total: Float[Tensor, "tokens"]
    abs_sum_stored: Float[Tensor, "tokens"]
    sq_sum_total: Float[Tensor, "tokens"]
    abs_max: Float[Tensor, "tokens"]

    @property
    def token(self) -> Int64[Tensor, "entries"]:
        """The token of each entry, counted within the chunk."""
        return torch.arange(len(self.stored), device=self.stored.device).repeat_interleave(self.stored)


@dataclass(frozen=True)
class Thresholds:
    """What is stored: |J| >= `min_abs`, and of these at most the `top` largest of a token (None: all)."""

    min_abs: float = 0.0
    top: int | None = None


def _largest(abs_J: Float[Tensor, "tokens pairs"], keep: Bool[Tensor, "tokens pairs"], top: int) -> Tensor:
    """`keep` narrowed to each token's `top` largest |J|; of equal ones the lower (out, in) is kept."""
    if top >= abs_J.shape[1]:
        return keep
    ranked = torch.sort(torch.where(keep, abs_J, -1), dim=1, descending=True, stable=True).indices[:, :top]
    narrowed = torch.zeros_like(keep)
    narrowed.scatter_(1, ranked, True)
    return narrowed & keep


def kept_pairs(
    active: Bool[Tensor, "tokens pairs"], abs_J: Float[Tensor, "tokens pairs"], thresholds: Thresholds
) -> Bool[Tensor, "tokens pairs"]:
    """Which of the active pairs are stored; `active` itself where nothing is dropped."""
    keep = active & (abs_J >= thresholds.min_abs) if thresholds.min_abs > 0 else active
    return keep if thresholds.top is None else _largest(abs_J, keep, thresholds.top)


def to_entries(
    J: Float[Tensor, "tokens k_out k_in"],
    K: Float[Tensor, "tokens k_out k_in"] | None,
    out: Codes,
    in_: Codes,
    thresholds: Thresholds,
) -> Entries:
    """The COO form of a chunk. Raises FloatingPointError if an entry is not finite."""
    tokens, k_out, k_in = J.shape
    active = (out.active[:, :, None] & in_.active[:, None, :]).reshape(tokens, -1)
    flat = J.reshape(tokens, -1)
    magnitude = flat.abs() if bool(active.all()) else torch.where(active, flat, 0).abs_()
    abs_sum, sq_sum = _sums(magnitude)
    if not bool(torch.isfinite(abs_sum).all()):
        raise FloatingPointError("a Jacobian entry is not finite")
    keep = kept_pairs(active, magnitude, thresholds)
    whole = bool(keep.all())
    out_latent, in_latent = every_pair(out, in_) if whole else _latents_of(keep, out, in_)
    return Entries(
        out_latent=out_latent,
        in_latent=in_latent,
        value=flat.flatten() if whole else flat[keep],
        second_derivative=None if K is None else K.flatten() if whole else K.reshape(tokens, -1)[keep],
        total=active.sum(1),
        stored=keep.sum(1),
        abs_sum_total=abs_sum,
        abs_sum_stored=abs_sum if keep is active else _sums(torch.where(keep, magnitude, 0))[0],
        sq_sum_total=sq_sum,
        abs_max=magnitude.amax(1) if k_out * k_in else magnitude.new_zeros(tokens),
    )


def _sums(magnitude: Float[Tensor, "tokens pairs"]) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """Sums of |J| and of J^2 of each token in float64, some tokens at a time, in the cache."""
    tokens, pairs = magnitude.shape
    total, squares = (magnitude.new_empty(tokens, dtype=torch.float64) for _ in range(2))
    step = max(1, _SUMMED_AT_ONCE // max(1, pairs))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        exact = magnitude[part].double()
        torch.sum(exact, 1, out=total[part])
        torch.sum(exact.square(), 1, out=squares[part])
    return total, squares


_Pairs = tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]]
"""Output latent and input latent of each entry."""


def every_pair(out: Codes, in_: Codes) -> _Pairs:
    """All pairs of selected latents, which is the usual case, without looking for any."""
    tokens, k_out = out.index.shape
    shape = (tokens, k_out, in_.index.shape[1])
    out_latent, in_latent = (codes.index.to(torch.int32) for codes in (out, in_))
    return out_latent[:, :, None].expand(shape).reshape(-1), in_latent[:, None, :].expand(shape).reshape(-1)


def _latents_of(keep: Bool[Tensor, "tokens pairs"], out: Codes, in_: Codes) -> _Pairs:
    """The latents of the pairs that are kept."""
    token, pair = torch.nonzero(keep, as_tuple=True)
    k_in = in_.index.shape[1]
    return out.index[token, pair // k_in].to(torch.int32), in_.index[token, pair % k_in].to(torch.int32)
