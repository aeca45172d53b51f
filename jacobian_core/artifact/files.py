"""Which files make an SAE artifact, and their digests.

Only a pair's configuration and safetensors count; whatever else lies beside them (pickles, notes, training statistics)
is neither fetched nor part of the digest. The digest is the artifact's identity: it names the content, not the place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jacobian_core.errors import ArtifactError

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
SPARSITY_NAME = "sparsity.safetensors"
"""How often each latent fired in training: sae_lens writes it beside the weights, nothing here reads it."""
RECORD_NAME = "artifact.json"
"""The record of a fetched copy (see `artifact_cache`)."""

_PUBLISHED = (CONFIG_NAME, WEIGHTS_NAME)
_TWO_FOLDERS = tuple(f"{side}/{name}" for side in ("in", "out") for name in _PUBLISHED)


@dataclass(frozen=True)
class Artifact:
    """A verified SAE artifact on the local disk.

    `locator` says where it came from, with the version or commit resolved ('wandb:entity/project/name:v4'); `files`
    maps each file's name, relative to `folder`, to its sha256; `digest` is the sha256 over the sorted lines 'name
    sha256'.
    """

    folder: Path
    locator: str
    files: dict[str, str]
    digest: str


def select_files(names: Iterable[str], where: str) -> list[str]:
    """The names, relative to the pair's folder, that make the artifact, sorted.

    These are the published pair's two files, or else those of `in/` and `out/`; and any other safetensors at the top (a
    language model's weights). ArtifactError names what is missing from `where`.
    """
    present = set(names)
    layout = _TWO_FOLDERS if present.issuperset(_TWO_FOLDERS) and not present.intersection(_PUBLISHED) else _PUBLISHED
    missing = [name for name in layout if name not in present]
    if missing:
        pickles = sorted(name for name in present if name.endswith((".pt", ".pth", ".bin", ".pkl", ".ckpt")))
        remedy = (
            f"Convert {pickles[0]} to {WEIGHTS_NAME}: pickles can run code and are never opened."
            if WEIGHTS_NAME in missing and pickles
            else f"An SAE pair is {CONFIG_NAME} with {WEIGHTS_NAME}, or both in each of the folders in/ and out/."
        )
        raise ArtifactError(f"{where} has no {' and no '.join(missing)}.", remedy)
    extra = {name for name in present if "/" not in name and name.endswith(".safetensors") and not name.startswith(".")}
    return sorted({*layout, *extra} - {SPARSITY_NAME})


def files_in(folder: Path) -> list[str]:
    """Names of the files in `folder` and in the folders right inside it, with `/`, sorted."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def describe(folder: Path, locator: str) -> Artifact:
    """The artifact in `folder` as it is now, every file read once; ArtifactError where one is missing or unreadable."""
    if not folder.is_dir():
        raise ArtifactError(f"There is no folder {folder}.", "Give the folder that holds the SAE pair.")
    try:
        files = {name: file_sha256(folder / name) for name in select_files(files_in(folder), str(folder))}
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder} can't be read: {error.strerror}.", "Check its rights."
        ) from error
    return Artifact(folder=folder, locator=locator, files=files, digest=digest_of(files))


def digest_of(files: dict[str, str]) -> str:
    """sha256, in hex, over the lines 'name sha256', sorted by name."""
    lines = "".join(f"{name} {sha}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
