"""sum |J| over the active latents of each token, exact, with its gradient made in the same pass over the tokens.

`J = E [sum_c diag(gain_c) D_c^T]`, one channel c per matrix that reads the MLP's input: a plain MLP has one, with gain
`phi'(z)`; a gated MLP would have two, `phi'(g) u` on the gate's matrix and `phi(g)` on the other's.

Written with plain autograd (`penalty_by_autograd`) the penalty keeps two `tokens x k x d_mlp` arrays for the backward
pass and reads them from memory again. Here the gradient is known as soon as J is (`d|J| = sign(J) dJ`), so tokens go
through in chunks whose operands stay in cache, and nothing is kept but two gradients of the size of D and E.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from jacobian_core.training.dictionary import Selection

CHUNK_BYTES_CPU = 1 << 19
CHUNK_BYTES_ACCELERATOR = 1 << 28
"""Size of one gathered operand, `tokens x k x d_mlp`: of the order of a core's cache, or enough to fill a device."""


def active_jacobian(
    E: Float[torch.Tensor, "n_out d_mlp"],
    D: tuple[Float[torch.Tensor, "n_in d_mlp"], ...],
    gains: tuple[Float[torch.Tensor, "tokens d_mlp"], ...],
    code_out: Selection,
    code_in: Selection,
) -> Float[torch.Tensor, "tokens k_out k_in"]:
    """J between the selected latents of each token, 0 where one of the two is not active; differentiable, large."""
    rows = E[code_out.index]
    channels = [gain[:, None, :] * matrix[code_in.index] for gain, matrix in zip(gains, D, strict=True)]
    jacobian = rows @ torch.stack(channels).sum(0).transpose(-1, -2)
    return jacobian * (code_out.active[:, :, None] & code_in.active[:, None, :])


def chunk_tokens(E: Float[torch.Tensor, "n_out d_mlp"], k: int) -> int:
    """Tokens that go through at once."""
    size = CHUNK_BYTES_CPU if E.device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
    return max(1, size // (k * E.shape[1] * E.element_size()))


def penalty_by_autograd(
    E: Float[torch.Tensor, "n_out d_mlp"],
    D: tuple[Float[torch.Tensor, "n_in d_mlp"], ...],
    gains: tuple[Float[torch.Tensor, "tokens d_mlp"], ...],
    code_out: Selection,
    code_in: Selection,
) -> Float[torch.Tensor, ""]:
    """The slow twin of `sum_abs_jacobian`."""
    return active_jacobian(E, D, gains, code_out, code_in).abs().sum()


def sum_abs_jacobian(
    E: Float[torch.Tensor, "n_out d_mlp"],
    D: tuple[Float[torch.Tensor, "n_in d_mlp"], ...],
    gains: tuple[Float[torch.Tensor, "tokens d_mlp"], ...],
    code_out: Selection,
    code_in: Selection,
) -> Float[torch.Tensor, ""]:
    """sum over tokens and active pairs of |J|, differentiable in E and D; selection and gains count as constants."""
    indices = (code_out.index, code_out.active, code_in.index, code_in.active)
    with torch.autocast(E.device.type, enabled=False):
        total: torch.Tensor = _SumAbsJacobian.apply(indices, gains, E, *D)  # type: ignore[no-untyped-call]
    return total


def _rows(
    matrix: Float[torch.Tensor, "n d_mlp"], index: Int[torch.Tensor, "tokens k"]
) -> Float[torch.Tensor, "tokens k d_mlp"]:
    """`matrix[index]`; on a CPU `index_select` copies rows five times as fast as indexing."""
    return matrix.index_select(0, index.flatten()).view(*index.shape, -1)


class _SumAbsJacobian(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        indices: tuple[
            Int[torch.Tensor, "tokens k_out"],
            Bool[torch.Tensor, "tokens k_out"],
            Int[torch.Tensor, "tokens k_in"],
            Bool[torch.Tensor, "tokens k_in"],
        ],
        gains: tuple[Float[torch.Tensor, "tokens d_mlp"], ...],
        E: Float[torch.Tensor, "n_out d_mlp"],
        *D: Float[torch.Tensor, "n_in d_mlp"],
    ) -> Float[torch.Tensor, ""]:
        gradients = [torch.zeros_like(E), *(torch.zeros_like(matrix) for matrix in D)]
        total = E.new_zeros(())
        chunk = chunk_tokens(E, indices[0].shape[1])
        parts = zip(*(torch.split(tensor, chunk) for tensor in (*indices, *gains)), strict=True)
        for index_out, active_out, index_in, active_in, *gain in parts:
            rows = _rows(E, index_out)
            columns = _rows(D[0], index_in).mul_(gain[0][:, None, :])
            for factor, matrix in zip(gain[1:], D[1:], strict=True):
                columns.addcmul_(_rows(matrix, index_in), factor[:, None, :])
            jacobian = torch.bmm(rows, columns.transpose(1, 2))
            jacobian.mul_(active_out[:, :, None] & active_in[:, None, :])
            total += jacobian.abs().sum()
            sign = jacobian.sign_()
            gradients[0].index_add_(0, index_out.flatten(), torch.bmm(sign, columns).flatten(0, 1))
            pulled = torch.bmm(sign.transpose(1, 2), rows)
            for gradient, factor in zip(gradients[2:], gain[1:], strict=True):
                gradient.index_add_(0, index_in.flatten(), (factor[:, None, :] * pulled).flatten(0, 1))
            gradients[1].index_add_(0, index_in.flatten(), pulled.mul_(gain[0][:, None, :]).flatten(0, 1))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors))
