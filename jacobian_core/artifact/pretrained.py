"""One SAE of a public release, through sae_lens's own loader of its format, from files that were verified first.

sae_lens's loaders ask the hub's newest revision for their files, check no digest, and some open pickles. They have one
door, `hf_hub_download` of their module. While a loader runs (one at a time), that door leads to `hub.py`: each file it
asks for is taken from one commit and compared with the hub's digest before the loader sees its path, and nothing but
JSON, YAML, npz and safetensors passes. What comes out is kept as a sae_lens folder, so later runs need neither network
nor the loader.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jacobian_core.artifact.cache import copies_on, copy_folder, partial_folder, publish, read_copy, sweep_abandoned
from jacobian_core.artifact.files import CONFIG_NAME, Artifact, file_sha256
from jacobian_core.artifact.hub import RepositoryAt, is_commit, repository_at
from jacobian_core.config import SaePartConfig
from jacobian_core.errors import ArtifactError, ConfigError

PICKLE_LOADERS = ("connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "goodfire", "qwen_scope")
"""sae_lens's loaders whose formats are pickles."""
_OTHER_LOADERS = {
    "temporal": "temporal SAEs read other positions than the token's own",
    "mntss_clt_layer_transcoder": "one layer of a cross-layer transcoder does not give the MLP's output",
}
_SAFE_SUFFIXES = (".json", ".yaml", ".npz", ".safetensors")
_CALLED_APART = {"sae_lens_version", "sae_lens_training_version"}
"""Metadata that says who wrote the folder, not what the SAE is: the digest must not depend on it."""
_door = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """An SAE on the hub: as sae_lens names it (`release`, `sae_id`), where it is, and who reads its format."""

    release: str
    sae_id: str
    repository: str
    inside: str
    loader: str

    @property
    def what(self) -> str:
        """What messages call it."""
        return f"{self.release}/{self.sae_id}"


def fetch_pretrained(part: SaePartConfig, cache: Path) -> Artifact:
    """The SAE of a release, or of a hub repository in a format that sae_lens has a loader for, as a sae_lens folder.

    Without a revision the newest commit is taken once, and its copy from then on. Raises ConfigError for a name that
    sae_lens does not know, ArtifactError for formats that are not read and for what can't be had.
    """
    shelf = (cache / "pretrained").absolute()
    sweep_abandoned(shelf)
    prefix = f"{_name(part)}@"
    fixed = part.revision is not None and is_commit(part.revision)
    for locator in [f"{prefix}{part.revision}"] if fixed else copies_on(shelf, prefix) if not part.revision else []:
        copy = read_copy(copy_folder(shelf, locator), locator)
        if copy is not None:
            return copy
    wanted = _in_release(part) if part.source == "release" else _in_repository(part)
    _refuse_loader(wanted)
    repository = repository_at(wanted.repository, part.revision, shelf)
    locator = f"{prefix}{repository.commit}"
    folder = copy_folder(shelf, locator)
    return read_copy(folder, locator) or _convert(wanted, repository, folder, locator)


def _name(part: SaePartConfig) -> str:
    """What a copy is called, but for its commit; sae_lens, ten seconds to import, is not asked."""
    if part.source == "release":
        return f"release:{part.release}/{part.id}"
    return f"huggingface:{part.location}/{part.subfolder} as {part.loader}"


