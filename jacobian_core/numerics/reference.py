"""Every quantity by its slow, obvious definition: plain autograd, one token at a time, float64, dense.

Nothing here is used by a run. The fast code is tested against it, and a reader can see here what is meant. `sae_in` and
`sae_out` are any callables with `encode` and `decode` (a `sae_lens` SAE is one), `mlp` any callable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@runtime_checkable
class Autoencoder(Protocol):
    """What of an SAE is used here."""

    def encode(self, x: Tensor) -> Tensor:
        """Dense activations of the latents."""
        ...

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction from dense activations."""
        ...


Code = Float[Tensor, "n_in"]
OutCode = Float[Tensor, "n_out"]
MlpFunction = Callable[[Tensor], Tensor]


def sandwich_at_reconstruction(
    sae_in: Autoencoder, mlp: MlpFunction, sae_out: Autoencoder
) -> Callable[[Code], OutCode]:
    """The notebook's `sandwich`: decode the input code, run the MLP, encode its output."""

    def sandwich(s: Code) -> OutCode:
        return sae_out.encode(mlp(sae_in.decode(s[None])))[0]

    return sandwich


def sandwich_at_activation(
    sae_in: Autoencoder, mlp: MlpFunction, sae_out: Autoencoder, x: Float[Tensor, "d_in"]
) -> Callable[[Code], OutCode]:
    """The same around the true activation: the code moves the MLP's input away from `x`, the SAE's error held."""
    with torch.no_grad():
        error = x - sae_in.decode(sae_in.encode(x[None]))[0]

    def sandwich(s: Code) -> OutCode:
        return sae_out.encode(mlp(sae_in.decode(s[None]) + error))[0]

    return sandwich


def jacobian(sandwich: Callable[[Code], OutCode], s: Code) -> Float[Tensor, "n_out n_in"]:
    """d t_i / d s_j for all latents, by autograd. Rows of output latents that are not active are zero."""
    result: Tensor = torch.autograd.functional.jacobian(sandwich, s)  # type: ignore[no-untyped-call]
    return result


def second_derivative(
    sandwich: Callable[[Code], OutCode], s: Code, out: Int64[Tensor, "some_out"], in_: Int64[Tensor, "some_in"]
) -> Float[Tensor, "some_out some_in"]:
    """d2 t_i / d s_j^2 for the given latents, by autograd through autograd.

    `create_graph=True` is what the notebook lacks: without it the first derivative is a constant to autograd.
    """
    s = s.clone().requires_grad_()
    t = sandwich(s)
    result = t.new_zeros(len(out), len(in_))
    for row, i in enumerate(out):
        (first,) = torch.autograd.grad(t[i], s, create_graph=True)
        for column, j in enumerate(in_):
            if first.requires_grad:
                (second,) = torch.autograd.grad(first[j], s, retain_graph=True)
                result[row, column] = second[j]
    return result


def active_entries(
    sandwich: Callable[[Code], OutCode], s: Code
) -> tuple[Int64[Tensor, "out_active"], Int64[Tensor, "in_active"], Float[Tensor, "out_active in_active"]]:
    """The notebook's `get_sliced_jac` with its support: active output latents, active input latents, J between them."""
    out = torch.nonzero(sandwich(s) > 0).flatten()
    in_ = torch.nonzero(s > 0).flatten()
    return out, in_, jacobian(sandwich, s)[out][:, in_]


def intervene(sandwich: Callable[[Code], OutCode], s: Code, in_latent: int, value: float) -> Float[Tensor, "n_out"]:
    """All output activations after setting one input latent to `value`, everything else held, the selection redone."""
    changed = s.clone()
    changed[in_latent] = value
    return sandwich(changed)


def pair_sums(
    jacobians: Float[Tensor, "tokens n_out n_in"], coactive: Float[Tensor, "tokens n_out n_in"]
) -> dict[str, Float[Tensor, "n_out n_in"]]:
    """The dense accumulations over tokens that `pair_stats` holds, one dense matrix a statistic."""
    return {
        "n_coactive": coactive.sum(0),
        "sum": jacobians.sum(0),
        "sum_abs": jacobians.abs().sum(0),
        "sum_sq": jacobians.square().sum(0),
        "max_abs": jacobians.abs().amax(0),
    }


def transcoder_directions(encoder: Float[Tensor, "d_in active"]) -> Float[Tensor, "active d_in"]:
    """For each active latent the shortest input direction that raises it by one and no other active latent.

    `encoder` has the active latents' encoder columns. Least squares, of least norm, latent by latent.
    """
    wanted = torch.eye(encoder.shape[1], dtype=encoder.dtype)
    solutions = [torch.linalg.lstsq(encoder.T, row[:, None], driver="gelsd").solution[:, 0] for row in wanted]
    return torch.stack(solutions) if solutions else encoder.new_zeros(0, encoder.shape[0])


def change_along(
    function: MlpFunction, x: Float[Tensor, "d_in"], directions: Float[Tensor, "some d_in"]
) -> Float[Tensor, "some d_out"]:
    """How a function of one token's MLP input (the MLP, a transcoder) changes along directions, by its Jacobian."""
    whole: Tensor = torch.autograd.functional.jacobian(lambda v: function(v[None])[0], x)  # type: ignore[no-untyped-call]
    return directions @ whole.T
