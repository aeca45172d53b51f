"""The Jacobian between active latents in closed form (DESIGN section 3).

`J[i, j] = rows_i . h'_j`, where `h'_j` is how the hidden neurons change along input latent j (`neurons.py`) and
`rows_i` how output latent i reads them: `E_i`, or behind a norm `m / r(m)` of the output `m`, with `q_i` what i reads
of `m` (for an RMSNorm `root = r` and `count = d`; see `OutputNorm`),

    rows_i = E_i / r - q_i (W_out m) / (count root r^2)

One batched product over a whole chunk would stream gathered operands of `tokens * (k_in + k_out) * d_mlp` floats
through memory; sub-batches whose operands stay in the cache are about five times faster on a CPU (`benchmarks/`). The
matrix is (out, in) everywhere: J[i, j] = d t_i / d s_j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.device import DeviceProducts
from jacobian_core.numerics.precision import Precision, kept, operand
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.scratch import scratch
from jacobian_core.numerics.state import NormState, SandwichState

CPU_CACHE_BYTES = 2 << 20
GPU_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class JacobianKernel:
    """The two weight products of a run, and the batched products over a token's selected latents.

    `readers` is what an output latent reads of the MLP's output before its norm; None where there is no norm.
    `input_norm` says that the input SAE normalises each token. `device` has kernels of the device for these products.
    """

    E: Float[Tensor, "n_out d_mlp"]
    D: Float[Tensor, "n_in d_state"]
    mlp: Mlp
    readers: Float[Tensor, "n_out d_out"] | None = None
    input_norm: bool = False
    precision: Precision = "float32"
    device: DeviceProducts | None = None

    @classmethod
    def build(
        cls, inputs: Dictionary, mlp: Mlp, outputs: Dictionary, precision: Precision = "float32"
    ) -> JacobianKernel:
        """`D = W_dec_in @ W_in` and `E = (W_out @ W_enc_out).T`, formed in float64 and kept in the MLP's precision.

        A norm's gain is part of the encoder here.
        """
        dtype = mlp.W_in.dtype
        W_enc = outputs.W_enc.double()
        readers = None
        if mlp.norm is not None:
            W_enc = mlp.norm.gain.double()[:, None] * W_enc
            readers = W_enc.T.to(dtype).contiguous()
        D = (inputs.W_dec.double() @ mlp.W_in.double()).to(dtype)
        E = (mlp.W_out.double() @ W_enc).T.to(dtype).contiguous()
        return cls(E, D, mlp, readers, inputs.norm != "none", precision)

    def first(self, state: SandwichState) -> Float[Tensor, "tokens k_out k_in"]:
        """J of every selected pair; where a latent is clamped, the value is that of the unclamped pre-activation."""
        slopes = self.slopes(state)
        if self.device is not None:
            return self.device.first(slopes, state.outputs.index, state.inputs.index)
        result = self._empty(state)
        for part in self._parts(state):
            moved = self.mlp.neurons.along(slopes[part, None], self._directions(state, part))
            self._product(state, part, moved, result)
        return result

    def second(
        self, state: SandwichState, J: Float[Tensor, "tokens k_out k_in"] | None = None
    ) -> Float[Tensor, "tokens k_out k_in"]:
        """`K[i,j] = d2 t_i / d s_j^2` of every selected pair. Behind a norm it needs J, made where not given."""
        curvatures = self.mlp.neurons.curvatures(state.z)
        if state.scale is not None:
            curvatures = curvatures * state.scale.square()
        if self.device is not None:
            return self.device.second(curvatures, state.outputs.index, state.inputs.index)
        result = self._empty(state)
        for part in self._parts(state):
            curved = self.mlp.neurons.curve(curvatures[part, None], self._directions(state, part))
            self._product(state, part, curved, result)
        if state.norm is not None:
            self._add_curvature_of_norm(state, state.norm, self.first(state) if J is None else J, result)
        return result

    def slopes(self, state: SandwichState) -> Float[Tensor, "tokens d_state"]:
        """The neurons' slopes, times what a unit of the token's input code is worth."""
        slopes = self.mlp.neurons.slopes(state.z)
        return slopes if state.scale is None else slopes * state.scale

    def selected_rows(self, state: SandwichState, part: slice) -> Float[Tensor, "tokens k_out d_mlp"]:
        """How each selected output latent of some tokens reads a change of the hidden neurons."""
        if state.norm is None:
            return _gathered("rows of E", self.E, state.outputs.index[part])
        tokens = torch.arange(*part.indices(len(state.z)), device=state.z.device)
        return self.rows(state, tokens[:, None], state.outputs.index[part])

    def rows(
        self, state: SandwichState, token: Int64[Tensor, "*#any"], out_latent: Int64[Tensor, "*any"]
    ) -> Float[Tensor, "*any d_mlp"]:
        """How output latents read a change of the hidden neurons, at given tokens."""
        rows = self.E[out_latent]
        if state.norm is None:
            return rows
        r, root = state.norm.r[token], state.norm.root[token]
        q = self._read(state.norm, token, out_latent)[..., None]
        return rows / r - state.norm.pulled[token] * (q / (self._norm_count() * root * r**2))

    def norm_readers(self) -> Float[Tensor, "n_out d_out"]:
        """What output latents read of the MLP's output before its norm; ValueError where there is no norm."""
        if self.readers is None:
            raise ValueError("this MLP has no norm behind it")
        return self.readers

    def _norm_count(self) -> int:
        if self.mlp.norm is None:
            raise ValueError("this MLP has no norm behind it")
        return self.mlp.norm.count

    def _directions(self, state: SandwichState, part: slice) -> Float[Tensor, "tokens k_in d_state"]:
        """A copy of the selected rows of D, as the precision keeps them."""
        return kept(_gathered("rows of D", self.D, state.inputs.index[part]), self.precision)

    def _product(
        self,
        state: SandwichState,
        part: slice,
        moved: Float[Tensor, "part k_in d_mlp"],
        result: Float[Tensor, "tokens k_out k_in"],
    ) -> None:
        """Read `moved` with the selected output latents of some tokens, into their part of the result."""
        rows = operand(self.selected_rows(state, part), self.precision)
        torch.bmm(rows, operand(moved, self.precision).transpose(1, 2), out=result[part])

    def _read(
        self, norm: NormState, token: Int64[Tensor, "*#any"], out_latent: Int64[Tensor, "*any"]
    ) -> Float[Tensor, "*any"]:
        """`q`: what output latents read of the output before its norm."""
        return (self.norm_readers()[out_latent] * norm.m[token]).sum(-1)

    def _add_curvature_of_norm(
        self,
        state: SandwichState,
        norm: NormState,
        J: Float[Tensor, "tokens k_out k_in"],
        K: Float[Tensor, "tokens k_out k_in"],
    ) -> None:
        """What the norm's own curvature adds: `-2 J r'/r + q (r'^2 - |m'|^2 / count) / (root r^2)`.

        With `m'_j = h'_j W_out` and `r'_j = m . m'_j / (count root)`; from the second derivative of `m / r(m)` along
        `m'`. For an RMSNorm the root is `r` itself.
        """
        slopes = self.slopes(state)
        for part in self._parts(state):
            moved = self.mlp.neurons.along(slopes[part, None], self.D[state.inputs.index[part]])
            change = moved @ self.mlp.W_out
            r, root = norm.r[part, None], norm.root[part, None]
            turn = (moved @ norm.pulled[part, :, None]).transpose(1, 2) / (self._norm_count() * root)
            spread = change.square().sum(-1)[:, None] / self._norm_count()
            tokens = torch.arange(*part.indices(len(state.z)), device=state.z.device)
            q = self._read(norm, tokens[:, None], state.outputs.index[part])[..., None]
            K[part] += q * (turn.square() - spread) / (root * r**2) - 2 * J[part] * turn / r

    def _empty(self, state: SandwichState) -> Float[Tensor, "tokens k_out k_in"]:
        tokens, k_out = state.outputs.index.shape
        return state.z.new_empty(tokens, k_out, state.inputs.index.shape[1])

    def _parts(self, state: SandwichState) -> list[slice]:
        """The chunk in sub-batches whose gathered operands stay in the cache."""
        tokens, k_out = state.outputs.index.shape
        floats = k_out * self.E.shape[1] + state.inputs.index.shape[1] * self.D.shape[1]
        budget = CPU_CACHE_BYTES if self.E.device.type == "cpu" else GPU_CACHE_BYTES
        step = max(1, budget // (floats * self.E.element_size()))
        return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _gathered(
    name: str, weights: Float[Tensor, "n width"], index: Int64[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k width"]:
    """The rows of some latents, in a buffer that the next gathering of that name overwrites."""
    rows = scratch(name, (index.numel(), weights.shape[1]), weights)
    torch.index_select(weights, 0, index.reshape(-1), out=rows)
    return rows.view(*index.shape, -1)
