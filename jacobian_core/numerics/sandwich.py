"""From MLP inputs to everything that a token's Jacobian needs: codes, hidden pre-activations, output codes.

"Sandwich" is the notebook's word for decode -> MLP -> encode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from jacobian_core.model.mlp import Mlp
from jacobian_core.numerics.jacobian import JacobianKernel
from jacobian_core.numerics.output_norm import move_norm
from jacobian_core.numerics.precision import Precision
from jacobian_core.numerics.sae import Dictionary
from jacobian_core.numerics.state import NormState, SandwichState

EvaluateAt = Literal["reconstruction", "activation"]


@dataclass(frozen=True)
class Sandwich:
    """Input SAE, MLP and output SAE, with the products of their weights.

    Where the output SAE normalises, its norm stands behind `mlp` instead (`output_norm.py`), and `apart` keeps the
    MLP and that SAE as they are.
    """

    inputs: Dictionary
    mlp: Mlp
    outputs: Dictionary
    evaluate_at: EvaluateAt
    kernel: JacobianKernel
    apart: tuple[Mlp, Dictionary] | None = None

    @property
    def true_output(self) -> tuple[Mlp, Dictionary]:
        """The model's MLP and the output SAE that reads its output."""
        return self.apart or (self.mlp, self.outputs)

    @classmethod
    def build(
        cls,
        inputs: Dictionary,
        mlp: Mlp,
        outputs: Dictionary,
        evaluate_at: EvaluateAt,
        precision: Precision = "float32",
    ) -> Sandwich:
        """The sandwich with its weight products computed once.

        Raises ArtifactError for an output SAE whose norm can't stand behind this MLP.
        """
        apart = None if outputs.norm == "none" else (mlp, outputs)
        mlp, outputs = move_norm(mlp, outputs)
        kernel = JacobianKernel.build(inputs, mlp, outputs, precision)
        return cls(inputs, mlp, outputs, evaluate_at, kernel, apart)

    def state(self, x: Float[Tensor, "tokens d_in"]) -> SandwichState:
        """Codes and hidden pre-activations of a chunk of MLP inputs.

        The MLP is evaluated at the reconstruction or at `x` itself; in the latter case a change of the code moves the
        MLP's input along the decoder while the SAE's error is held.
        """
        normalised, token_norm = self.inputs.normalise(x)
        in_codes = self.inputs.encode(normalised)
        at = self.inputs.decode(in_codes, token_norm) if self.evaluate_at == "reconstruction" else x
        z = self.mlp.hidden(at)
        scale = None if token_norm is None else token_norm.scale
        if self.mlp.norm is None:
            return SandwichState(in_codes, self.outputs.encode(self.mlp.output(z)), z, scale)
        m = self.mlp.before_norm(z)
        norm = NormState(m, self.mlp.norm.divisor(m), m @ self.mlp.W_out.T, self.mlp.norm.root(m))
        return SandwichState(in_codes, self.outputs.encode(self.mlp.norm(m)), z, scale, norm)
