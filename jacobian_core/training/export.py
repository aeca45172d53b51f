"""Write a trained pair as published artifacts are, or as two folders that sae_lens loads.

The published format is one `cfg.json` with SAELens 3 keys and one `sae_weights.safetensors`, whose tensor names carry a
leading underscore; those of the output dictionary end in `_out`. What the formats have no key for (the figures, the
whole configuration) goes into `training.json` beside them, which readers of the formats ignore.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.export_files import CONFIG_FILE, FIGURES_FILE, WEIGHTS_FILE
from jacobian_core.training.pair import TrainedPair
from jacobian_core.training.pair_evaluation import PairEvaluation

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


def sae_lens_files(config: TrainPairConfig, pair: DictionaryPair) -> dict[str, bytes]:
    """What sae_lens itself would save of both dictionaries, by name; each folder's cfg.json comes last."""
    from safetensors.torch import save

    tensors = pair_tensors(pair, getattr(torch, config.storage_dtype))
    files: dict[str, bytes] = {}
    for side, suffix, hook in (("in", "", "mlp.hook_in"), ("out", "_out", "hook_mlp_out")):
        sae = _sae_lens_sae(config, {part: tensors[f"_{part}{suffix}"] for part in PARTS}, hook)
        files[f"{side}/{WEIGHTS_FILE}"] = save({name: t.contiguous() for name, t in sae.state_dict().items()})
        files[f"{side}/{CONFIG_FILE}"] = _json(sae.cfg.to_dict())
    return files


def _sae_lens_sae(config: TrainPairConfig, weights: dict[str, torch.Tensor], hook: str) -> Any:
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    d_in, d_sae = weights["W_enc"].shape
    metadata = SAEMetadata(
        model_name=config.model_name or config.model.name,
        hook_name=f"blocks.{config.model.layer}.{hook}",
        context_size=config.context_tokens,
        prepend_bos=True,
        dataset_path=config.dataset_name or config.training_shards[0].parent.as_posix(),
    )
    cfg = TopKSAEConfig(
        d_in=d_in, d_sae=d_sae, k=config.active_latents, dtype=config.storage_dtype, device="cpu",
        apply_b_dec_to_input=False, normalize_activations="none", rescale_acts_by_decoder_norm=False, metadata=metadata,
    )  # fmt: skip
    sae = TopKSAE(cfg)
    sae.load_state_dict(weights)
    return sae


def export_pair(folder: Path, config: TrainPairConfig, trained: TrainedPair, evaluation: PairEvaluation) -> None:
    """Write the pair in the configured format, and `training.json`; each file is replaced in one step.

    The file that `last_file` names is written last, so where it is, all are.
    """
    from safetensors.torch import save

    figures = {
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds),
        "held_out": asdict(evaluation),
        "last_record": asdict(trained.last_record) if trained.last_record else {},
        "config": config.model_dump(mode="json"),
    }
    if config.export_format == "sae_lens":
        files = sae_lens_files(config, trained.pair)
    else:
        published = published_config(config, trained.pair.inputs.W_enc.shape[0])
        tensors = pair_tensors(trained.pair, getattr(torch, config.storage_dtype))
        files = {WEIGHTS_FILE: save(tensors), CONFIG_FILE: _json(published)}
    for name, content in ({FIGURES_FILE: _json(figures)} | files).items():
        _replace(folder / name, content)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    temporary.replace(path)
