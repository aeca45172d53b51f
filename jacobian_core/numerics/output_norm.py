"""An output SAE that normalises what it reads: its norm is moved behind the MLP, where J and K have closed forms.

The code is `select(n(y) W_enc + b_enc)` with `n` sae_lens's run-time norm, and only the norm is not affine. So it is
differentiated as part of the MLP, and what is left of the SAE is affine. The price: derivatives of such a pair cost
what a norm behind the MLP costs.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from jacobian_core.errors import ArtifactError
from jacobian_core.model.mlp import Mlp, OutputNorm
from jacobian_core.numerics.sae import LAYER_NORM_EPS, Dictionary


def move_norm(mlp: Mlp, outputs: Dictionary) -> tuple[Mlp, Dictionary]:
    """The same function from the MLP's input to the code, the output SAE's norm being the MLP's.

    Raises ArtifactError for `layer_norm` on a model whose MLP has a norm of its own: two norms in a row, each with an
    epsilon, are not one.
    """
    if outputs.norm == "none":
        return mlp, outputs
    ones = torch.ones_like(mlp.b_out)
    if outputs.norm == "constant_norm_rescale":
        # It does not see its input's length, so of a norm in front of it only the gain is left.
        gain = ones if mlp.norm is None else mlp.norm.gain
        moved = replace(mlp, W_out=mlp.W_out * gain, b_out=mlp.b_out * gain, norm=OutputNorm(ones, 0.0))
        return moved, replace(outputs, norm="none")
    if mlp.norm is not None:
        raise ArtifactError(
            "the output SAE has normalize_activations = 'layer_norm', and this model's MLP has a norm of its own.",
            "Use an output SAE without it: the two norms are not one.",
        )
    W_out = mlp.W_out - mlp.W_out.mean(dim=1, keepdim=True)
    b_out = mlp.b_out - mlp.b_out.mean()
    norm = OutputNorm(ones, LAYER_NORM_EPS, unbiased=True)
    return replace(mlp, W_out=W_out, b_out=b_out, norm=norm), replace(outputs, norm="none")
