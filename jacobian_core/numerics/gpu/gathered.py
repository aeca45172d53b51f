"""J and K of selected pairs by the Triton kernel, for plain and gated MLPs without a norm behind them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.numerics.device import PairTotals
from jacobian_core.numerics.gpu.sums import LatentSums
from jacobian_core.numerics.jacobian import JacobianKernel
from jacobian_core.numerics.precision import Precision

BLOCK_MLP = 32
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 64


@dataclass(frozen=True)
class TritonProducts:
    """The weight products of a run as the kernels read them; `DeviceProducts` for `JacobianKernel`."""

    E: Float[Tensor, "n_out d_mlp"]
    D: Float[Tensor, "n_in d_state"]
    channels: int
    precision: Precision

    @classmethod
    def of(cls, kernel: JacobianKernel) -> TritonProducts:
        """The products of a kernel; its matrices are shared, or kept a second time in bf16 for that precision.

        ValueError where the kernels do not cover it.
        """
        if kernel.mlp.norm is not None or kernel.E.dtype != torch.float32:
            raise ValueError("the kernels cover float32 MLPs without a norm behind them")
        dtype = torch.bfloat16 if kernel.precision == "bf16" else torch.float32
        weights = (kernel.E.to(dtype).contiguous(), kernel.D.to(dtype).contiguous())
        return cls(*weights, kernel.mlp.neurons.channels, kernel.precision)

    def first(
        self,
        slopes: Float[Tensor, "tokens d_state"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
    ) -> Float[Tensor, "tokens k_out k_in"]:
        """J of every selected pair."""
        return self._gathered(slopes, out_index, in_index, second=False)

    def second(
        self,
        curvatures: Float[Tensor, "tokens d_state"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
    ) -> Float[Tensor, "tokens k_out k_in"]:
        """The second derivative of every selected pair."""
        return self._gathered(curvatures, out_index, in_index, second=True)

    def row_sums(self, into: PairTotals, first_row: int) -> LatentSums:
        """What adds rows of J to totals whose first row is output latent `first_row`."""
        E = self.E[first_row : first_row + into.sum.shape[0]]
        return LatentSums(E, self.D, self.channels, self.precision, into)

    def _gathered(
        self,
        per_neuron: Float[Tensor, "tokens d_state"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
        second: bool,
    ) -> Float[Tensor, "tokens k_out k_in"]:
        from jacobian_core.numerics.gpu.gathered_kernel import gathered_product

        tokens, k_out = out_index.shape
        k_in = in_index.shape[1]
        result = per_neuron.new_empty(tokens, k_out, k_in)
        if result.numel() == 0:
            return result
        block_out, block_in = block(k_out), block(k_in)
        tiles_out, tiles_in = -(-k_out // block_out), -(-k_in // block_in)
        # A kernel is launched on the current device, wherever its tensors are.
        with torch.cuda.device_of(self.E):  # type: ignore[no-untyped-call]
            gathered_product[(tokens, tiles_out * tiles_in)](
                self.E, self.D, per_neuron.contiguous(), out_index.contiguous(), in_index.contiguous(), result,
                k_out, k_in, self.E.shape[1], tiles_in,
                CHANNELS=self.channels, SECOND=second, PRECISION=self.precision,
                BLOCK_OUT=block_out, BLOCK_IN=block_in, BLOCK_MLP=BLOCK_MLP, num_warps=warps(block_out * block_in),
            )  # fmt: skip
        return result


def block(k: int) -> int:
    """Latents of a tile: the power of two that holds `k`, between what the kernel's product needs and what fits."""
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, 1 << (k - 1).bit_length()))


def warps(pairs: int) -> int:
    """Warps that share a tile: with fewer, a float32 tile of 64 x 64 pairs would not stay in registers."""
    return 4 if pairs <= 1024 else 8
