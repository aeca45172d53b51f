"""The Jacobian between active latents in closed form (DESIGN section 3).

`J = E_out diag(phi'(z)) D_in^T` for the selected rows of E and D. One batched product over a whole chunk would stream
gathered operands of `tokens * (k_in + k_out) * d_mlp` floats through memory; sub-batches whose operands stay in the
cache are about five times faster on a CPU (`benchmarks/`). The matrix is (out, in) everywhere: J[i, j] = d t_i / d s_j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.codes import Codes, Dictionary

CPU_CACHE_BYTES = 2 << 20
GPU_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class JacobianKernel:
    """The two weight products of a run, and the batched products over a token's selected latents."""

    E: Float[Tensor, "n_out d_mlp"]
    D: Float[Tensor, "n_in d_mlp"]
    mlp: Mlp

    @classmethod
    def build(cls, inputs: Dictionary, mlp: Mlp, outputs: Dictionary) -> JacobianKernel:
        """`D = W_dec_in @ W_in` and `E = (W_out @ W_enc_out).T`, formed in float64 and kept in the MLP's precision."""
        dtype = mlp.W_in.dtype
        D = (inputs.W_dec.double() @ mlp.W_in.double()).to(dtype)
        E = (mlp.W_out.double() @ outputs.W_enc.double()).T.to(dtype).contiguous()
        return cls(E=E, D=D, mlp=mlp)

    def first(self, z: Float[Tensor, "tokens d_mlp"], out: Codes, in_: Codes) -> Float[Tensor, "tokens k_out k_in"]:
        """J of every selected pair; where a latent is clamped, the value is that of the unclamped pre-activation."""
        return self._contract(self.mlp.activation.first(z), out.index, in_.index, square=False)

    def second(self, z: Float[Tensor, "tokens d_mlp"], out: Codes, in_: Codes) -> Float[Tensor, "tokens k_out k_in"]:
        """`K[i,j] = d2 t_i / d s_j^2` of every selected pair."""
        return self._contract(self.mlp.activation.second(z), out.index, in_.index, square=True)

    def _contract(
        self,
        weight: Float[Tensor, "tokens d_mlp"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
        square: bool,
    ) -> Float[Tensor, "tokens k_out k_in"]:
        tokens, k_out = out_index.shape
        k_in = in_index.shape[1]
        result = weight.new_empty(tokens, k_out, k_in)
        step = self._tokens_in_cache(k_out + k_in)
        for start in range(0, tokens, step):
            stop = min(start + step, tokens)
            left = self.E[out_index[start:stop]].mul_(weight[start:stop, None, :])
            right = self.D[in_index[start:stop]]
            if square:
                right = right.square_()
            torch.bmm(left, right.transpose(1, 2), out=result[start:stop])
        return result

    def _tokens_in_cache(self, rows: int) -> int:
        budget = CPU_CACHE_BYTES if self.E.device.type == "cpu" else GPU_CACHE_BYTES
        return max(1, budget // (rows * self.E.shape[1] * self.E.element_size()))
