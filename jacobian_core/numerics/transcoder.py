"""A transcoder's latents against the MLP that it stands for.

A transcoder reads the MLP's input and writes its output: `s = select(x W_enc + b_enc)`, `y^ = s W_dec + x W_skip +
b_dec`. It claims that one unit of latent j adds `W_dec[j]` to the MLP's output. The MLP knows no latents, so the claim
is tested along a direction of the input: `v_j`, the shortest one that raises latent j by one and no other active latent
(in the span of the active encoder columns `e_k`, with `v_j . e_k = 1` for k = j and 0 otherwise: the pseudo-inverse of
the active encoder). Along it, at the token's own x,

    the transcoder changes by   g_j = sum_k (v_j . e_k) W_dec[k] + v_j W_skip  =  W_dec[j] + v_j W_skip
    the MLP changes by          m_j = v_j J_mlp(x)

and of an output SAE's active latent i, `g_j` and `m_j` move the pre-activation by `g_j . W_enc_out[:, i]` and `m_j .
W_enc_out[:, i]`. Without a skip connection the first is constant in x; the second is the MLP's own Jacobian. Both
are in one unit, and equal where the transcoder is locally right. Along the encoder column they would not be: other
active latents would move with it, and a perfect transcoder would fail the test. Where active columns are dependent,
latent j has no direction of its own: `isolation = v_j . e_j` is then below 1, and `g_j` is the transcoder's exact
change along the `v_j` that there is.

Derivatives hold the selection fixed, as everywhere. Directions are solved for in float64, one k x k system a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.errors import ArtifactError
from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.codes import Codes, Selection, Threshold, TopK, select_above
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.search import TopKSearch

FAMILIES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
"""The `sae_lens` architectures that are transcoders."""
_RELATIVE_ZERO = 1e-10
"""Eigenvalues of the active columns' products below this share of the largest are none: lengths apart by 1e5."""
_FLOATS_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Transcoder:
    """`s = select(x W_enc + b_enc)`, `y^ = s W_dec + x W_skip + b_dec`."""

    W_enc: Float[Tensor, "d_in n"]
    b_enc: Float[Tensor, "n"]
    W_dec: Float[Tensor, "n d_out"]
    b_dec: Float[Tensor, "d_out"]
    selection: Selection
    W_skip: Float[Tensor, "d_in d_out"] | None = None

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "tokens d_in"]) -> Codes:
        """The codes of MLP inputs."""
        if isinstance(self.selection, Threshold):
            return select_above(torch.addmm(self.b_enc, x, self.W_enc), self.selection.threshold)
        return self._search.encode(x)

    @cached_property
    def _search(self) -> TopKSearch:
        assert isinstance(self.selection, TopK)  # noqa: S101  thresholds are not searched for
        return TopKSearch(self.W_enc, self.b_enc, self.selection.k)

    def output(self, x: Float[Tensor, "tokens d_in"], codes: Codes) -> Float[Tensor, "tokens d_out"]:
        """What the transcoder says the MLP's output is."""
        picked = torch.nn.functional.embedding_bag(codes.index, self.W_dec, per_sample_weights=codes.value, mode="sum")
        y = picked + self.b_dec
        return y if self.W_skip is None else y + x @ self.W_skip


def fold_transcoder(transcoder: Any, device: torch.device | str, dtype: torch.dtype) -> Transcoder:
    """A `sae_lens` transcoder in the form that is used here; ArtifactError for another architecture."""
    family = transcoder.cfg.architecture()
    if family not in FAMILIES:
        raise ArtifactError(f"'{family}' is no transcoder that is supported.", f"Supported: {', '.join(FAMILIES)}.")

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=device, dtype=dtype).contiguous()

    weights = {name: moved(tensor) for name, tensor in transcoder.named_parameters()}
    threshold = weights.get("threshold", torch.zeros_like(weights["b_enc"])).clamp(min=0)
    skip = weights["W_skip"].T.contiguous() if "W_skip" in weights else None
    core = (weights["W_enc"], weights["b_enc"], weights["W_dec"], weights["b_dec"])
    return Transcoder(*core, Threshold(threshold), skip)


@dataclass(frozen=True)
class Comparison:
    """A chunk's transcoder against the MLP; rows of `inputs` and `outputs` that are not active hold zeros.

    `mlp_effect` and `transcoder_effect` are on the output SAE's pre-activations; without one they have no rows.
    """

    inputs: Codes
    outputs: Codes
    mlp_effect: Float[Tensor, "tokens k_out k_in"]
    transcoder_effect: Float[Tensor, "tokens k_out k_in"]
    mlp_norm: Float[Tensor, "tokens k_in"]
    transcoder_norm: Float[Tensor, "tokens k_in"]
    cosine: Float[Tensor, "tokens k_in"]
    isolation: Float[Tensor, "tokens k_in"]
    direction_norm: Float[Tensor, "tokens k_in"]
    error_sq: Float[Tensor, "tokens"]
    output_sq: Float[Tensor, "tokens"]


