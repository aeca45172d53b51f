"""The MLP as a closed formula: weights, activation function and its first two derivatives.

The language model is run by its own library; this copy of one MLP exists because derivatives in closed form need the
hidden pre-activations. `llm.py` proves at load time that it computes what the model's own module computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.errors import ModelError

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its first two derivatives; each maps a tensor to one of the same shape and dtype."""

    name: str
    f: Elementwise
    first: Elementwise
    second: Elementwise


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z * math.sqrt(0.5))


def _gelu_first(z: Tensor) -> Tensor:
    return _normal_cdf(z) + z * _normal_density(z)


def _gelu_second(z: Tensor) -> Tensor:
    return _normal_density(z) * (2 - z * z)


_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715


def _tanh_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tanh of GELU's approximation, and its argument's first two derivatives."""
    t = torch.tanh(_TANH_SCALE * (z + _TANH_CUBIC * z**3))
    return t, _TANH_SCALE * (1 + 3 * _TANH_CUBIC * z * z), 6 * _TANH_SCALE * _TANH_CUBIC * z


def _gelu_tanh_first(z: Tensor) -> Tensor:
    t, du, _ = _tanh_parts(z)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * du


def _gelu_tanh_second(z: Tensor) -> Tensor:
    t, du, d2u = _tanh_parts(z)
    return (1 - t * t) * (du + 0.5 * z * (d2u - 2 * t * du * du))


def _silu_first(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _silu_second(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _gelu(z: Tensor) -> Tensor:
    return torch.nn.functional.gelu(z)


def _gelu_tanh(z: Tensor) -> Tensor:
    return torch.nn.functional.gelu(z, approximate="tanh")


def _step(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


GELU = Activation("gelu", _gelu, _gelu_first, _gelu_second)
GELU_TANH = Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_first, _gelu_tanh_second)
SILU = Activation("silu", torch.nn.functional.silu, _silu_first, _silu_second)
RELU = Activation("relu", torch.relu, _step, torch.zeros_like)
RELU_SQUARED = Activation(
    "relu_squared", lambda z: torch.relu(z) ** 2, lambda z: 2 * torch.relu(z), lambda z: 2 * _step(z)
)

_BY_CONFIG_NAME = {
    "gelu": GELU,
    "gelu_python": GELU,
    "gelu_new": GELU_TANH,
    "gelu_fast": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "silu": SILU,
    "swish": SILU,
    "relu": RELU,
    "relu2": RELU_SQUARED,
}


def activation_by_name(name: str) -> Activation:
    """The activation that a Hugging Face config calls `name` (`hidden_act`); ModelError if it is not supported."""
    try:
        return _BY_CONFIG_NAME[name]
    except KeyError:
        known = ", ".join(sorted(_BY_CONFIG_NAME))
        raise ModelError(f"the MLP's activation function '{name}' is not supported.", f"Supported: {known}.") from None


@dataclass(frozen=True)
class Mlp:
    """A plain MLP `f(x) = phi(x W_in + b_in) W_out + b_out`."""

    W_in: Float[Tensor, "d_in d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_out"]
    b_out: Float[Tensor, "d_out"]
    activation: Activation

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
        return self.W_in.shape[1]

    def hidden(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_mlp"]:
        """Pre-activations z of the hidden neurons."""
        return torch.addmm(self.b_in, x.reshape(-1, self.d_in), self.W_in).reshape(*x.shape[:-1], self.d_mlp)

    def output(self, z: Float[Tensor, "*tokens d_mlp"]) -> Float[Tensor, "*tokens d_out"]:
        """The MLP's output from its hidden pre-activations."""
        phi = self.activation.f(z).reshape(-1, self.d_mlp)
        return torch.addmm(self.b_out, phi, self.W_out).reshape(*z.shape[:-1], self.d_out)

    def __call__(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_out"]:
        """The MLP's output."""
        return self.output(self.hidden(x))

    def folded(self, gain: Float[Tensor, "d_in"], bias: Float[Tensor, "d_in"]) -> Mlp:
        """The same function of `n`, where the MLP's input is `n * gain + bias`: LayerNorm's affine part folded in."""
        W_in, b_in = gain[:, None] * self.W_in, self.b_in + bias @ self.W_in
        return Mlp(W_in, b_in, self.W_out, self.b_out, self.activation)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Mlp:
        """The same MLP on another device or in another precision."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        return Mlp(moved(self.W_in), moved(self.b_in), moved(self.W_out), moved(self.b_out), self.activation)