def _in_release(part: SaePartConfig) -> Wanted:
    """Where sae_lens's directory of releases puts the SAE; ConfigError with the nearest names if it has none."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    release, sae_id = part.release or "", part.id or ""
    if release not in directory:
        raise ConfigError(f"sae_lens knows no release '{release}'.", _nearest(release, list(directory)))
    found = directory[release]
    if sae_id not in found.saes_map:
        raise ConfigError(f"the release '{release}' has no SAE '{sae_id}'.", _nearest(sae_id, list(found.saes_map)))
    return Wanted(release, sae_id, found.repo_id, found.saes_map[sae_id], found.conversion_func or "sae_lens")


def _in_repository(part: SaePartConfig) -> Wanted:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    loader, location, inside = part.loader or "sae_lens", part.location or "", part.subfolder or ""
    if loader not in NAMED_PRETRAINED_SAE_LOADERS:
        raise ConfigError(f"sae_lens has no loader '{loader}'.", _nearest(loader, list(NAMED_PRETRAINED_SAE_LOADERS)))
    if not inside:
        raise ConfigError(f"the loader '{loader}' needs the SAE's folder in {location}.", "Set subfolder.")
    return Wanted(location, inside, location, inside, loader)


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return f"Near it: {', '.join(near)} ({len(known)} in all)."


def _refuse_loader(wanted: Wanted) -> None:
    """Refuse by name what is a pickle or no SAE of one MLP, before anything is fetched."""
    if wanted.loader in PICKLE_LOADERS or PurePosixPath(wanted.inside).suffix in (".pt", ".pth", ".bin"):
        raise ArtifactError(
            f"{wanted.what} is a pickle (sae_lens's loader '{wanted.loader}').",
            "Pickles can run code and are never opened: convert it to a sae_lens folder, and use source = 'folder'.",
        )
    if wanted.loader in _OTHER_LOADERS:
        raise ArtifactError(
            f"{wanted.what} (sae_lens's loader '{wanted.loader}') is not supported: {_OTHER_LOADERS[wanted.loader]}.",
            "Use an SAE or a transcoder of the MLP.",
        )


def _convert(wanted: Wanted, repository: RepositoryAt, folder: Path, locator: str) -> Artifact:
    """Run the loader over verified files and keep what it gives as a sae_lens folder."""
    with partial_folder(folder.parent) as partial:
        files = _Files(wanted, repository, partial)
        sae = _load(wanted, files)
        target = partial / "files"
        for parameter in sae.parameters():
            parameter.data = parameter.data.contiguous()  # loaders hand out transposed views, safetensors takes none
        sae.save_model(target)
        path = target / CONFIG_NAME
        path.write_text(json.dumps(_plain_config(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")
        origin = {"loader": wanted.loader, "repository": wanted.repository, "files": files.digests()}
        return publish(target, folder, locator, [], origin)


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in config["metadata"].items() if key not in _CALLED_APART}
    return {**config, "device": "cpu", "metadata": metadata}


def _load(wanted: Wanted, files: _Files) -> Any:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    try:
        with _only_door(files), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is judged here: a factor that is not known, an unnamed release
            return SAE.from_pretrained(
                wanted.release, wanted.sae_id, converter=NAMED_PRETRAINED_SAE_LOADERS[wanted.loader]
            )
    except ArtifactError:
        raise
    except OSError as error:
        if error.errno:
            raise  # the disk's fault
        raise _unreadable(wanted, error) from error
    except Exception as error:  # whatever a loader trips over, the user's problem is this SAE
        raise _unreadable(wanted, error) from error


def _unreadable(wanted: Wanted, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{wanted.what}: sae_lens's loader '{wanted.loader}' can't read it ({' '.join(str(error).split())[:200]}).",
        "Is it of that format? Try another revision.",
    )


class _Files:
    """What a loader gets for the files that it asks for: verified ones of one commit of one repository."""

    def __init__(self, wanted: Wanted, repository: RepositoryAt, partial: Path) -> None:
        self._wanted, self._repository, self._root = wanted, repository, partial / "source"
        self._partial = partial

    def path(self, repo_id: str, name: str) -> Path:
        from huggingface_hub.errors import EntryNotFoundError

        if repo_id != self._wanted.repository:
            raise ArtifactError(f"{self._wanted.what}: its loader asks for {repo_id}.", "Use another SAE.")
        if not name.endswith(_SAFE_SUFFIXES):
            raise ArtifactError(
                f"{self._wanted.what}: {name} may be a pickle.", "Pickles are never opened; convert it."
            )
        target = self._root / name
        if not target.exists():
            if name not in self._repository.names():
                raise EntryNotFoundError(f"{repo_id} has no {name} at {self._repository.commit[:12]}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._repository.download(name, self._partial).replace(target)
        return target

    def digests(self) -> dict[str, str]:
        paths = sorted(path for path in self._root.rglob("*") if path.is_file())
        return {path.relative_to(self._root).as_posix(): file_sha256(path) for path in paths}


@contextmanager
def _only_door(files: _Files) -> Iterator[None]:
    """Let sae_lens's loaders find their files in `files` alone."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors import safe_open

    def hf_hub_download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        return str(files.path(repo_id, f"{subfolder}/{filename}" if subfolder else filename))

    def tensor_shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(str(files.path(repo_id, filename)), framework="pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    exchanged = {"hf_hub_download": hf_hub_download, "get_safetensors_tensor_shapes": tensor_shapes}
    with _door:
        own = {name: getattr(loaders, name) for name in exchanged}
        try:
            for name, function in exchanged.items():
                setattr(loaders, name, function)
            yield
        finally:
            for name, function in own.items():
                setattr(loaders, name, function)