@dataclass(frozen=True)
class _Directions:
    """Of each active latent: its direction, and how far all active latents move along it (rows: directions)."""

    v: Float[Tensor, "tokens k_in d_in"]
    moved: Float[Tensor, "tokens k_in k_in"]


@dataclass(frozen=True)
class TranscoderKernel:
    """A transcoder, the MLP that it stands for, and the SAE on that MLP's output, if there is one."""

    transcoder: Transcoder
    mlp: Mlp
    outputs: Dictionary | None

    @classmethod
    def build(cls, transcoder: Transcoder, mlp: Mlp, outputs: Dictionary | None) -> TranscoderKernel:
        """The kernel; ArtifactError for an output SAE that normalises: its pre-activations are not affine in y."""
        if outputs is not None and outputs.norm != "none":
            raise ArtifactError(
                f"the output SAE has normalize_activations = '{outputs.norm}', not supported beside a transcoder.",
                "Use an output SAE without run-time normalisation.",
            )
        return cls(transcoder, mlp, outputs)

    def compare(self, x: Float[Tensor, "tokens d_in"]) -> list[Comparison]:
        """The comparison at each MLP input, in parts whose gathered operands stay small, in order."""
        codes = self.transcoder.encode(x)
        width = codes.index.shape[1] * max(self.mlp.d_state, self.mlp.d_in, codes.index.shape[1])
        step = max(1, _FLOATS_AT_ONCE // width)
        parts = (slice(start, start + step) for start in range(0, x.shape[0], step))
        return [self._compare(x[p], Codes(codes.index[p], codes.value[p], codes.margin[p])) for p in parts]

    def _compare(self, x: Float[Tensor, "tokens d_in"], codes: Codes) -> Comparison:
        z = self.mlp.hidden(x)
        y, predicted = self.mlp.output(z), self.transcoder.output(x, codes)
        directions = self._directions(codes)
        m = self._mlp_change(z, directions.v)
        g = directions.moved @ self.transcoder.W_dec[codes.index]
        if self.transcoder.W_skip is not None:
            g = g + directions.v @ self.transcoder.W_skip
        outputs, read = self._outputs(y)
        mlp_norm, transcoder_norm = m.norm(dim=-1), g.norm(dim=-1)
        product = mlp_norm * transcoder_norm
        return Comparison(
            inputs=codes,
            outputs=outputs,
            mlp_effect=read @ m.transpose(1, 2),
            transcoder_effect=read @ g.transpose(1, 2),
            mlp_norm=mlp_norm,
            transcoder_norm=transcoder_norm,
            cosine=torch.where(product > 0, (m * g).sum(-1) / torch.where(product > 0, product, 1), 0).clamp(-1, 1),
            isolation=directions.moved.diagonal(dim1=1, dim2=2),
            direction_norm=directions.v.norm(dim=-1),
            error_sq=(y - predicted).square().sum(-1),
            output_sq=y.square().sum(-1),
        )

    def _directions(self, codes: Codes) -> _Directions:
        """The rows of the active encoder's pseudo-inverse; zeros for slots that are not active."""
        e = self.transcoder.W_enc.T[codes.index] * codes.active[..., None]
        wide = e.double()
        products = wide @ wide.transpose(1, 2)
        inverse = torch.linalg.pinv(products, rtol=_RELATIVE_ZERO, hermitian=True)
        return _Directions((inverse @ wide).to(e.dtype), (inverse @ products).to(e.dtype))

    def _mlp_change(
        self, z: Float[Tensor, "tokens d_state"], v: Float[Tensor, "tokens k_in d_in"]
    ) -> Float[Tensor, "tokens k_in d_out"]:
        """The MLP's derivative along each direction, through the norm behind it if there is one."""
        slopes = self.mlp.neurons.slopes(z)
        change = self.mlp.neurons.along(slopes[:, None], v @ self.mlp.W_in) @ self.mlp.W_out
        norm = self.mlp.norm
        if norm is None:
            return change
        m = self.mlp.before_norm(z)[:, None]
        r, root = norm.divisor(m), norm.root(m)
        along = (m * change).sum(-1, keepdim=True)
        return norm.gain * (change / r - m * (along / (norm.count * root * r.square())))

    def _outputs(self, y: Float[Tensor, "tokens d_out"]) -> tuple[Codes, Float[Tensor, "tokens k_out d_out"]]:
        """The output SAE's codes, and what each selected latent reads of a change of y; nothing without an SAE."""
        if self.outputs is None:
            nothing = y.new_zeros(y.shape[0], 0)
            return Codes(nothing.long(), nothing, nothing), y.new_zeros(y.shape[0], 0, y.shape[1])
        codes = self.outputs.encode(y)
        return codes, self.outputs.W_enc.T[codes.index]
