"""An artifact's folder becomes a pair of sae_lens SAEs: one on the MLP's input, one on its output.

Two layouts are read: the published one (a `cfg.json` and a `sae_weights.safetensors` that holds both TopK SAEs, the
output's tensors ending in `_out`) and two folders, `in/` and `out/`, of any supported families (`sae_side.py`), which
are links where the SAEs were named apart. What sae_lens would accept silently (see `sae_config`) is refused before.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacobian_core.artifact.files import CONFIG_NAME, RECORD_NAME, SPARSITY_NAME, WEIGHTS_NAME
from jacobian_core.artifact.parts import PartFacts, read_parts
from jacobian_core.artifact.sae_config import read_layer
from jacobian_core.artifact.sae_side import LoadedSide, Side, load_half, load_side, published_names
from jacobian_core.artifact.sae_weights import encoder_width, tensor_names
from jacobian_core.errors import ArtifactError

if TYPE_CHECKING:
    from sae_lens import SAE

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
SIDES: tuple[Side, Side] = ("in", "out")
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
    """What identifies a pair's place: its layer and the widths of its two SAEs; and its parts, if named apart.

    Of a transcoder `n_in_latents` is its width, and `n_out_latents` 0 where there is no SAE on the MLP's output.
    """

    layer: int
    n_in_latents: int
    n_out_latents: int
    parts: dict[str, PartFacts] = field(default_factory=dict)
    transcoder: bool = False


def describe_pair(folder: Path) -> PairFacts:
    """The facts of the pair in `folder`, from its headers alone: sae_lens, ten seconds to import, is not loaded.

    Raises ArtifactError as `load_sae_pair` does for missing or damaged files.
    """
    if is_transcoder(folder):
        return _describe_transcoder(folder)
    if (folder / "in").is_dir() and not (folder / CONFIG_NAME).exists():
        files = [(folder / side / WEIGHTS_NAME, _encoder_in(folder / side / WEIGHTS_NAME, side)) for side in SIDES]
        layer = read_layer(folder / "in" / CONFIG_NAME)
    else:
        files = [(folder / WEIGHTS_NAME, published_names(side)["W_enc"]) for side in SIDES]
        layer = read_layer(folder / CONFIG_NAME)
    n_in, n_out = (encoder_width(path, name) for path, name in files)
    return PairFacts(layer, n_in, n_out, read_parts(folder))


def is_transcoder(folder: Path) -> bool:
    """Whether the artifact in `folder` is a transcoder, with or without an SAE on the MLP's output."""
    return (folder / "transcoder").is_dir() and not (folder / CONFIG_NAME).exists()


def _describe_transcoder(folder: Path) -> PairFacts:
    n_in = encoder_width(folder / "transcoder" / WEIGHTS_NAME, "W_enc")
    path = folder / "out" / WEIGHTS_NAME
    n_out = encoder_width(path, _encoder_in(path, "out")) if path.parent.is_dir() else 0
    return PairFacts(read_layer(folder / "transcoder" / CONFIG_NAME), n_in, n_out, read_parts(folder), transcoder=True)


def _encoder_in(path: Path, side: Side) -> str:
    """The name of a side's encoder in a sae_lens folder, or in a published pair of which it is the half."""
    half = published_names(side)["W_enc"]
    return half if half in tensor_names(path) else "W_enc"


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
    return _pair(folder, [load_half(folder, side, device) for side in SIDES], "")


def _load_two_folders(folder: Path, device: str) -> SaePair:
    """The folders `in/` and `out/`, or what they link to where the SAEs were named apart."""
    parts = read_parts(folder)
    factors = {side: parts[side].norm_factor if side in parts else None for side in SIDES}
    both = [load_side(folder / side, side, device, factors[side]) for side in SIDES]
    inputs, outputs = (loaded.settings for loaded in both)
    if inputs.layer != outputs.layer:
        raise ArtifactError(
            f"{inputs.path} is on layer {inputs.layer}, {outputs.path} on layer {outputs.layer}.",
            "Both SAEs of a pair sit on the same MLP.",
        )
    return _pair(folder, both, "{side}/")


def _pair(folder: Path, both: list[LoadedSide], where: str) -> SaePair:
    extra = _extra_safetensors(folder)
    if len(extra) > 1:
        _log.warning("%s: several files beside %s; none is taken for the model's weights", folder, WEIGHTS_NAME)
    settings = both[0].settings
    sources = [where.format(side=side) + loaded.source for side, loaded in zip(SIDES, both, strict=True)]
    return SaePair(
        input=both[0].sae,
        output=both[1].sae,
        layer=settings.layer,
        hook_name=settings.hook_name,
        model_name=settings.model_name,
        context_tokens=settings.context_tokens,
        model_weights=extra[0] if len(extra) == 1 else None,
        artifact_config=settings.raw,
        folder=folder,
        encoder_tensors=(sources[0], sources[1]),
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
