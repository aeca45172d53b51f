"""One block's MLP, read out of the language model's own modules.

Weights are turned to (in, out) orientation by TransformerLens. Whether what is read here is the whole truth about the
module, `llm.prove_mlp` decides on real tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.errors import ModelError
from jacobian_core.model.activation_functions import Activation, activation_by_name
from jacobian_core.model.mlp import Mlp, OutputNorm
from jacobian_core.model.neurons import GatedNeurons, PlainNeurons

_ACTIVATION_FIELDS = ("hidden_activation", "activation_function", "hidden_act", "ffn_act_fn")
"""Fields of Hugging Face configs that name the activation function, the most specific first."""
_EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def read_mlp(bridge: Any, layer: int) -> Mlp:
    """The MLP of a block; ModelError for a mixture of experts and for what has no plain or gated MLP."""
    refuse_experts(bridge, layer)
    block = bridge.blocks[layer]
    if not hasattr(block, "mlp"):
        raise ModelError(f"block {layer} has no MLP of its own.", "Set model.layer to a block with an MLP.")
    mlp = block.mlp
    activation = _activation(bridge)
    W_in, W_out = mlp.W_in.detach(), mlp.W_out.detach()
    b_in = _bias(mlp.b_in, W_in)
    norm = _norm_behind(block, W_out)
    if mlp.W_gate is None:
        return Mlp(W_in, b_in, W_out, _bias(mlp.b_out, W_out), PlainNeurons(activation), norm)
    W_gate = mlp.W_gate.detach()
    W_both = torch.cat([W_gate, W_in], dim=1)
    b_both = torch.cat([_bias(mlp.b_gate, W_gate), b_in])
    return Mlp(W_both, b_both, W_out, _bias(mlp.b_out, W_out), GatedNeurons(activation), norm)


def refuse_experts(bridge: Any, layer: int) -> None:
    """ModelError where the block is a mixture of experts: which expert runs is not differentiable."""
    configs = (bridge.cfg, bridge.original_model.config)
    experts = any(getattr(config, field, None) for config in configs for field in _EXPERT_FIELDS)
    module = getattr(bridge.blocks[layer], "mlp", None)
    if experts or (module is not None and "MoE" in type(module).__name__):
        kind = bridge.original_model.config.model_type
        raise ModelError(
            f"block {layer} is a mixture of experts ({kind}), which is not supported.", "Use a dense model."
        )


def norm_follows(block: Any) -> bool:
    """Whether the block's only norm of the MLP comes behind it, as in OLMo 2, whose MLP reads the residual stream."""
    return getattr(getattr(block, "ln2", None), "name", None) == "post_feedforward_layernorm"


def _activation(bridge: Any) -> Activation:
    config = bridge.original_model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field in _ACTIVATION_FIELDS:
        if getattr(config, field, None):
            return activation_by_name(getattr(config, field))
    raise ModelError(
        f"the config of this {config.model_type} model names no activation function.",
        f"It must have one of the fields {', '.join(_ACTIVATION_FIELDS)}.",
    )


def _bias(bias: Tensor | None, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns"]:
    return weight.new_zeros(weight.shape[1]) if bias is None else bias.detach()


def _norm_behind(block: Any, W_out: Float[Tensor, "d_mlp d_out"]) -> OutputNorm | None:
    """The RMSNorm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2), None where there is none."""
    module = getattr(block, "ln2_post", None) or (block.ln2 if norm_follows(block) else None)
    if module is None:
        return None
    inner = _inner(module)
    eps = next((float(getattr(inner, name)) for name in ("eps", "variance_epsilon") if hasattr(inner, name)), None)
    if eps is None:
        raise ModelError("the norm behind the MLP is not an RMSNorm.", "Use a model without one, or with RMSNorm.")
    with torch.no_grad():
        return OutputNorm(_rms_gain(inner, W_out.shape[1]), eps)


def affine_in_front(block: Any, d_in: int) -> tuple[Float[Tensor, "d_in"], Float[Tensor, "d_in"]]:
    """Gain and bias of the norm in front of the MLP; ModelError where the MLP reads the residual stream itself."""
    if norm_follows(block):
        raise ModelError(
            "model.mlp_input is 'normalized', but this model has no norm in front of its MLP.",
            "Set model.mlp_input to 'hook_in'.",
        )
    norm = _inner(block.ln2)
    bias = getattr(norm, "bias", None)
    with torch.no_grad():
        if bias is not None:
            return norm.weight.detach(), bias.detach()
        gain = _rms_gain(norm, d_in)
        return gain, torch.zeros_like(gain)


def _inner(module: Any) -> Any:
    return getattr(module, "original_component", module)


def _rms_gain(norm: Any, width: int) -> Float[Tensor, "width"]:
    """An RMSNorm's gain: what it does to ones tells whether it is stored as it is, or less 1 (Gemma)."""
    weight: Tensor = norm.weight.detach()
    seen = norm(torch.ones(1, 1, width, dtype=weight.dtype, device=weight.device))[0, 0]
    return min(weight, 1 + weight, key=lambda gain: float((gain - seen).abs().max()))
