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
    magnitude = torch.where(active, flat, 0).abs()
    exact = magnitude.double()
    abs_sum = exact.sum(1)
    if not bool(torch.isfinite(abs_sum).all()):
        raise FloatingPointError("a Jacobian entry is not finite")
    keep = active & (magnitude >= thresholds.min_abs) if thresholds.min_abs > 0 else active
    if thresholds.top is not None:
        keep = _largest(magnitude, keep, thresholds.top)
    token, pair = torch.nonzero(keep, as_tuple=True)
    return Entries(
        out_latent=out.index[token, pair // k_in],
        in_latent=in_.index[token, pair % k_in],
        value=flat[keep],
        second_derivative=None if K is None else K.reshape(tokens, -1)[keep],
        total=active.sum(1),
        stored=keep.sum(1),
        abs_sum_total=abs_sum,
        abs_sum_stored=torch.where(keep, exact, 0).sum(1),
        sq_sum_total=exact.square().sum(1),
        abs_max=magnitude.amax(1) if k_out * k_in else magnitude.new_zeros(tokens),
    )
