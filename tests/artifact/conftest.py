"""A small pair in the published format, and an environment in which no test can reach the user's accounts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

WIDTH, LATENTS, OUT_WIDTH, OUT_LATENTS, K = 6, 20, 5, 14, 3

CANARY = "canary0123456789canary0123456789canary01"
"""A key of the right form that must never show up in a message, a log or a file."""


def published_config(**changes: Any) -> dict[str, Any]:
    """A legacy cfg.json as the published pairs carry it; a change to None removes the key."""
    config: dict[str, Any] = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": False,
        "context_size": 256,
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "device": "cuda",
        "dtype": "torch.float32",
        "finetuning_scaling_factor": False,
        "hook_layer": 3,
        "hook_name": "blocks.3.ln2.hook_normalized",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "model_name": "pythia-70m-deduped",
        "normalize_activations": "none",
        "randomize_llm_weights": False,
        "use_jacobian_loss": True,
    }
    config.update(changes)
    return {name: value for name, value in config.items() if value is not None}


def published_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors of a pair whose input and output differ in width and in number of latents."""
    random = torch.Generator().manual_seed(7)
    shapes = {
        "_W_enc": (WIDTH, LATENTS), "_b_enc": (LATENTS,), "_W_dec": (LATENTS, WIDTH), "_b_dec": (WIDTH,),
        "_W_enc_out": (OUT_WIDTH, OUT_LATENTS), "_b_enc_out": (OUT_LATENTS,),
        "_W_dec_out": (OUT_LATENTS, OUT_WIDTH), "_b_dec_out": (OUT_WIDTH,),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def published_files() -> dict[str, bytes]:
    """The two files of a published pair."""
    return {
        "cfg.json": json.dumps(published_config()).encode(),
        "sae_weights.safetensors": save(published_tensors()),
    }


@pytest.fixture
def write_pair(tmp_path: Path) -> Callable[..., Path]:
    """Write a published pair: `config` changes keys, `tensors` replaces or (None) removes them."""

    def write(folder: str = "pair", tensors: dict[str, Any] | None = None, **config: Any) -> Path:
        target = tmp_path / folder
        target.mkdir()
        content = {**published_tensors(), **(tensors or {})}
        (target / "sae_weights.safetensors").write_bytes(save({k: v for k, v in content.items() if v is not None}))
        (target / "cfg.json").write_text(json.dumps(published_config(**config)))
        return target

    return write


@pytest.fixture
def no_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, no keys, no settings of wandb or the hub; returns the home."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_CACHE_DIR", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return home
