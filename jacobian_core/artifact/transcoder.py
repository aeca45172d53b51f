"""A transcoder, with or without an SAE on the MLP's output, from the folder of an artifact made of parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacobian_core.artifact.files import CONFIG_NAME
from jacobian_core.artifact.parts import read_parts
from jacobian_core.artifact.sae_side import load_side, load_transcoder
from jacobian_core.config import RunConfig
from jacobian_core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class TranscoderArtifact:
    """A float32 transcoder around one MLP, and the SAE on that MLP's output if there is one."""

    transcoder: SAE[Any]
    output: SAE[Any] | None
    layer: int
    folder: Path


def load_transcoder_artifact(folder: Path, device: str = "cpu") -> TranscoderArtifact:
    """Load the transcoder and the output SAE in `folder`; ArtifactError names the file and what is wrong with it."""
    parts = read_parts(folder)

    def factor(side: str) -> float | None:
        return parts[side].norm_factor if side in parts else None

    loaded = load_transcoder(folder / "transcoder", device, factor("transcoder"))
    output = load_side(folder / "out", "out", device, factor("out")) if (folder / "out").is_dir() else None
    if output is not None and output.settings.layer != loaded.settings.layer:
        raise ArtifactError(
            f"the transcoder is on layer {loaded.settings.layer}, the output SAE on layer {output.settings.layer}.",
            "Both belong to the same MLP.",
        )
    return TranscoderArtifact(loaded.sae, output and output.sae, loaded.settings.layer, folder)


def check_transcoder_fits(artifact: TranscoderArtifact, d_in: int, d_out: int, layers: int) -> None:
    """Refuse what can't sit on the model's MLP: widths, or the layer's number."""
    cfg: Any = artifact.transcoder.cfg
    found = [("transcoder reads", cfg.d_in, d_in), ("transcoder writes", cfg.d_out, d_out)]
    if artifact.output is not None:
        found.append(("output SAE reads", artifact.output.cfg.d_in, d_out))
    for what, width, expected in found:
        if width != expected:
            raise ArtifactError(
                f"{artifact.folder}: the {what} {width} dimensions, the MLP's are {expected}.",
                "Use the model that it was trained on.",
            )
    if artifact.layer >= layers:
        raise ArtifactError(
            f"{artifact.folder}: {CONFIG_NAME} says layer {artifact.layer}, the model has layers 0 to {layers - 1}.",
            "Use the model that it was trained on.",
        )


def check_transcoder_settings(config: RunConfig) -> None:
    """Refuse settings that mean nothing beside a transcoder, which has no decoder into the MLP's input."""
    wanted = {
        "jacobian.evaluate_at": (config.jacobian.evaluate_at, "activation"),
        "jacobian.scope": (config.jacobian.scope, "active"),
        "jacobian.derivatives": (config.jacobian.derivatives, "first"),
        "jacobian.precision": (config.jacobian.precision, "float32"),
        "interventions.kinds": (list(config.interventions.kinds), []),
        "interventions.shape_token_share": (config.interventions.shape_token_share, 0.0),
    }
    for key, (found, only) in wanted.items():
        if found != only:
            raise ConfigError(
                f"{key} = {found!r} has no meaning beside a transcoder, which does not reconstruct the MLP's input.",
                f"Set {key} to {only!r}.",
            )
    if not config.jacobian.keeps_entries:
        raise ConfigError(
            f"jacobian.keep = {config.jacobian.keep!r} is not there for a transcoder, whose tables hold a row for each "
            "entry.",
            "Set jacobian.keep to 'entries'.",
        )
