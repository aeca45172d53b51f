"""Codes: the few selected latents of each token, never a dense (token x latent) tensor beyond one chunk.

Two selections cover the SAE families: the k largest pre-activations, and those above a threshold of their own. Codes
are kept in ascending latent order, so that everything derived from them is already sorted by the lake's keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """The selected latents of a chunk of tokens.

    `index` ascends along k. `active` is selected and > 0; elsewhere `value` and `margin` are 0. `margin` is how far the
    pre-activation can fall before the latent stops being active: to 0, to its threshold, or to the best latent that was
    not selected. Where tokens have different numbers of active latents, short rows end in the last latent, not active.
    """

    index: Int64[Tensor, "tokens k"]
    value: Float[Tensor, "tokens k"]
    margin: Float[Tensor, "tokens k"]

    @property
    def active(self) -> Bool[Tensor, "tokens k"]:
        """Where a latent is active: DESIGN trap 7, a selected latent that the ReLU clamps is not."""
        return self.value > 0

    def counts(self) -> Int64[Tensor, "tokens"]:
        """Active latents of each token."""
        return self.active.sum(1)


@dataclass(frozen=True)
class TopK:
    """The `k` largest pre-activations of a token, then ReLU; `search.py` finds them."""

    k: int

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TopK:
        """Itself: there is nothing to move."""
        del device, dtype
        return self


@dataclass(frozen=True)
class Threshold:
    """Every pre-activation above its latent's threshold, which is never negative: ReLU, JumpReLU, gated."""

    threshold: Float[Tensor, "n"]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Threshold:
        """The same thresholds on another device or in another precision."""
        return Threshold(self.threshold.to(device=device, dtype=dtype))


Selection = TopK | Threshold


def select_top_k(
    scores: Float[Tensor, "tokens c"], k: int, latents: Int64[Tensor, "tokens c"], n: int
) -> tuple[Codes, Float[Tensor, "tokens"]]:
    """The k largest scores of each token, then ReLU; of equal ones at the boundary, the lower latent is taken.

    `latents` ascends along c; there are `n` in all. Also returns the best score that was not selected, minus infinity
    where all were. Scores are numbers, or minus infinity where a row has none.
    """
    tokens, c = scores.shape
    top = torch.topk(scores, min(k + 1, c), dim=1).values
    last = top[:, k - 1 : k]
    boundary = top[:, k] if c > k else scores.new_full((tokens,), -torch.inf)
    # `torch.topk` leaves the choice among equals open; here the first of them are kept.
    above, tied = scores > last, scores == last
    keep = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    slot = torch.nonzero(keep)[:, 1].view(tokens, k)
    index, value = latents.gather(1, slot), torch.relu(scores.gather(1, slot))
    if bool((value <= 0).any()):
        index, order = torch.sort(torch.where(value > 0, index, n), dim=1, stable=True)
        index, value = index.clamp(max=n - 1), value.gather(1, order)
    margin = torch.where(value > 0, value - torch.relu(boundary)[:, None], 0)
    return Codes(index, value, margin), boundary


def select_above(pre: Float[Tensor, "tokens n"], threshold: Float[Tensor, "n"]) -> Codes:
    """The pre-activations above their thresholds, in as many slots as the token with the most needs (at least 1)."""
    tokens, n = pre.shape
    token, latent = torch.nonzero(pre > threshold, as_tuple=True)
    counts = torch.bincount(token, minlength=tokens)
    k = max(1, int(counts.max())) if tokens else 1
    slot = torch.arange(len(token), device=pre.device) - (counts.cumsum(0) - counts)[token]
    index = token.new_full((tokens, k), n - 1)
    value, margin = pre.new_zeros(tokens, k), pre.new_zeros(tokens, k)
    index[token, slot] = latent
    found = pre[token, latent]
    value[token, slot], margin[token, slot] = found, found - threshold[latent]
    return Codes(index, value, margin)
