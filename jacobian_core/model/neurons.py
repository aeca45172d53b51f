"""An MLP's hidden neurons as a function of their pre-activations, with its derivatives along directions.

The pre-activations of a token are one row `z` of width `d_state`, whatever the MLP: those of the neurons for a plain
MLP (`d_state = d_mlp`), `[g | u]` side by side for a gated one (`d_state = 2 d_mlp`). They are affine in the MLP's
input, so a latent moves `z` along a fixed direction `d`, and all that the Jacobian needs is how the neurons' values
`h(z)` change:

    h(z + t d) = h(z) + t along(slopes(z), d) + t^2/2 curve(curvatures(z), d) + ...

`slopes` and `curvatures` depend on the token alone, so they are computed once for all of its latents.
`along` and `curve` may overwrite `d`, which is a gathered copy and larger than all else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.model.activation_functions import Activation


@dataclass(frozen=True)
class PlainNeurons:
    """`h = phi(z)`."""

    activation: Activation

    @property
    def channels(self) -> int:
        """One pre-activation a neuron."""
        return 1

    def values(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi(z)`."""
        return self.activation.f(z)

    def slopes(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_state"]:
        """`phi'(z)`."""
        return self.activation.first(z)

    def along(
        self, slopes: Float[Tensor, "*#tokens d_state"], d: Float[Tensor, "*tokens d_state"]
    ) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi'(z) d`."""
        return d.mul_(slopes)

    def curvatures(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_state"]:
        """`phi''(z)`."""
        return self.activation.second(z)

    def curve(
        self, curvatures: Float[Tensor, "*#tokens d_state"], d: Float[Tensor, "*tokens d_state"]
    ) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi''(z) d^2`."""
        return d.square_().mul_(curvatures)


@dataclass(frozen=True)
class GatedNeurons:
    """`h = phi(g) u`: SwiGLU with SiLU, GeGLU with GELU (DESIGN section 3)."""

    activation: Activation

    @property
    def channels(self) -> int:
        """The gate's and the linear path's pre-activation."""
        return 2

    def values(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi(g) u`."""
        g, u = z.chunk(2, dim=-1)
        return self.activation.f(g) * u

    def slopes(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_state"]:
        """`[phi'(g) u | phi(g)]`."""
        g, u = z.chunk(2, dim=-1)
        return torch.cat([self.activation.first(g) * u, self.activation.f(g)], dim=-1)

    def along(
        self, slopes: Float[Tensor, "*#tokens d_state"], d: Float[Tensor, "*tokens d_state"]
    ) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi'(g) u d_g + phi(g) d_u`."""
        d_g, d_u = d.mul_(slopes).chunk(2, dim=-1)
        return d_g + d_u

    def curvatures(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_state"]:
        """`[phi''(g) u | 2 phi'(g)]`."""
        g, u = z.chunk(2, dim=-1)
        return torch.cat([self.activation.second(g) * u, 2 * self.activation.first(g)], dim=-1)

    def curve(
        self, curvatures: Float[Tensor, "*#tokens d_state"], d: Float[Tensor, "*tokens d_state"]
    ) -> Float[Tensor, "*tokens d_mlp"]:
        """`phi''(g) u d_g^2 + 2 phi'(g) d_g d_u`."""
        (c_g, c_u), (d_g, d_u) = curvatures.chunk(2, dim=-1), d.chunk(2, dim=-1)
        return (c_g * d_g + c_u * d_u).mul_(d_g)


Neurons = PlainNeurons | GatedNeurons
