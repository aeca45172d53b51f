"""Does the pair explain this model's activations? Fraction of variance unexplained, before a run and in every block.

A wrong reading of the MLP's input (DESIGN trap 2) loads, runs and gives numbers; its FVU gives it away. So does text of
another kind in the middle of a month, which is why each block measures again, on a sample: all of its tokens would cost
as much as the codes themselves, 128 of 4096 cost a percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.config import QualityConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.sandwich import Sandwich

_FEWEST_TOKENS = 32
"""Analysed tokens below which a block has no FVU of its own: their variance says too little."""


@dataclass(frozen=True)
class Fvu:
    """Fraction of variance unexplained by each SAE: the input SAE on x, the output SAE on mlp(x)."""

    fvu_in: float
    fvu_out: float
    tokens: int


def fraction_unexplained(x: Float[Tensor, "tokens d"], reconstruction: Float[Tensor, "tokens d"]) -> float:
    """`sum |x - x^|^2 / sum |x - mean(x)|^2` over tokens, in float64."""
    x = x.double()
    unexplained = (x - reconstruction.double()).square().sum()
    return float(unexplained / (x - x.mean(0)).square().sum())


def measure_fvu(inputs: Dictionary, mlp: Mlp, outputs: Dictionary, x: Float[Tensor, "tokens d_in"]) -> Fvu:
    """FVU of both SAEs on true activations `x`."""
    y = mlp(x)
    return Fvu(
        fvu_in=fraction_unexplained(x, inputs.reconstruct(x)),
        fvu_out=fraction_unexplained(y, outputs.reconstruct(y)),
        tokens=x.shape[0],
    )


@dataclass
class BlockFit:
    """FVU of both SAEs on `limit` evenly spaced tokens of one block, or on all where it has no more; 0: not measured.

    `figures` is what the block's marker keeps of it: nothing where the block is too short, or does not vary.
    """

    limit: int
    figures: dict[str, float] = field(default_factory=dict)

    def measure(self, sandwich: Sandwich, x: Float[Tensor, "tokens d_in"]) -> None:
        """Measure on true activations `x` of all analysed tokens of the block."""
        self.measure_by(lambda sample: measure_fvu(sandwich.inputs, *sandwich.true_output, sample), x)

    def measure_by(self, fvu_of: Callable[[Tensor], Fvu], x: Float[Tensor, "tokens d_in"]) -> None:
        """The same with another way to measure."""
        wanted = min(self.limit, x.shape[0])
        if wanted < min(_FEWEST_TOKENS, self.limit or 1):
            return
        sample = x[torch.arange(wanted, device=x.device) * x.shape[0] // wanted]
        fvu = fvu_of(sample)
        if math.isfinite(fvu.fvu_in) and math.isfinite(fvu.fvu_out):
            self.figures = {"fvu_in": fvu.fvu_in, "fvu_out": fvu.fvu_out, "fvu_tokens": fvu.tokens}


def refuse_wrong_search(sandwich: Sandwich, x: Float[Tensor, "tokens d_in"]) -> None:
    """ModelError if a low precision finds other codes than the SAEs' own does; it can't, unless a product is wrong."""
    sides = {"inputs": sandwich.inputs, "outputs": sandwich.outputs}
    if all(dictionary.search_dtype in (None, dictionary.W_enc.dtype) for dictionary in sides.values()):
        return
    exact = replace(
        sandwich, inputs=sandwich.inputs.searched_in("exact"), outputs=sandwich.outputs.searched_in("exact")
    )
    found, expected = sandwich.state(x), exact.state(x)
    for side in sides:
        quick, slow = getattr(found, side), getattr(expected, side)
        if not (torch.equal(quick.index, slow.index) and torch.equal(quick.value, slow.value)):
            raise ModelError(
                f"the SAE of the {side} gives other codes if its candidates are found in a low precision.",
                "This machine's low-precision products are not what they should be: set compute.encoder to 'exact'.",
            )


def refuse_bad_fit(fvu: Fvu, limits: QualityConfig, mlp_input: str) -> None:
    """ModelError if either SAE leaves more unexplained than the limits allow; the hint names the other convention."""
    other = "normalized" if mlp_input == "hook_in" else "hook_in"
    for side, found, limit in (("in", fvu.fvu_in, limits.max_fvu_in), ("out", fvu.fvu_out, limits.max_fvu_out)):
        if not found <= limit:
            raise ModelError(
                f"the {side}put SAE does not explain this model's activations: FVU {found:.3f} on {fvu.tokens} tokens, "
                f"limit quality.max_fvu_{side} = {limit:g}.",
                f"Is it the right model and layer? Try the other convention (--set model.mlp_input={other}), "
                f"or raise the limit.",
            )
