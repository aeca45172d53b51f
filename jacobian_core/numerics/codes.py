"""SAE codes: the few selected latents of each token, never a dense (token x latent) tensor beyond one chunk.

`Dictionary` is an SAE folded to four tensors and a selection. Encoding is one GEMM, one top-k; codes are kept in
ascending latent order, so that everything derived from them is already sorted by the lake's keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """The selected latents of a chunk of tokens.

    `index` ascends along k. `active` is selected and > 0; elsewhere `value` and `margin` are 0. `margin` is how far the
    pre-activation can fall before the latent stops being active: to 0 or to the best latent that was not selected.
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
class Dictionary:
    """A TopK SAE as `value = relu(topk(x W_enc + b_enc))`, `x^ = value W_dec + b_dec`."""

    W_enc: Float[Tensor, "d n"]
    b_enc: Float[Tensor, "n"]
    W_dec: Float[Tensor, "n d"]
    b_dec: Float[Tensor, "d"]
    k: int

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def preactivations(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens n"]:
        """Pre-activations of all latents: dense, so for one chunk at a time."""
        return torch.addmm(self.b_enc, x, self.W_enc)

    def encode(self, x: Float[Tensor, "tokens d"]) -> Codes:
        """The codes of `x`."""
        return select_top_k(self.preactivations(x), self.k)

    def decode(self, codes: Codes) -> Float[Tensor, "tokens d"]:
        """The reconstruction from codes."""
        picked = torch.nn.functional.embedding_bag(codes.index, self.W_dec, per_sample_weights=codes.value, mode="sum")
        return picked + self.b_dec


def select_top_k(pre: Float[Tensor, "tokens n"], k: int) -> Codes:
    """The k largest pre-activations of each token, then ReLU; of equal ones at the boundary, the lower latent is taken.

    `torch.topk` leaves the choice among equals open. The rows in which the boundary is tied, which are rare, are
    selected again by a stable sort, so that the same input gives the same codes on every machine.
    """
    n = pre.shape[1]
    wanted = min(k + 1, n)
    top = torch.topk(pre, wanted, dim=1)
    index, value = top.indices[:, :k], top.values[:, :k]
    boundary = top.values[:, k] if n > k else torch.zeros_like(value[:, 0])
    if n > k:
        tied = (value[:, -1] == boundary) & (boundary > 0)
        if bool(tied.any()):
            stable = torch.sort(pre[tied], dim=1, descending=True, stable=True)
            index, value = index.clone(), value.clone()
            index[tied], value[tied] = stable.indices[:, :k], stable.values[:, :k]
    index, order = torch.sort(index, dim=1)
    value = torch.relu(torch.gather(value, 1, order))
    margin = torch.where(value > 0, value - torch.relu(boundary)[:, None], 0)
    return Codes(index, value, margin)


def fold_sae(sae: Any, device: torch.device | str, dtype: torch.dtype) -> Dictionary:
    """A `sae_lens` TopK SAE as a `Dictionary`.

    `apply_b_dec_to_input` moves into the encoder's bias; `rescale_acts_by_decoder_norm` scales the encoder by the
    decoder's row norms and the decoder by their inverse. The products are formed in float64.
    """
    W_enc, b_enc, W_dec, b_dec = (
        getattr(sae, name).detach().to("cpu", torch.float64) for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    if sae.cfg.apply_b_dec_to_input:
        b_enc = b_enc - b_dec @ W_enc
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype).contiguous()

    return Dictionary(moved(W_enc), moved(b_enc), moved(W_dec), moved(b_dec), k=int(sae.cfg.k))
