"""An artifact's folder becomes a pair of sae_lens SAEs: one on the MLP's input, one on its output.

Two layouts are read: the published one (a `cfg.json` and a `sae_weights.safetensors` that holds both TopK SAEs, the
output's tensors ending in `_out`) and two sae_lens folders, `in/` and `out/`, of any supported families. The SAEs are
built by sae_lens's own loader; what it would accept silently (see `sae_config`) is refused before.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jacobian_core.artifact.files import CONFIG_NAME, RECORD_NAME, SPARSITY_NAME, WEIGHTS_NAME
from jacobian_core.artifact.sae_config import SaeSettings, read_layer, read_sae_settings
from jacobian_core.artifact.sae_weights import (
    FAMILY_TENSORS,
    TENSORS,
    check_declared_widths,
    check_shapes,
    encoder_width,
    read_tensors,
    tensor_names,
)
from jacobian_core.errors import ArtifactError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_CALLED = {"topk": "a TopK pair", "standard": "a standard SAE", "jumprelu": "a JumpReLU SAE", "gated": "a gated SAE"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaePair:
    """Two float32 SAEs around one MLP; `input.cfg.d_in` is the MLP's input width, `output.cfg.d_in` its output width.

    `encoder_tensors` says which file and tensor each encoder came from, for error messages. `model_weights` is the
    language model's own weights inside the artifact (pairs trained on a randomised model), `artifact_config` the raw
    cfg.json of the input SAE.
    """

    input: SAE[Any]
    output: SAE[Any]
    layer: int
    hook_name: str
    model_name: str | None
    context_tokens: int | None
    model_weights: Path | None
    artifact_config: dict[str, Any]
    folder: Path
    encoder_tensors: tuple[str, str]


def load_sae_pair(folder: Path, device: str = "cpu") -> SaePair:
    """Load the pair in `folder` in float32, ready for inference.

    Raises ArtifactError that names the file and the field or tensor for anything missing, damaged or unsupported.
    """
    if (folder / CONFIG_NAME).exists() or (folder / WEIGHTS_NAME).exists():
        return _load_published(folder, device)
    if (folder / "in").is_dir() and (folder / "out").is_dir():
        return _load_two_folders(folder, device)
    if not folder.is_dir():
        raise ArtifactError(f"There is no folder {folder}.", "Give the folder that holds the SAE pair.")
    raise ArtifactError(
        f"{folder} holds no SAE pair: neither {CONFIG_NAME} with {WEIGHTS_NAME}, nor the folders in/ and out/.",
        _pickle_hint(folder) or "Give the folder that holds them (sae.subfolder for one inside).",
    )


@dataclass(frozen=True)
class PairFacts:
    """What identifies a pair's place: its layer and the widths of its two SAEs."""

    layer: int
    n_in_latents: int
    n_out_latents: int


def describe_pair(folder: Path) -> PairFacts:
    """The facts of the pair in `folder`, from its headers alone: sae_lens, ten seconds to import, is not loaded.

    Raises ArtifactError as `load_sae_pair` does for missing or damaged files.
    """
    if (folder / "in").is_dir() and not (folder / CONFIG_NAME).exists():
        files = [(folder / side / WEIGHTS_NAME, "W_enc") for side in ("in", "out")]
        layer = read_layer(folder / "in" / CONFIG_NAME)
    else:
        files = [(folder / WEIGHTS_NAME, name) for name in ("_W_enc", "_W_enc_out")]
        layer = read_layer(folder / CONFIG_NAME)
    return PairFacts(layer, *(encoder_width(path, name) for path, name in files))


def check_pair_fits(pair: SaePair, d_model_in: int, d_model_out: int, model_layers: int) -> None:
    """Refuse a pair that can't sit on the model's MLP: input width, output width, or the layer's number."""
    remedy = f"Use the model that the pair was trained on ({pair.model_name or 'its cfg.json does not say which'})."
    sides = (("input", pair.input, d_model_in), ("output", pair.output, d_model_out))
    for (side, sae, width), source in zip(sides, pair.encoder_tensors, strict=True):
        if sae.cfg.d_in != width:
            raise ArtifactError(
                f"{pair.folder / source} has shape {(sae.cfg.d_in, sae.cfg.d_sae)}, expected {(width, sae.cfg.d_sae)}: "
                f"the MLP's {side} has {width} dimensions.",
                remedy,
            )
    if pair.layer >= model_layers:
        raise ArtifactError(
            f"{pair.folder}: {CONFIG_NAME} puts the pair on layer {pair.layer} ({pair.hook_name}), but the model has "
            f"layers 0 to {model_layers - 1}.",
            remedy,
        )


def model_weights_of(folder: Path) -> Path:
    """The language model's safetensors inside an artifact; ArtifactError if there is none, or more than one.

    A pickle is never opened: the error then says to convert it.
    """
    found = _extra_safetensors(folder)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ArtifactError(
            f"{folder} holds {len(found)} files that could be the language model's weights: {names}.",
            f"Keep exactly one .safetensors beside {WEIGHTS_NAME}.",
        )
    raise ArtifactError(
        f"{folder} holds no language model's weights (a second .safetensors beside {WEIGHTS_NAME}).",
        _pickle_hint(folder) or 'Set model.weights to "model" or "randomised".',
    )


