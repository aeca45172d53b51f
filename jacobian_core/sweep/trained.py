"""Pairs that a sweep trains: kept in the user's cache under a digest of everything that made them, so each once.

A training that was killed continues from its checkpoint beside the folder. The digest is of the text's and the model's
content and of the settings, not of paths, device or threads: another machine's pair of the same digest is of the same
kind, and differs in the last bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jacobian_core.artifact.files import file_sha256
from jacobian_core.config import SaeConfig
from jacobian_core.errors import CorpusError
from jacobian_core.lake import files
from jacobian_core.sweep.cells import Cell
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.export_files import last_file

SHELF = "trained-pairs"
"""The folder of the cache that holds them."""
_NOT_CONTENT = {
    "model", "training_shards", "held_out_shards", "model_name", "dataset_name", "output", "checkpoint",
    "checkpoint_seconds", "log_every_steps", "device", "threads", "activation_folder", "token_folder",
}  # fmt: skip
_WAIT_SECONDS = 86_400.0
_DIGITS = 12


@dataclass(frozen=True)
class TrainedPlace:
    """Where a cell's pair is, or will be; `training` is its training with that place filled in."""

    folder: Path
    digest: str
    training: TrainPairConfig

    @property
    def is_made(self) -> bool:
        """Whether the pair is whole: its configuration is written last."""
        return last_file(self.folder, self.training).is_file()

    @property
    def sae(self) -> SaeConfig:
        """The pair as a run's setting."""
        return SaeConfig(source="folder", location=str(self.folder))


def place_of(cell: Cell, cache: Path) -> TrainedPlace | None:
    """Where the cell's pair belongs in `cache`; None for a cell whose pair is not trained here.

    Raises CorpusError for a shard that can't be read and ModelError for a model that can't be found.
    """
    if cell.training is None:
        return None
    digest = training_digest(cell.training)
    folder = cache / SHELF / f"layer{cell.training.model.layer}-{digest[:_DIGITS]}"
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    changed = {"output": folder, "checkpoint": checkpoint, **_compute(cell)}
    return TrainedPlace(folder, digest, cell.training.model_copy(update=changed))


def _compute(cell: Cell) -> dict[str, object]:
    """Where the run computes, for a training that does not say."""
    from jacobian_core.work.worker import pick_device

    own = cell.training.model_fields_set if cell.training else set()
    found = {"device": pick_device(cell.config.compute), "threads": cell.config.compute.threads}
    return {key: value for key, value in found.items() if key not in own}


def training_digest(training: TrainPairConfig) -> str:
    """SHA-256, in hex, over what determines a trained pair: text, model and settings."""
    from jacobian_core.corpus.tokenizer import load_tokenizer
    from jacobian_core.model.llm_identity import model_digest, pinned

    model = pinned(training.model)
    content = {
        "settings": training.model_dump(mode="json", exclude=_NOT_CONTENT),
        "kept_activations": training.activation_folder is not None,
        "training": [_shard_sha256(shard) for shard in training.training_shards],
        "held_out": [_shard_sha256(shard) for shard in training.held_out_shards],
        "model": {
            "files": model_digest(model, None),
            "tokenizer": load_tokenizer(model).digest,
            **model.model_dump(mode="json", exclude={"name", "revision"}),
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shard_sha256(shard: Path) -> str:
    try:
        return file_sha256(shard)
    except OSError as error:
        problem = f"{shard}: the shard can't be read: {error.strerror}."
        raise CorpusError(problem, "Check training_shards and held_out_shards.") from error


@contextmanager
def alone(place: TrainedPlace) -> Iterator[None]:
    """Only one process trains a pair; another that wants it waits, and finds it made."""
    files.make_folder(place.folder.parent)
    with files.exclusive(place.folder.with_name(f"{place.folder.name}.lock"), _WAIT_SECONDS):
        yield


def forget_checkpoint(place: TrainedPlace) -> None:
    """Remove what a finished training no longer needs."""
    if place.training.checkpoint is not None:
        place.training.checkpoint.unlink(missing_ok=True)
