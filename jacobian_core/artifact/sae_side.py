"""One side's SAE from a folder: a sae_lens folder of any supported family, or that side's half of a published pair.

The SAE is built by sae_lens's own loader, from settings and tensors that were judged before.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jacobian_core.artifact.files import CONFIG_NAME, WEIGHTS_NAME
from jacobian_core.artifact.hooks import check_hook
from jacobian_core.artifact.sae_config import FOLDED_NORM, TRANSCODERS, SaeSettings, read_sae_settings
from jacobian_core.artifact.sae_weights import (
    FAMILY_TENSORS,
    TENSORS,
    check_declared_widths,
    check_shapes,
    read_tensors,
    tensor_names,
)
from jacobian_core.errors import ArtifactError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

Side = Literal["in", "out"]
SUFFIX: dict[Side, str] = {"in": "", "out": "_out"}
"""What a published pair's tensor names end in."""
_CALLED = {"topk": "a TopK pair", "standard": "a standard SAE", "jumprelu": "a JumpReLU SAE", "gated": "a gated SAE"}


@dataclass(frozen=True)
class LoadedSide:
    """An SAE, what its cfg.json says, and the file and tensor that its encoder came from."""

    sae: SAE[Any]
    settings: SaeSettings
    source: str


def published_names(side: Side) -> dict[str, str]:
    """Tensors of a published pair that belong to a side."""
    return {key: f"_{key}{SUFFIX[side]}" for key in TENSORS}


def load_side(folder: Path, side: Side, device: str, norm_factor: float | None = None) -> LoadedSide:
    """The SAE in `folder` for its side of the MLP.

    `norm_factor` is what activations were multiplied by in training. Raises ArtifactError that names the file and the
    field or tensor for anything missing, damaged or unsupported.
    """
    path = folder / WEIGHTS_NAME
    if published_names("in")["W_enc"] in tensor_names(path):
        loaded = load_half(folder, side, device)
        _check_factor(loaded.settings, side, norm_factor)
        return loaded
    settings = read_sae_settings(folder / CONFIG_NAME, side)
    _check_factor(settings, side, norm_factor)
    check_hook(settings.path, side, settings.hook_name, settings.hf_hook_name)
    names = {key: key for key in FAMILY_TENSORS[settings.family]}
    refuse_unknown(path, tensor_names(path) - set(names), settings.family)
    tensors = read_tensors(path, names)
    check_shapes(path, names, tensors, settings)
    check_declared_widths(path, "W_enc", tensors["W_enc"], settings)
    sae = _build(settings, tensors, device, settings.hook_name)
    if norm_factor is not None:
        sae.fold_activation_norm_scaling_factor(norm_factor)
    return LoadedSide(sae, settings, f"{WEIGHTS_NAME}: W_enc")


def load_transcoder(folder: Path, device: str, norm_factor: float | None = None) -> LoadedSide:
    """The transcoder in `folder`, from the MLP's input to its output; ArtifactError as `load_side`."""
    path = folder / WEIGHTS_NAME
    settings = read_sae_settings(folder / CONFIG_NAME, "transcoder")
    if norm_factor is not None:
        raise ArtifactError("sae.transcoder.norm_factor has no meaning: transcoders do not normalise.", "Remove it.")
    check_hook(settings.path, "in", settings.hook_name, settings.hf_hook_name)
    if settings.hook_name_out is not None:
        check_hook(settings.path, "out", settings.hook_name_out, None)
    names = {key: key for key in FAMILY_TENSORS[settings.family]}
    refuse_unknown(path, tensor_names(path) - set(names), settings.family)
    tensors = read_tensors(path, names)
    check_shapes(path, names, tensors, settings)
    check_declared_widths(path, "W_enc", tensors["W_enc"], settings)
    return LoadedSide(_build(settings, tensors, device, settings.hook_name), settings, f"{WEIGHTS_NAME}: W_enc")


def load_half(folder: Path, side: Side, device: str) -> LoadedSide:
    """One side's TopK SAE of a published pair."""
    path, names = folder / WEIGHTS_NAME, published_names(side)
    settings = read_sae_settings(folder / CONFIG_NAME)
    present = tensor_names(path)
    if not any(name.endswith("_out") for name in present):
        raise ArtifactError(
            f"{path} holds one SAE, not a pair: no tensor ends in _out.",
            "Use a Jacobian SAE pair, or two SAEs in the folders in/ and out/.",
        )
    refuse_unknown(path, present - set(published_names("in").values()) - set(published_names("out").values()))
    tensors = read_tensors(path, names)
    check_shapes(path, names, tensors, settings)
    if side == "in":
        check_declared_widths(path, names["W_enc"], tensors["W_enc"], settings)
    hook_name = settings.hook_name if side == "in" else f"blocks.{settings.layer}.hook_mlp_out"
    return LoadedSide(_build(settings, tensors, device, hook_name), settings, f"{WEIGHTS_NAME}: {names['W_enc']}")


def _check_factor(settings: SaeSettings, side: Side, norm_factor: float | None) -> None:
    """A factor must be given where the SAE was trained on scaled activations and does not say by how much."""
    table = f"sae.{'input' if side == 'in' else 'output'}"
    if settings.norm == FOLDED_NORM and norm_factor is None:
        raise ArtifactError(
            f"{settings.path}: normalize_activations = '{FOLDED_NORM}', and by which factor is not known.",
            f"Set norm_factor in [{table}] to what activations were multiplied by in training (sqrt(d_in) over their "
            f"mean norm), or fold it with sae_lens's fold_activation_norm_scaling_factor and save the SAE again.",
        )
    if settings.norm != FOLDED_NORM and norm_factor is not None:
        raise ArtifactError(
            f"{settings.path}: normalize_activations = '{settings.norm}', but {table}.norm_factor = {norm_factor:g}.",
            f"Remove norm_factor: only '{FOLDED_NORM}' leaves a factor out of the weights.",
        )


def _build(settings: SaeSettings, tensors: dict[str, Tensor], device: str, hook_name: str) -> SAE[Any]:
    """The SAE as sae_lens's disk loader makes it, fed with the checked settings and tensors."""
    from sae_lens import SAE

    width, latents = tensors["W_enc"].shape
    cfg = {**settings.sae_lens, "d_in": width, "d_sae": latents, "device": device, "dtype": "float32"}
    if settings.family in TRANSCODERS:
        cfg["d_out"] = tensors["W_dec"].shape[1]
    # The version keeps sae_lens from reading this modern configuration as a legacy one.
    cfg["metadata"] = {**settings.sae_lens["metadata"], "hook_name": hook_name, "sae_lens_version": version("sae-lens")}
    moved = {key: tensor.to(device) for key, tensor in tensors.items()}
    sae: SAE[Any] = SAE.load_from_disk(settings.path.parent, device=device, converter=lambda *_, **__: (cfg, moved))
    return sae.eval().requires_grad_(False)


def refuse_unknown(path: Path, names: set[str], family: str = "topk") -> None:
    """An unknown tensor (a threshold, a scaling factor) means mathematics that this loader does not know."""
    if names:
        shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise ArtifactError(
            f"{path} holds tensors that {_CALLED.get(family, family)} does not have: {shown}.",
            "Is its cfg.json its own? A language model's weights belong into a .safetensors of their own.",
        )
