"""Tiny SAEs in the layouts of real releases, as their repositories keep them: the same files, names and orientations.

What sae_lens derives from names (a width, a model) stays what the real name says, so the shapes of such a fixture are
given by overriding nothing but the sizes of its tensors; sae_lens checks them when it loads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

GEMMA_WIDTH, GEMMA_LATENTS = 2304, 16_384
"""Gemma 2 2B's residual width and the smallest width in its release: sae_lens takes both from the names."""


def tensors(d_in: int, latents: int, seed: int = 0, d_out: int | None = None) -> dict[str, Tensor]:
    """Random weights of a JumpReLU SAE in float32."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    return {
        "W_enc": random(d_in, latents), "b_enc": random(latents), "W_dec": random(latents, d_out or d_in),
        "b_dec": random(d_out or d_in), "threshold": random(latents).abs(),
    }  # fmt: skip


def gemma_scope(folder: Path, weights: dict[str, Tensor]) -> None:
    """`params.npz` as Gemma Scope's SAEs and transcoders have it."""
    folder.mkdir(parents=True)
    names = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    np.savez(folder / "params.npz", **{name: weights[key].numpy() for key, name in names.items()})


def gemma_scope_2(folder: Path, weights: dict[str, Tensor], config: dict[str, object]) -> None:
    """`config.json` and `params.safetensors` as Gemma Scope 2 has them; a skip connection is (d_in, d_out)."""
    folder.mkdir(parents=True)
    stored = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    content = {name: weights[key].contiguous() for name, key in stored.items()}
    if "W_skip" in weights:
        content["affine_skip_connection"] = weights["W_skip"].T.contiguous()
    save_file(content, str(folder / "params.safetensors"))
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", **config}))


def llama_scope(folder: Path, weights: dict[str, Tensor], hook: str, norm: float, threshold: float) -> None:
    """`hyperparams.json` and `checkpoints/final.safetensors` as Llama Scope has them, in bfloat16."""
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T, "decoder.bias": weights["b_dec"],
    }  # fmt: skip
    content = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in content.items()}
    save_file(content, str(folder / "checkpoints/final.safetensors"))
    settings = {
        "hook_point_in": hook, "hook_point_out": hook, "d_model": weights["W_enc"].shape[0],
        "d_sae": weights["W_enc"].shape[1], "act_fn": "jumprelu", "jump_relu_threshold": threshold,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm},
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "dtype": "torch.bfloat16",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(settings))


def qwen_transcoders(folder: Path, weights: dict[str, Tensor], layer: int) -> None:
    """`layer_N.safetensors` with one configuration for all, as the Qwen 3 transcoders of mwhanna are kept."""
    folder.mkdir(parents=True)
    content = {key: weights[key].contiguous() for key in ("b_enc", "W_dec", "b_dec")}
    save_file({**content, "W_enc": weights["W_enc"].T.contiguous()}, str(folder / f"layer_{layer}.safetensors"))
    width, latents = weights["W_enc"].shape
    (folder / "config.yaml").write_text("model_name: Qwen/Qwen3-0.6B\n")
    (folder / "wandb-config.yaml").write_text(
        f"d_model:\n  value: {width}\nd_feature:\n  value: {latents}\nbatch_size:\n  value: 32\n"
    )