def _load_published(folder: Path, device: str) -> SaePair:
    path = folder / WEIGHTS_NAME
    if not path.exists():
        remedy = _pickle_hint(folder) or "The artifact is incomplete; fetch it again."
        raise ArtifactError(f"{path} is missing.", remedy)
    settings = read_sae_settings(folder / CONFIG_NAME)
    present = tensor_names(path)
    if not any(name.endswith("_out") for name in present):
        raise ArtifactError(
            f"{path} holds one SAE, not a pair: no tensor ends in _out.",
            "Use a Jacobian SAE pair, or two SAEs in the folders in/ and out/.",
        )
    by_side = {side: {key: f"_{key}{suffix}" for key in TENSORS} for side, suffix in (("in", ""), ("out", "_out"))}
    _refuse_unknown(path, present - set(by_side["in"].values()) - set(by_side["out"].values()))
    saes: list[SAE[Any]] = []
    for side, names in by_side.items():
        tensors = read_tensors(path, names)
        check_shapes(path, names, tensors, settings)
        if side == "in":
            check_declared_widths(path, names["W_enc"], tensors["W_enc"], settings)
        hook_name = settings.hook_name if side == "in" else f"blocks.{settings.layer}.hook_mlp_out"
        saes.append(_build(settings, tensors, device, hook_name))
    sources = tuple(f"{WEIGHTS_NAME}: {names['W_enc']}" for names in by_side.values())
    return _pair(folder, saes, settings, sources)


def _load_two_folders(folder: Path, device: str) -> SaePair:
    saes: list[SAE[Any]] = []
    both: list[SaeSettings] = []
    sides: tuple[Literal["in", "out"], ...] = ("in", "out")
    for side in sides:
        path = folder / side / WEIGHTS_NAME
        settings = read_sae_settings(folder / side / CONFIG_NAME, side)
        names = {key: key for key in FAMILY_TENSORS[settings.family]}
        _refuse_unknown(path, tensor_names(path) - set(names), settings.family)
        tensors = read_tensors(path, names)
        check_shapes(path, names, tensors, settings)
        check_declared_widths(path, "W_enc", tensors["W_enc"], settings)
        saes.append(_build(settings, tensors, device, settings.hook_name))
        both.append(settings)
    if both[0].layer != both[1].layer:
        raise ArtifactError(
            f"{both[0].path} is on layer {both[0].layer}, {both[1].path} on layer {both[1].layer}.",
            "Both SAEs of a pair sit on the same MLP.",
        )
    return _pair(folder, saes, both[0], (f"in/{WEIGHTS_NAME}: W_enc", f"out/{WEIGHTS_NAME}: W_enc"))


def _pair(folder: Path, saes: list[SAE[Any]], settings: SaeSettings, sources: tuple[str, ...]) -> SaePair:
    extra = _extra_safetensors(folder)
    if len(extra) > 1:
        _log.warning("%s: several files beside %s; none is taken for the model's weights", folder, WEIGHTS_NAME)
    return SaePair(
        input=saes[0],
        output=saes[1],
        layer=settings.layer,
        hook_name=settings.hook_name,
        model_name=settings.model_name,
        context_tokens=settings.context_tokens,
        model_weights=extra[0] if len(extra) == 1 else None,
        artifact_config=settings.raw,
        folder=folder,
        encoder_tensors=(sources[0], sources[1]),
    )


def _build(settings: SaeSettings, tensors: dict[str, Tensor], device: str, hook_name: str) -> SAE[Any]:
    """The SAE as sae_lens's disk loader makes it, fed with the checked settings and tensors."""
    from sae_lens import SAE

    width, latents = tensors["W_enc"].shape
    cfg = {**settings.sae_lens, "d_in": width, "d_sae": latents, "device": device, "dtype": "float32"}
    # The version keeps sae_lens from reading this modern configuration as a legacy one.
    cfg["metadata"] = {**settings.sae_lens["metadata"], "hook_name": hook_name, "sae_lens_version": version("sae-lens")}
    moved = {key: tensor.to(device) for key, tensor in tensors.items()}
    sae: SAE[Any] = SAE.load_from_disk(settings.path.parent, device=device, converter=lambda *_, **__: (cfg, moved))
    return sae.eval().requires_grad_(False)


def _refuse_unknown(path: Path, names: set[str], family: str = "topk") -> None:
    """An unknown tensor (a threshold, a scaling factor) means mathematics that this loader does not know."""
    if names:
        shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise ArtifactError(
            f"{path} holds tensors that {_CALLED.get(family, family)} does not have: {shown}.",
            "Is its cfg.json its own? A language model's weights belong into a .safetensors of their own.",
        )


def _extra_safetensors(folder: Path) -> list[Path]:
    known = (WEIGHTS_NAME, SPARSITY_NAME)
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in known)


def _pickle_hint(folder: Path) -> str:
    """What to do where the weights exist only as a pickle: in the folder, or left out of it when it was fetched."""
    names = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        names.update(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8")).get("left_out", []))
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    if not pickles:
        return ""
    return f"Convert {', '.join(pickles)} to .safetensors: pickles can run code and are never opened."
