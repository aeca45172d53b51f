"""From MLP inputs to everything that a token's Jacobian needs: codes, hidden pre-activations, output codes.

"Sandwich" is the notebook's word for decode -> MLP -> encode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.codes import Codes, Dictionary
from jacobian_core.numerics.jacobian import JacobianKernel

EvaluateAt = Literal["reconstruction", "activation"]


@dataclass(frozen=True)
class SandwichState:
    """One chunk of tokens at the point where its derivatives are taken."""

    inputs: Codes
    outputs: Codes
    z: Float[Tensor, "tokens d_mlp"]


@dataclass(frozen=True)
class Sandwich:
    """Input SAE, MLP and output SAE, with the products of their weights."""

    inputs: Dictionary
    mlp: Mlp
    outputs: Dictionary
    evaluate_at: EvaluateAt
    kernel: JacobianKernel

    @classmethod
    def build(cls, inputs: Dictionary, mlp: Mlp, outputs: Dictionary, evaluate_at: EvaluateAt) -> Sandwich:
        """The sandwich with its weight products computed once."""
        return cls(inputs, mlp, outputs, evaluate_at, JacobianKernel.build(inputs, mlp, outputs))

    def state(self, x: Float[Tensor, "tokens d_in"]) -> SandwichState:
        """Codes and hidden pre-activations of a chunk of MLP inputs.

        The MLP is evaluated at the reconstruction or at `x` itself; in the latter case a change of the code moves the
        MLP's input along the decoder while the SAE's error is held.
        """
        in_codes = self.inputs.encode(x)
        at = self.inputs.decode(in_codes) if self.evaluate_at == "reconstruction" else x
        z = self.mlp.hidden(at)
        return SandwichState(in_codes, self.outputs.encode(self.mlp.output(z)), z)
