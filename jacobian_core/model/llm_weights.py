"""Language-model weights kept beside an SAE pair (pairs that were trained on a randomised model).

Published artifacts hold a TransformerLens state dict; others may hold the Hugging Face one. Both are loaded into the
Hugging Face module before the bridge wraps it. Only GPT-NeoX is published this way, so only its names are mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jacobian_core.errors import ModelError

_OUTPUT_EMBEDDING = ("lm_head.", "embed_out.")
"""Never executed here, and absent from the files of models whose embeddings are tied."""


def load_weights_beside(module: torch.nn.Module, path: Path) -> None:
    """Load the weights at `path` into a Hugging Face module in place.

    Raises:
        ModelError: a tensor is missing, of another shape, or not finite; nothing was changed then.
    """
    from safetensors.torch import load_file

    found = load_file(str(path))
    if "embed.W_E" in found:
        found = from_transformer_lens(found, path)
    parameters = {n: p for n, p in module.named_parameters() if not n.startswith(_OUTPUT_EMBEDDING)}
    missing = sorted(set(parameters) - set(found))
    wrong = [n for n in sorted(set(parameters) & set(found)) if parameters[n].shape != found[n].shape]
    if missing or wrong:
        what = f"misses {missing[0]}" if missing else f"has another shape for {wrong[0]}"
        raise ModelError(
            f"language-model weights {path.name} do not fit the model: the file {what} "
            f"({len(missing)} missing, {len(wrong)} of another shape).",
            "The file must be a Hugging Face or TransformerLens state dict of model.name.",
        )
    for name in parameters:
        if not bool(torch.isfinite(found[name]).all()):
            raise ModelError(f"language-model weights {path.name}: {name} is not finite.", "Fetch the artifact again.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])


def from_transformer_lens(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A GPT-NeoX state dict of TransformerLens under Hugging Face's names and in its layouts.

    LayerNorms without gain and bias (they were folded into the weights after them) become ones and zeros. Raises
    ModelError for another architecture.
    """
    layers = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    d_model = state["embed.W_E"].shape[1]
    found = {"gpt_neox.embed_in.weight": state["embed.W_E"]}
    try:
        for layer in range(layers):
            found |= _block(state, f"blocks.{layer}.", f"gpt_neox.layers.{layer}.", d_model)
    except KeyError as error:
        raise ModelError(
            f"language-model weights {path.name}: no tensor {error} as GPT-NeoX has it.",
            "Only GPT-NeoX models (Pythia) are read from a TransformerLens state dict.",
        ) from None
    return found | _norm(state, "ln_final.", "gpt_neox.final_layer_norm.", d_model)


def _norm(state: Mapping[str, Tensor], source: str, target: str, d_model: int) -> dict[str, Tensor]:
    gain, bias = state.get(f"{source}w", torch.ones(d_model)), state.get(f"{source}b", torch.zeros(d_model))
    return {f"{target}weight": gain, f"{target}bias": bias}


def _block(state: Mapping[str, Tensor], source: str, target: str, d_model: int) -> dict[str, Tensor]:
    """One block. Hugging Face keeps queries, keys and values of a head together: (head, 3, d_head) by d_model."""
    weights = torch.stack([state[f"{source}attn.W_{part}"].transpose(1, 2) for part in "QKV"], 1)
    biases = torch.stack([state[f"{source}attn.b_{part}"] for part in "QKV"], 1)
    W_O = state[f"{source}attn.W_O"]
    return {
        **_norm(state, f"{source}ln1.", f"{target}input_layernorm.", d_model),
        **_norm(state, f"{source}ln2.", f"{target}post_attention_layernorm.", d_model),
        f"{target}attention.query_key_value.weight": weights.reshape(-1, d_model),
        f"{target}attention.query_key_value.bias": biases.reshape(-1),
        f"{target}attention.dense.weight": W_O.reshape(-1, d_model).T,
        f"{target}attention.dense.bias": state[f"{source}attn.b_O"],
        f"{target}mlp.dense_h_to_4h.weight": state[f"{source}mlp.W_in"].T,
        f"{target}mlp.dense_h_to_4h.bias": state[f"{source}mlp.b_in"],
        f"{target}mlp.dense_4h_to_h.weight": state[f"{source}mlp.W_out"].T,
        f"{target}mlp.dense_4h_to_h.bias": state[f"{source}mlp.b_out"],
    }
