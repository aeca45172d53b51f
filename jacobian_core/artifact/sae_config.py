"""One SAE's `cfg.json`: read, judged field by field, and handed to sae_lens.

sae_lens drops unknown keys and fills missing ones (k = 100 where an artifact forgot k), which turns an unsupported SAE
into a wrong one without a word. So every field that changes the mathematics is looked at here first, in both spellings:
the published pairs' legacy keys (`activation_fn_str`, `activation_fn_kwargs`, `hook_layer`) and sae_lens 6's own.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jacobian_core.errors import ArtifactError

_LAYER = re.compile(r"(?:^|\.)blocks\.(\d+)(?:\.|$)")
_SUPPORTED = "Supported are TopK SAEs without activation normalisation, as the published pairs are."
_SUPPORTED_APART = "Supported in the folders in/ and out/ are the sae_lens families standard, topk, jumprelu and gated."
_NO_NORM: tuple[object, ...] = (None, False, "none")
_RUN_TIME_NORMS: tuple[object, ...] = ("layer_norm", "constant_norm_rescale")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
FOLDED_NORM = "expected_average_only_in"
"""The norm that only scales, by one factor for all tokens: it is folded into the weights (sae_lens's word for it)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaeSettings:
    """What one `cfg.json` says, checked: `raw` as it stands in the file, `sae_lens` as sae_lens wants it.

    `family` is sae_lens's architecture, `norm` its activation norm, `k` is null but for TopK. `width_in` and
    `width_sae` are the file's `d_in` and `d_sae`, null where it leaves them to the tensors.
    """

    path: Path
    raw: dict[str, Any]
    sae_lens: dict[str, Any]
    family: str
    norm: str
    k: int | None
    layer: int
    hook_name: str
    model_name: str | None
    hf_hook_name: str | None
    context_tokens: int | None
    width_in: int | None
    width_sae: int | None
    hook_name_out: str | None = None


def read_sae_settings(path: Path, side: Literal["pair", "in", "out", "transcoder"] = "pair") -> SaeSettings:
    """Read and judge a `cfg.json`; ArtifactError names the file, the field and what is supported.

    `side` is "pair" for a file that speaks for both SAEs, which are TopK then; SAEs apart can be of other families, and
    can normalise their activations.
    """
    raw = _read_json(path)
    transcoder = side == "transcoder"
    family = _read_transcoder(path, raw) if transcoder else _read_family(path, raw, apart=side != "pair")
    norm = _read_norm(raw)
    allowed: tuple[object, ...] = (True, FOLDED_NORM) if side in ("in", "out") else ()
    _check_neutral_fields(path, raw, (*_RUN_TIME_NORMS, *allowed) if allowed else ())
    k = _read_k(path, raw) if family == "topk" else None
    hook_name, layer = _read_hook(path, raw)
    return SaeSettings(
        path=path,
        raw=raw,
        sae_lens=_to_sae_lens(path, raw, family, k),
        family=family,
        norm=norm,
        k=k,
        layer=layer,
        hook_name=hook_name,
        model_name=_read_text(path, raw, "model_name"),
        hf_hook_name=_read_text(path, raw, "hf_hook_name"),
        context_tokens=_read_count(path, raw, "context_size"),
        width_in=_read_count(path, raw, "d_in"),
        width_sae=_read_count(path, raw, "d_sae"),
        hook_name_out=_read_text(path, raw, "hook_name_out"),
    )


def read_layer(path: Path) -> int:
    """The layer that a cfg.json puts its SAE on, without loading sae_lens; ArtifactError where it names none."""
    return _read_hook(path, _read_json(path))[1]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing.", "The artifact is incomplete; fetch it again.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON: {error}.", "Fetch the artifact again.") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} holds a {type(raw).__name__}, not an object.", "It must be an SAE's cfg.json.")
    return raw


def _field(raw: dict[str, Any], *names: str) -> tuple[str, Any]:
    """The first of `names` that is set, at the top or in `metadata`; (names[0], None) if none is."""
    metadata = raw.get("metadata")
    for group in (raw, metadata if isinstance(metadata, dict) else {}):
        for name in names:
            if group.get(name) is not None:
                return name, group[name]
    return names[0], None


def _refuse(path: Path, field: str, value: object, remedy: str = _SUPPORTED) -> ArtifactError:
    return ArtifactError(f"{path}: {field} = {json.dumps(value, default=str)} is not supported.", remedy)


def _read_family(path: Path, raw: dict[str, Any], apart: bool) -> str:
    """Legacy files say architecture 'standard' and activation 'topk'; sae_lens 6 says architecture 'topk'."""
    _, architecture = _field(raw, "architecture")
    field, activation = _field(raw, "activation_fn_str", "activation_fn")
    if apart and architecture in ("standard", "jumprelu", "gated") and activation in (None, "relu"):
        return str(architecture)
    remedy = _SUPPORTED_APART if apart else _SUPPORTED
    if architecture in TRANSCODERS:
        remedy = "A transcoder is named in [sae.transcoder]."
    if architecture not in (None, "standard", "topk"):
        raise _refuse(path, "architecture", architecture, remedy)
    if activation not in (None, "topk"):
        raise _refuse(path, field, activation, remedy)
    if architecture != "topk" and activation is None:
        raise ArtifactError(f"{path} names no TopK activation (architecture or activation_fn_str).", remedy)
    return "topk"


