"""The MLP as a closed formula: its weights, its neurons and, where the architecture has one, the norm behind it.

The language model is run by its own library; this copy of one MLP exists because derivatives in closed form need the
hidden pre-activations. `llm.py` proves at load time that it computes what the model's own module computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.model.affine import Affine
from jacobian_core.model.neurons import Neurons


@dataclass(frozen=True)
class OutputNorm:
    """A norm behind the MLP: `y = gain * m / r(m)`.

    An RMSNorm has `r = root = sqrt(mean(m^2) + eps)`. Where the norm is the output SAE's `layer_norm` (`unbiased`), `m`
    is centred already and `r = root + eps` with the unbiased deviation `root = sqrt(sum(m^2) / (d - 1))`. In both, the
    root changes along `m'` by `m . m' / (count * root)`.
    """

    gain: Float[Tensor, "d_out"]
    eps: float
    unbiased: bool = False

    @property
    def count(self) -> int:
        """What the sum of squares is divided by."""
        return self.gain.shape[0] - self.unbiased

    def root(self, m: Float[Tensor, "*tokens d_out"]) -> Float[Tensor, "*tokens 1"]:
        """The root of the mean square."""
        square = m.square().sum(-1, keepdim=True) / self.count
        return (square if self.unbiased else square + self.eps).sqrt()

    def divisor(self, m: Float[Tensor, "*tokens d_out"]) -> Float[Tensor, "*tokens 1"]:
        """`r(m)`."""
        return self.root(m) + self.eps if self.unbiased else self.root(m)

    def __call__(self, m: Float[Tensor, "*tokens d_out"]) -> Float[Tensor, "*tokens d_out"]:
        """The normalised output."""
        return self.gain * (m / self.divisor(m))


@dataclass(frozen=True)
class Mlp:
    """`f(x) = norm(h(x W_in + b_in) W_out + b_out)`.

    For a gated MLP `W_in` is the gate's weights and the linear path's side by side, so `d_state = 2 d_mlp`.
    """

    W_in: Float[Tensor, "d_in d_state"]
    b_in: Float[Tensor, "d_state"]
    W_out: Float[Tensor, "d_mlp d_out"]
    b_out: Float[Tensor, "d_out"]
    neurons: Neurons
    norm: OutputNorm | None = None

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.W_in.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return self.W_out.shape[1]

    @property
    def d_mlp(self) -> int:
        """Hidden neurons."""
        return self.W_out.shape[0]

    @property
    def d_state(self) -> int:
        """Pre-activations of the hidden neurons."""
        return self.W_in.shape[1]

    @cached_property
    def _into(self) -> Affine:
        return Affine.of(self.W_in.T, self.b_in)

    @cached_property
    def _out_of(self) -> Affine:
        return Affine.of(self.W_out.T, self.b_out)

    def hidden(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_state"]:
        """Pre-activations z of the hidden neurons."""
        return self._into(x)

    def before_norm(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_out"]:
        """The output before the norm, from the hidden pre-activations."""
        return self._out_of(self.neurons.values(z))

    def output(self, z: Float[Tensor, "*tokens d_state"]) -> Float[Tensor, "*tokens d_out"]:
        """The MLP's output from its hidden pre-activations."""
        m = self.before_norm(z)
        return m if self.norm is None else self.norm(m)

    def __call__(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_out"]:
        """The MLP's output."""
        return self.output(self.hidden(x))

    def folded(self, gain: Float[Tensor, "d_in"], bias: Float[Tensor, "d_in"]) -> Mlp:
        """The same function of `n`, where the MLP's input is `n * gain + bias`: LayerNorm's affine part folded in."""
        return replace(self, W_in=gain[:, None] * self.W_in, b_in=self.b_in + bias @ self.W_in)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Mlp:
        """The same MLP on another device or in another precision."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        norm = None if self.norm is None else replace(self.norm, gain=moved(self.norm.gain))
        weights = (moved(self.W_in), moved(self.b_in), moved(self.W_out), moved(self.b_out))
        return Mlp(*weights, self.neurons, norm)
