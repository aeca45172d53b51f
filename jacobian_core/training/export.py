"""Write a trained pair as published artifacts are: `cfg.json` with SAELens 3 keys and `sae_weights.safetensors`.

Tensor names carry a leading underscore, those of the output dictionary end in `_out`. What the format has no key for
(the figures, the whole configuration) goes into `training.json` beside them, which readers of the format ignore.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.pair import TrainedPair
from jacobian_core.training.pair_evaluation import PairEvaluation

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FIGURES_FILE = "training.json"
PARTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def published_config(config: TrainPairConfig, d_in: int) -> dict[str, Any]:
    """The keys of a published pair's `cfg.json`.

    One key is ours, and only in pairs on a randomised model, which is not stored but drawn again: its seed.
    """
    seed = {"randomised_weights_seed": config.model.randomise_seed} if config.model.weights == "randomised" else {}
    return seed | {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": config.active_latents},
        "d_in": d_in,
        "d_sae": config.latents,
        "hook_name": f"blocks.{config.model.layer}.ln2.hook_normalized",
        "hook_layer": config.model.layer,
        "hook_head_index": None,
        "is_pair": True,
        "use_jacobian_loss": config.jacobian_coefficient > 0,
        "jacobian_coefficient": config.jacobian_coefficient,
        "apply_b_dec_to_input": False,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "context_size": config.context_tokens,
        "prepend_bos": True,
        "dtype": config.storage_dtype,
        "device": "cpu",
        "model_name": config.model_name or config.model.name,
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "dataset_path": config.dataset_name or config.training_shards[0].parent.as_posix(),
        "dataset_trust_remote_code": False,
        "sae_lens_training_version": None,
    }


def pair_tensors(pair: DictionaryPair, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The published names and tensors of a pair, on the CPU.

    A latent whose weights do not fit the dtype's range would become infinite: that raises `ValueError`.
    """
    tensors = {}
    for dictionary, suffix in ((pair.inputs, ""), (pair.outputs, "_out")):
        for part in PARTS:
            tensor = getattr(dictionary, part).detach().to(device="cpu", dtype=dtype).contiguous()
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"_{part}{suffix} is not finite as {dtype}")
            tensors[f"_{part}{suffix}"] = tensor
    return tensors


def export_pair(folder: Path, config: TrainPairConfig, trained: TrainedPair, evaluation: PairEvaluation) -> None:
    """Write `cfg.json`, `sae_weights.safetensors` and `training.json`; each file is replaced in one step."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = pair_tensors(trained.pair, getattr(torch, config.storage_dtype))
    figures = {
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds),
        "held_out": asdict(evaluation),
        "last_record": asdict(trained.last_record) if trained.last_record else {},
        "config": config.model_dump(mode="json"),
    }
    _replace(folder / WEIGHTS_FILE, save(tensors))
    _replace(folder / FIGURES_FILE, (json.dumps(figures, indent=2) + "\n").encode())
    published = published_config(config, trained.pair.inputs.W_enc.shape[0])
    _replace(folder / CONFIG_FILE, (json.dumps(published, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    temporary.replace(path)
