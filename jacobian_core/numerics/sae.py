"""SAEs of every family, folded to one form: an affine encoder, a selection, an affine decoder.

| family | selection | folded |
|---|---|---|
| standard (ReLU) | above 0 | |
| TopK | the k largest, then ReLU | decoder norms into encoder and decoder (`rescale_acts_by_decoder_norm`) |
| JumpReLU | above the latent's threshold | a negative threshold is 0, for ReLU comes first |
| gated | above the latent's threshold | see `_gated` |

An activation norm of the input SAE (`layer_norm`, `constant_norm_rescale`) scales and shifts each token by amounts that
sae_lens holds fixed when it decodes; so do we, and the code moves the MLP's input along `scale * W_dec[j]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.errors import ArtifactError
from jacobian_core.numerics.codes import Codes, Selection, Threshold, TopK, select_above
from jacobian_core.numerics.search import TopKSearch, quickest_dtype

InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
LAYER_NORM_EPS = 1e-5

SearchPrecision = Literal["auto", "exact", "bfloat16", "int8"]


@dataclass(frozen=True)
class TokenNorm:
    """What a run-time activation norm does to each token: `x = normalised * scale + shift`."""

    scale: Float[Tensor, "tokens 1"]
    shift: Float[Tensor, "tokens 1"]


@dataclass(frozen=True)
class Dictionary:
    """An SAE as `value = select(x W_enc + b_enc)`, `x^ = value W_dec + b_dec`, around an optional activation norm.

    `search_dtype` is the precision in which the top k are looked for, None being the SAE's own: it changes how long
    encoding takes, never a code.
    """

    W_enc: Float[Tensor, "d n"]
    b_enc: Float[Tensor, "n"]
    W_dec: Float[Tensor, "n d"]
    b_dec: Float[Tensor, "d"]
    selection: Selection
    norm: InputNorm = "none"
    search_dtype: torch.dtype | None = None

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def preactivations(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens n"]:
        """Pre-activations of all latents: dense, so for one chunk at a time. `x` is normalised already."""
        return torch.addmm(self.b_enc, x, self.W_enc)

    def encode(self, x: Float[Tensor, "tokens d"]) -> Codes:
        """The codes of `x`, normalised already."""
        if isinstance(self.selection, Threshold):
            return select_above(self.preactivations(x), self.selection.threshold)
        return self.search.encode(x)

    @cached_property
    def search(self) -> TopKSearch:
        """What finds the top k of this encoder; made when it is first wanted."""
        if not isinstance(self.selection, TopK):
            raise TypeError("only a TopK selection is searched for")
        return TopKSearch(self.W_enc, self.b_enc, self.selection.k, self.search_dtype)

    def searched_in(self, precision: SearchPrecision) -> Dictionary:
        """The same SAE, its top k looked for in its own precision, in a lower one, or in the quickest of them."""
        if not isinstance(self.selection, TopK) or precision == "exact":
            return replace(self, search_dtype=None)
        if precision == "auto":
            return replace(self, search_dtype=quickest_dtype(self.W_enc, self.selection.k))
        return replace(self, search_dtype=torch.int8 if precision == "int8" else torch.bfloat16)

    def normalise(self, x: Float[Tensor, "tokens d"]) -> tuple[Float[Tensor, "tokens d"], TokenNorm | None]:
        """What the encoder reads of `x`, and how to undo it; sae_lens's run-time activation norms."""
        if self.norm == "none":
            return x, None
        if self.norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return x / scale, TokenNorm(scale, torch.zeros_like(scale))
        shift = x.mean(dim=-1, keepdim=True)
        centred = x - shift
        scale = centred.std(dim=-1, keepdim=True)
        return centred / (scale + LAYER_NORM_EPS), TokenNorm(scale, shift)

    def decode(self, codes: Codes, norm: TokenNorm | None = None) -> Float[Tensor, "tokens d"]:
        """The reconstruction from codes."""
        picked = torch.nn.functional.embedding_bag(codes.index, self.W_dec, per_sample_weights=codes.value, mode="sum")
        decoded = picked + self.b_dec
        return decoded if norm is None else decoded * norm.scale + norm.shift

    def reconstruct(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """What the SAE makes of `x`."""
        normalised, norm = self.normalise(x)
        return self.decode(self.encode(normalised), norm)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dictionary:
        """The same SAE on another device or in another precision."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype).contiguous()

        weights = (moved(self.W_enc), moved(self.b_enc), moved(self.W_dec), moved(self.b_dec))
        return Dictionary(*weights, self.selection.to(device, dtype), self.norm)


Weights = dict[str, Tensor]


def _standard(sae: Any, weights: Weights) -> Selection:
    del sae
    return Threshold(torch.zeros_like(weights["b_enc"]))


def _topk(sae: Any, weights: Weights) -> Selection:
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        norms = weights["W_dec"].norm(dim=1)
        weights["W_enc"] = weights["W_enc"] * norms
        weights["b_enc"] = weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    return TopK(int(sae.cfg.k))


def _jumprelu(sae: Any, weights: Weights) -> Selection:
    del sae
    return Threshold(weights["threshold"].clamp(min=0))


def _gated(sae: Any, weights: Weights) -> Selection:
    """Magnitude and gate share the encoder's directions, so a gated SAE is a JumpReLU SAE.

    With `a = x W_enc`, the magnitude is `p = a e^r + b_mag` and the gate is open where `a + b_gate > 0`, which is where
    `p > b_mag - b_gate e^r`.
    """
    del sae
    factor = weights["r_mag"].exp()
    weights["W_enc"] = weights["W_enc"] * factor
    weights["b_enc"] = weights["b_mag"]
    return Threshold((weights["b_mag"] - weights["b_gate"] * factor).clamp(min=0))


_FOLDS: dict[str, Callable[[Any, Weights], Selection]] = {
    "standard": _standard,
    "topk": _topk,
    "jumprelu": _jumprelu,
    "gated": _gated,
}
FAMILIES = tuple(_FOLDS)
"""The `sae_lens` architectures that can be folded."""


def fold_sae(sae: Any, device: torch.device | str, dtype: torch.dtype) -> Dictionary:
    """A `sae_lens` SAE as a `Dictionary`; the products are formed in float64.

    `apply_b_dec_to_input` moves into the encoder's bias. Raises ArtifactError for a family that can't be folded.
    """
    family = sae.cfg.architecture()
    if family not in _FOLDS:
        raise ArtifactError(f"SAEs of the family '{family}' are not supported.", f"Supported: {', '.join(FAMILIES)}.")
    if sae.cfg.normalize_activations not in get_args(InputNorm):
        raise ArtifactError(
            f"normalize_activations = '{sae.cfg.normalize_activations}' is not supported.",
            f"Supported: {', '.join(get_args(InputNorm))}; fold any other into the SAE's weights first.",
        )
    weights = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in sae.named_parameters()}
    selection = _FOLDS[family](sae, weights)
    if sae.cfg.apply_b_dec_to_input:
        weights["b_enc"] = weights["b_enc"] - sae.b_dec.detach().to("cpu", torch.float64) @ weights["W_enc"]
    folded = (weights["W_enc"], weights["b_enc"], weights["W_dec"], weights["b_dec"])
    return Dictionary(*folded, selection, sae.cfg.normalize_activations).to(device, dtype)
