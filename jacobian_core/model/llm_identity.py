"""Which language model a setting means: its digest, and the hub's commit behind a revision. Nothing is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.packaged import on_disk


def model_digest(config: ModelConfig, artifact_weights: Path | None = None) -> dict[str, str]:
    """What identifies the model's weights: sha256 of each safetensors file and of the config, or the hub's commit.

    Raises:
        ModelError: the model is not found.
    """
    folder = Path(config.name)
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("tokenizer.json")])
        if not any(f.suffix == ".safetensors" for f in files):
            raise ModelError(
                f"model folder {folder} has no .safetensors file.", "Pickled weights are never loaded; convert them."
            )
        found = {f.name: _sha256(f) for f in files}
    else:
        found = {"name": config.name, "commit": _hub_commit(config)}
    if config.weights == "artifact" and artifact_weights is not None:
        found["artifact_weights"] = _sha256(artifact_weights)
    if config.weights == "randomised":
        found["randomise_seed"] = str(config.randomise_seed)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hub_name(name: str) -> str:
    """The hub's repository of an official TransformerLens name or alias."""
    from transformer_lens.supported_models import MODEL_ALIASES

    for repository, aliases in MODEL_ALIASES.items():
        if name == repository or name in aliases:
            return str(repository)
    return name


def pinned(config: ModelConfig) -> ModelConfig:
    """The same model with the hub's commit as its revision, so that every worker loads the same weights.

    A local folder stays as it is, and a packaged model becomes one. Raises ModelError where the hub does not know the
    model or can't be reached and the model is not in the local cache.
    """
    config = on_disk(config)
    if Path(config.name).is_dir():
        return config
    return config.model_copy(update={"revision": _hub_commit(config)})


def _hub_commit(config: ModelConfig) -> str:
    """The commit that a hub model's revision stands for, from the local cache when the hub can't be reached."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(hub_name(config.name), "config.json", revision=config.revision)
    except Exception as error:
        raise not_found(config, error) from error
    return Path(path).parent.name  # the cache keeps <repository>/snapshots/<commit>/config.json


def not_found(config: ModelConfig, error: Exception) -> ModelError:
    """What a failed load is to the user: the library's first line, and where to look."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"model '{config.name}' can't be loaded: {first[:300]}",
        "Set model.name to a local Hugging Face folder, or check the name, the revision and the network.",
    )