def _read_transcoder(path: Path, raw: dict[str, Any]) -> str:
    _, architecture = _field(raw, "architecture")
    if architecture not in TRANSCODERS:
        raise _refuse(path, "architecture", architecture, f"A transcoder's is one of {', '.join(TRANSCODERS)}.")
    if _field(raw, "apply_b_dec_to_input")[1]:
        raise _refuse(path, "apply_b_dec_to_input", True, "A transcoder's decoder bias is on the MLP's output.")
    return str(architecture)


def _read_norm(raw: dict[str, Any]) -> str:
    """sae_lens's name of the activation norm; legacy files say true for the one that only scales."""
    norm = _field(raw, "normalize_activations")[1]
    return FOLDED_NORM if norm is True else norm if isinstance(norm, str) else "none"


def _check_neutral_fields(path: Path, raw: dict[str, Any], norms: tuple[object, ...]) -> None:
    """Refuse every setting that would change what encode and decode compute, unless it is off or in `norms`."""
    neutral: dict[str, tuple[object, ...]] = {
        "normalize_activations": (*_NO_NORM, *norms),
        "reshape_activations": (None, "none"),
        "finetuning_scaling_factor": (None, False),
        "hook_head_index": (None,),
        "hook_point_head_index": (None,),
    }
    for name, allowed in neutral.items():
        _, value = _field(raw, name)
        if not any(value is option or (value == option and type(value) is type(option)) for option in allowed):
            raise _refuse(path, name, value)
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        _, value = _field(raw, name)
        if value is not None and not isinstance(value, bool):
            raise _refuse(path, name, value, "It must be true or false.")
    if _field(raw, "apply_b_dec_to_input")[1] is None and _field(raw, "architecture")[1] not in TRANSCODERS:
        _log.warning("%s does not say apply_b_dec_to_input; taking sae_lens's default, true", path)


def _read_k(path: Path, raw: dict[str, Any]) -> int:
    kwargs = raw.get("activation_fn_kwargs")
    found = {
        "k": raw.get("k"),
        "activation_fn_kwargs.k": kwargs.get("k") if isinstance(kwargs, dict) else None,
    }
    values = {name: value for name, value in found.items() if value is not None}
    if not values:
        raise ArtifactError(
            f"{path} says nothing of k (activation_fn_kwargs.k, or k).",
            "A TopK SAE needs its number of active latents.",
        )
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _refuse(path, name, value, "It must be a whole number of at least 1.")
    if len(set(values.values())) > 1:
        raise ArtifactError(f"{path} gives two different k: {values}.", "Correct the file.")
    return int(next(iter(values.values())))


def _read_hook(path: Path, raw: dict[str, Any]) -> tuple[str, int]:
    """The hook's name and its layer, from `hook_layer` and from the name; they must agree."""
    hook_field, hook_name = _field(raw, "hook_name", "hook_point")
    layer_field, layer = _field(raw, "hook_layer", "hook_point_layer")
    if not isinstance(hook_name, str):
        raise ArtifactError(f"{path} has no {hook_field}.", "It must name the hook, like blocks.3.ln2.hook_normalized.")
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise _refuse(path, layer_field, layer, "It must be a block's number, from 0.")
    match = _LAYER.search(hook_name)
    named = int(match.group(1)) if match else None
    number = named if layer is None else layer
    if number is None:
        raise ArtifactError(
            f"{path}: neither {hook_field} = {hook_name!r} nor {layer_field} names a layer.",
            "Name the hook like blocks.3.ln2.hook_normalized.",
        )
    if named is not None and number != named:
        raise ArtifactError(
            f"{path}: {layer_field} = {number}, but {hook_field} = {hook_name!r} is on layer {named}.",
            "Correct the file.",
        )
    return hook_name, number


def _read_text(path: Path, raw: dict[str, Any], name: str) -> str | None:
    _, value = _field(raw, name)
    if value is not None and not isinstance(value, str):
        raise _refuse(path, name, value, "It must be a text.")
    return value


def _read_count(path: Path, raw: dict[str, Any], name: str) -> int | None:
    _, value = _field(raw, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _refuse(path, name, value, "It must be a whole number of at least 1.")
    return value


def _to_sae_lens(path: Path, raw: dict[str, Any], family: str, k: int | None) -> dict[str, Any]:
    """sae_lens's own reading of the file, with the fields that it would guess set to what the file says."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    try:
        settings: dict[str, Any] = dict(handle_config_defaulting({**raw, "dtype": "float32", "device": "cpu"}))
    except Exception as error:  # whatever sae_lens trips over, the user's problem is this file
        raise ArtifactError(
            f"{path}: sae_lens can't read it ({error}).", "Compare it with a published cfg.json."
        ) from error
    settings.update(
        architecture=family,
        normalize_activations=_read_norm(raw),
        reshape_activations="none",
        rescale_acts_by_decoder_norm=bool(_field(raw, "rescale_acts_by_decoder_norm")[1]),
    )
    if k is not None:
        settings["k"] = k
    if family in TRANSCODERS:
        settings["apply_b_dec_to_input"] = False
    metadata = dict(settings.get("metadata") or {})
    # The way the model is loaded is this project's own setting; sae_lens would only warn about it.
    metadata.pop("model_from_pretrained_kwargs", None)
    settings["metadata"] = metadata
    return settings
