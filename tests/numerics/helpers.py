"""Small random sandwiches, and the dense autoencoder that the reference works on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jacobian_core.model.activation_functions import GELU, Activation
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.neurons import PlainNeurons
from jacobian_core.numerics.codes import TopK
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.sandwich import EvaluateAt, Sandwich


@dataclass(frozen=True)
class DenseTopK:
    """A TopK SAE in its textbook form, dense and differentiable; ties at the boundary go to the lower latent."""

    dictionary: Dictionary

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.dictionary.W_enc + self.dictionary.b_enc
        selection = self.dictionary.selection
        assert isinstance(selection, TopK)
        chosen = torch.sort(pre, dim=-1, descending=True, stable=True).indices[..., : selection.k]
        mask = torch.zeros_like(pre).scatter(-1, chosen, 1.0)
        return torch.relu(pre) * mask

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.dictionary.W_dec + self.dictionary.b_dec


def random_dictionary(generator: torch.Generator, d: int, n: int, k: int, bias: float = 0.0) -> Dictionary:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec = draw(n, d)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return Dictionary(draw(d, n) / d**0.5, 0.3 * draw(n) + bias, W_dec, draw(d), TopK(k))


def random_sandwich(
    seed: int = 0,
    d_in: int = 7,
    d_mlp: int = 19,
    d_out: int = 5,
    n: tuple[int, int] = (23, 31),
    k: tuple[int, int] = (4, 6),
    out_bias: float = 0.0,
    activation: Activation = GELU,
    evaluate_at: EvaluateAt = "reconstruction",
) -> Sandwich:
    """A float64 sandwich with different widths in and out; `out_bias` < 0 makes selected output latents clamp."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mlp = Mlp(
        draw(d_in, d_mlp) / d_in**0.5,
        0.3 * draw(d_mlp),
        draw(d_mlp, d_out) / d_mlp**0.5,
        draw(d_out),
        PlainNeurons(activation),
    )
    inputs = random_dictionary(g, d_in, n[0], k[0])
    outputs = random_dictionary(g, d_out, n[1], k[1], out_bias)
    return Sandwich.build(inputs, mlp, outputs, evaluate_at)


def to_float32(sandwich: Sandwich) -> Sandwich:
    parts = (part.to("cpu", torch.float32) for part in (sandwich.inputs, sandwich.mlp, sandwich.outputs))
    return Sandwich.build(*parts, sandwich.evaluate_at)
