"""Fetch an SAE artifact: from a wandb project, a local folder, a Hugging Face repository, or sae_lens's releases.

A fetched artifact is kept as a verified copy in the cache, and every later call with the same version uses it without
any network. A local folder is used where it lies. Two SAEs named apart become one pair (`parts.py`).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from jacobian_core.artifact.files import Artifact, describe
from jacobian_core.artifact.parts import compose
from jacobian_core.config import SaeConfig, SaePartConfig
from jacobian_core.errors import ArtifactError, ConfigError

__all__ = ["Artifact", "fetch_artifact"]


def fetch_artifact(config: SaeConfig, cache: Path) -> Artifact:
    """The artifact that `config` names, on the local disk, each file's digest verified.

    `cache` is the folder for downloads. Raises ConfigError for a setting that makes no sense with the source, and
    ArtifactError, with nothing half-written left, where the artifact can't be had.
    """
    _check_settings(config)
    for part in config.parts.values():
        _check_settings(part)
    try:
        if config.parts:
            fetched = {side: (_fetch(part, cache), part.norm_factor) for side, part in config.parts.items()}
            return compose(fetched, cache)
        return _fetch(config, cache)
    except OSError as error:
        raise ArtifactError(
            f"The artifact can't be kept in {error.filename or cache}: {error.strerror or error}.",
            "Free space there, or give another cache folder.",
        ) from error


def _fetch(config: SaeConfig | SaePartConfig, cache: Path) -> Artifact:
    """One artifact, from wherever it is kept."""
    if isinstance(config, SaePartConfig) and (config.source == "release" or config.loader is not None):
        from jacobian_core.artifact.pretrained import fetch_pretrained

        return fetch_pretrained(config, cache)
    location = config.location or ""
    if config.source == "wandb":
        from jacobian_core.artifact.wandb import fetch_wandb

        return fetch_wandb(location, cache)
    if config.source == "huggingface":
        from jacobian_core.artifact.hub import fetch_hub

        return fetch_hub(location, config.revision, config.subfolder, cache)
    folder = Path(location).expanduser()
    if config.subfolder:
        folder = folder / config.subfolder
    return describe(folder, f"folder:{folder.as_posix()}")


def _check_settings(config: SaeConfig | SaePartConfig) -> None:
    """Refuse settings that would be ignored, and a subfolder that leaves its root."""
    if config.revision is not None and config.source not in ("huggingface", "release"):
        raise ConfigError(
            f"sae.revision = {config.revision!r} has no meaning with sae.source = {config.source!r}.", "Remove it."
        )
    if config.subfolder is None:
        return
    if config.source == "wandb":
        raise ConfigError("sae.subfolder has no meaning with sae.source = 'wandb'.", "Remove it.")
    parts = PurePosixPath(config.subfolder)
    if parts.is_absolute() or ".." in parts.parts or "\0" in config.subfolder or "\\" in config.subfolder:
        raise ConfigError(
            f"sae.subfolder = {config.subfolder!r} is not a folder inside the artifact.", "Give a path in it."
        )
