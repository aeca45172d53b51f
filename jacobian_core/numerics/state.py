"""One chunk of tokens at the point where its derivatives are taken: all that any derivative needs of it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from jacobian_core.numerics.codes import Codes


@dataclass(frozen=True)
class NormState:
    """What a norm behind the MLP does at each token, for `y = gain * m / r(m)`.

    `r` is the norm's divisor, `root` its root of the mean square (`OutputNorm`), and `pulled = m W_out^T` reads how a
    change of the neurons changes `|m|^2 / 2`.
    """

    m: Float[Tensor, "tokens d_out"]
    r: Float[Tensor, "tokens 1"]
    pulled: Float[Tensor, "tokens d_mlp"]
    root: Float[Tensor, "tokens 1"]


@dataclass(frozen=True)
class SandwichState:
    """Codes and hidden pre-activations; `scale` is what a unit of the input code is worth where its SAE normalises."""

    inputs: Codes
    outputs: Codes
    z: Float[Tensor, "tokens d_state"]
    scale: Float[Tensor, "tokens 1"] | None = None
    norm: NormState | None = None

    def rows(self, part: slice) -> SandwichState:
        """The state of some of the tokens."""

        def codes(whole: Codes) -> Codes:
            return Codes(whole.index[part], whole.value[part], whole.margin[part])

        whole = self.norm
        norm = whole and NormState(whole.m[part], whole.r[part], whole.pulled[part], whole.root[part])
        scale = None if self.scale is None else self.scale[part]
        return SandwichState(codes(self.inputs), codes(self.outputs), self.z[part], scale, norm)
