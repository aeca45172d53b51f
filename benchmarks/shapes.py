"""What is measured on: models of real shapes with random weights, and pairs whose latents are used unevenly.

Speed depends on shapes, not on what training put into the weights; only how often a latent is used matters, for SQL and
for the entries' size, so encoder biases are spread to give a skew like a trained SAE's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from jacobian_core.config import RunConfig
from jacobian_core.resources import project_path


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model's MLP and its pair."""

    name: str
    d_model: int
    layers: int
    heads: int
    latents: int
    k: int
    layer: int
    context: int


PYTHIA_70M = Shape("pythia-70m", d_model=512, layers=6, heads=8, latents=16384, k=32, layer=3, context=1024)
DEMO = Shape("demo", d_model=128, layers=4, heads=4, latents=1024, k=16, layer=2, context=256)
_BIAS_SPREAD = 0.4


def make_model(shape: Shape, folder: Path) -> None:
    """A GPT-NeoX of the shape with random weights and the demo's tokenizer, as a Hugging Face folder."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=shape.d_model, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.d_model, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(project_path("demo/model") / name, folder / name)


def make_pair(shape: Shape, folder: Path) -> None:
    """A random TopK pair in the published format; encoders are the decoders' transposes, biases are spread."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for suffix in ("", "_out"):
        W_dec = torch.randn(shape.latents, shape.d_model, generator=g)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        tensors |= {
            f"_W_enc{suffix}": W_dec.T.contiguous(),
            f"_b_enc{suffix}": _BIAS_SPREAD * torch.randn(shape.latents, generator=g),
            f"_W_dec{suffix}": W_dec,
            f"_b_dec{suffix}": torch.zeros(shape.d_model),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "sae_weights.safetensors"))
    settings = {
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": shape.k},
        "d_in": shape.d_model, "d_sae": shape.latents, "hook_name": f"blocks.{shape.layer}.ln2.hook_normalized",
        "hook_layer": shape.layer, "apply_b_dec_to_input": False, "normalize_activations": "none", "dtype": "float32",
        "is_pair": True, "context_size": shape.context, "prepend_bos": True,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(settings))


def make_config(shape: Shape, folder: Path, tokens: int, **groups: dict[str, object]) -> RunConfig:
    """A run of `tokens` tokens of the demo's text over the shape; model and pair are made where they are missing."""
    if not (folder / "model").is_dir():
        make_model(shape, folder / "model")
        make_pair(shape, folder / "pair")
    data: dict[str, object] = {
        "name": "bench",
        "sae": {"source": "folder", "location": str(folder / "pair")},
        "model": {"name": str(folder / "model")},
        "corpus": {
            "source": "folder", "location": str(project_path("demo/corpus")), "context_tokens": shape.context,
            "max_tokens": tokens,
        },
        "quality": {"max_fvu_in": 1e9, "max_fvu_out": 1e9},
        "lake": {"root": str(folder / "lake")},
        **groups,
    }  # fmt: skip
    return RunConfig.model_validate(data)
