"""An SAE's tensors, from safetensors only: read, checked and cast to float32.

Every tensor is copied out of the file: a memory-mapped one would crash the process if the file were replaced while a
run uses it. That costs one pass over the weights (134 MB for a published pair).
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_core.artifact.sae_config import TRANSCODERS, SaeSettings
from jacobian_core.errors import ArtifactError

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
FAMILY_TENSORS = {
    "standard": TENSORS,
    "topk": TENSORS,
    "jumprelu": (*TENSORS, "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"),
    "transcoder": TENSORS,
    "skip_transcoder": (*TENSORS, "W_skip"),
    "jumprelu_transcoder": (*TENSORS, "threshold"),
    "jumprelu_skip_transcoder": (*TENSORS, "threshold", "W_skip"),
}
"""What a sae_lens folder of each family holds."""
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file; ArtifactError if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return set(file.keys())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing.", "The artifact is incomplete; fetch it again.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or not safetensors: {error}.", "Fetch the artifact again.") from error


def encoder_width(path: Path, name: str) -> int:
    """Latents of the encoder tensor `name` (d, n), from the file's header alone; ArtifactError as `tensor_names`."""
    from safetensors import safe_open

    if name not in tensor_names(path):
        raise ArtifactError(f"{path} has no tensor {name}.", "Use a Jacobian SAE pair as published.")
    with safe_open(str(path), framework="pt") as file:
        return int(file.get_slice(name).get_shape()[1])


def read_tensors(path: Path, names: dict[str, str]) -> dict[str, Float[Tensor, "..."]]:
    """Tensors of a safetensors file as float32 copies, keyed by the keys of `names` (key: name in the file).

    Raises ArtifactError where one is missing, is not floating point, or has values that are not finite in float32.
    """
    missing = sorted(set(names.values()) - tensor_names(path))
    if missing:
        raise ArtifactError(f"{path} has no tensor {', '.join(missing)}.", "It must hold the whole SAE pair.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: _to_float32(path, name, file.get_tensor(name)) for key, name in names.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}.", "Fetch the artifact again.") from error


def check_shapes(path: Path, names: dict[str, str], tensors: dict[str, Tensor], settings: SaeSettings) -> None:
    """Refuse tensors whose shapes don't make one SAE: W_enc (d, n), W_dec (n, d), b_dec (d), all others (n), k <= n.

    A transcoder's decoder has its output's width, and W_skip is (d_out, d).
    """
    encoder = tensors["W_enc"]
    if encoder.ndim != 2 or 0 in encoder.shape:
        raise ArtifactError(f"{path}: {names['W_enc']} has shape {tuple(encoder.shape)}, expected (width, latents).")
    width, latents = encoder.shape
    out = tensors["W_dec"].shape[-1] if settings.family in TRANSCODERS else width
    fixed: dict[str, tuple[int, ...]] = {
        "W_enc": (width, latents), "W_dec": (latents, out), "b_dec": (out,), "W_skip": (out, width),
    }  # fmt: skip
    for key in tensors:
        shape = fixed.get(key, (latents,))
        if tuple(tensors[key].shape) != shape:
            raise ArtifactError(
                f"{path}: {names[key]} has shape {tuple(tensors[key].shape)}, expected {shape}: {names['W_enc']} has "
                f"shape {(width, latents)}.",
                "The tensors don't belong together; fetch the artifact again.",
            )
    if settings.k is not None and settings.k > latents:
        raise ArtifactError(
            f"{settings.path}: k = {settings.k}, but {path.name} has only {latents} latents ({names['W_enc']}).",
            "Correct k.",
        )
    if settings.family == "topk" and settings.sae_lens["rescale_acts_by_decoder_norm"]:
        _check_decoder_norms(path, names["W_dec"], tensors["W_dec"])


def check_declared_widths(path: Path, name: str, encoder: Float[Tensor, "d n"], settings: SaeSettings) -> None:
    """Refuse an encoder whose shape is not the `d_in`, `d_sae` that its cfg.json declares."""
    for field, declared, found in zip(
        ("d_in", "d_sae"), (settings.width_in, settings.width_sae), encoder.shape, strict=True
    ):
        if declared is not None and declared != found:
            raise ArtifactError(
                f"{settings.path}: {field} = {declared}, but {path.name} has {name} of shape {tuple(encoder.shape)}.",
                "The two files don't belong together; fetch the artifact again.",
            )


def _to_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise ArtifactError(f"{path}: {name} is {kind}.", f"Supported are {', '.join(_DTYPES)}.")
    single = tensor.to(torch.float32, copy=True).contiguous()
    bad = int((~torch.isfinite(single)).sum())
    if bad:
        raise ArtifactError(
            f"{path}: {name} has {bad} values of {single.numel()} that are not finite in float32.",
            "The SAE is broken (a diverged training?); use another version of the artifact.",
        )
    return single


def _check_decoder_norms(path: Path, name: str, decoder: Float[Tensor, "n d"]) -> None:
    """A row of zeros would be divided by its norm of 0 (rescale_acts_by_decoder_norm) and spread NaN."""
    empty = int((decoder.norm(dim=-1) == 0).sum())
    if empty:
        raise ArtifactError(
            f"{path}: {empty} rows of {name} are zero, but rescale_acts_by_decoder_norm divides by their norms.",
            "Remove these latents, or turn the rescaling off if the SAE was trained without it.",
        )
