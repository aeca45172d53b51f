"""Sandwiches with random weights on a device, and a clock for it.

Speed depends on shapes and on how often a latent is used, not on what training put into the weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jacobian_core.model.activation_functions import GELU, SILU
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.neurons import GatedNeurons, PlainNeurons
from jacobian_core.numerics.codes import TopK
from jacobian_core.numerics.gpu.gathered import TritonProducts
from jacobian_core.numerics.precision import Precision
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.sandwich import Sandwich


@dataclass(frozen=True)
class Size:
    """Widths of an MLP and its pair."""

    d_model: int
    d_mlp: int
    latents: int
    k: int
    tokens: int


PYTHIA = Size(d_model=512, d_mlp=2048, latents=16384, k=32, tokens=8192)
TOY = Size(d_model=8, d_mlp=33, latents=24, k=3, tokens=4)
_BIAS_SPREAD = 0.4


def random_sandwich(
    size: Size, device: str, precision: Precision = "float32", gated: bool = False, dtype: torch.dtype = torch.float32
) -> Sandwich:
    """The same weights for every precision and dtype; latents are used unevenly, as a trained SAE's are."""
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def dictionary() -> Dictionary:
        W_dec = torch.nn.functional.normalize(draw(size.latents, size.d_model), dim=1)
        bias = _BIAS_SPREAD * draw(size.latents)
        return Dictionary(W_dec.T.contiguous(), bias, W_dec, torch.zeros(size.d_model), TopK(size.k))

    d_state = size.d_mlp * (2 if gated else 1)
    weights = (draw(size.d_model, d_state) / size.d_model**0.5, 0.1 * draw(d_state))
    outward = (draw(size.d_mlp, size.d_model) / size.d_mlp**0.5, torch.zeros(size.d_model))
    mlp = Mlp(*weights, *outward, GatedNeurons(SILU) if gated else PlainNeurons(GELU))
    parts = [part.to(device, dtype) for part in (dictionary(), mlp, dictionary())]
    return Sandwich.build(parts[0], parts[1], parts[2], "reconstruction", precision)  # type: ignore[arg-type]


def with_kernels(sandwich: Sandwich) -> Sandwich:
    """The same with the Triton kernels, unproved: they are what is being verified."""
    return replace(sandwich, kernel=replace(sandwich.kernel, device=TritonProducts.of(sandwich.kernel)))


def inputs(size: Size, device: str, tokens: int | None = None) -> Tensor:
    """Random MLP inputs."""
    return torch.randn(tokens or size.tokens, size.d_model, generator=torch.Generator().manual_seed(2)).to(device)


def seconds(work: Callable[[], object], turns: int) -> float:
    """The median turn, after two to warm up; the device is idle before and after each."""
    spent = []
    for turn in range(turns + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if turn >= 2:
            spent.append(time.perf_counter() - started)
    return statistics.median(spent)
