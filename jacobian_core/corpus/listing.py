"""Where the text is: the shards of a local folder or of a dataset on the hub.

A shard's index is its place among *all* shards of the location, not among the selected ones, so that the same document
has the same id whichever part of the corpus a run asks for. The price: a shard that is added to a location later should
sort after the ones that are there, or the ids of those behind it move.

From the hub, only the file's bytes come through `datasets` (its opener adds the hub's login, range requests and
retries). Its builders are not used: the JSON one ends the stream at the first line whose `meta` has a new key, and the
text one reads a line whole however long it is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from jacobian_core.config import CorpusConfig
from jacobian_core.contracts import MAX_SHARDS
from jacobian_core.errors import CorpusError

SUFFIXES = (".jsonl.zst", ".jsonl", ".parquet")
_HUB = "hf://"
_NAMES_SHOWN = 8
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One file of the corpus.

    `index` is its place in the sorted listing of all shards of the location; `url` is a local path, or an `hf://` URL
    that carries the dataset's commit; `digest` is the SHA-256 of the file in hexadecimal, None where the hub has none.
    """

    name: str
    index: int
    url: str
    size_bytes: int | None
    digest: str | None


def list_shards(config: CorpusConfig) -> list[Shard]:
    """The shards that `config.shards` selects, sorted by name; local ones are hashed.

    Raises CorpusError if the location can't be listed or if nothing in it matches, naming what is there.
    """
    chosen = select_shards(config)
    return chosen if config.source == "hub" else [hash_shard(shard) for shard in chosen]


def select_shards(config: CorpusConfig) -> list[Shard]:
    """As `list_shards`, but local shards are not read: their `digest` is None."""
    found = _hub_shards(config) if config.source == "hub" else _folder_shards(config)
    if len(found) > MAX_SHARDS:
        raise CorpusError(
            f"{config.location} has {len(found)} shards; ids are made for {MAX_SHARDS} at most.",
            "Split it over several locations, or merge small shards.",
        )
    found.sort(key=lambda shard: shard.name)
    chosen = [
        Shard(shard.name, index, shard.url, shard.size_bytes, shard.digest)
        for index, shard in enumerate(found)
        if any(fnmatch.fnmatchcase(shard.name, pattern) for pattern in config.shards)
    ]
    if not chosen:
        raise CorpusError(
            f"no shard in {config.location} matches corpus.shards = {', '.join(config.shards)}; "
            f"{_what_is_there(found)}.",
            "Change corpus.shards or corpus.location.",
        )
    return chosen


def open_shard(shard: Shard) -> IO[bytes]:
    """The shard's bytes, seekable; raises OSError if it can't be opened (the hub's connection errors are OSErrors)."""
    if not shard.url.startswith(_HUB):
        return Path(shard.url).open("rb")
    from datasets.utils.file_utils import xopen

    return cast(IO[bytes], xopen(shard.url, "rb"))


class HashedReader:
    """A shard's bytes, read from the beginning to the end, and their SHA-256."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size` (-1: all); b'' at the end."""
        data = self._file.read(size)
        self._sha256.update(data)
        return data

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""

    def is_whole(self, shard: Shard) -> bool:
        """Read to the end; whether all that was read is what the shard's digest says."""
        while self.read(_HASHED_BYTES):
            pass
        return shard.digest in (None, self._sha256.hexdigest())


def is_changed(shard: Shard) -> bool:
    """Whether a local shard is not (or not any more) the file that was hashed; it is read once more."""
    if shard.url.startswith(_HUB) or shard.digest is None:
        return False
    try:
        return _digest(shard) != shard.digest
    except OSError:
        return False  # that it can't be read says nothing about what was read


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none; URLs lose their (signed) query."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return " ".join(word.partition("?")[0] if "://" in word else word for word in first.split()).rstrip(".")


def _what_is_there(found: list[Shard]) -> str:
    if not found:
        return f"it holds no file that ends in {', '.join(SUFFIXES)}"
    names = ", ".join(shard.name for shard in found[:_NAMES_SHOWN])
    return f"there are {len(found)}: {names}" + (", ..." if len(found) > _NAMES_SHOWN else "")


def _folder_shards(config: CorpusConfig) -> list[Shard]:
    folder = Path(config.location).expanduser()
    if not folder.is_dir():
        raise CorpusError(
            f"corpus.location {config.location} is not a folder.",
            "Name a folder of .jsonl.zst, .jsonl or .parquet files, or set corpus.source to hub.",
        )
    try:
        return [
            Shard(path.relative_to(folder).as_posix(), -1, str(path), path.stat().st_size, None)
            for path in _files_below(folder)
            if path.name.endswith(SUFFIXES) and path.is_file()
        ]
    except OSError as error:
        raise CorpusError(f"corpus.location {config.location} can't be listed: {one_line(error)}.") from error


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden files and folders left out; linked folders are not entered."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def hash_shard(shard: Shard) -> Shard:
    """The same shard with the digest of its bytes; CorpusError if it can't be read."""
    try:
        shard.name.encode()
        digest = _digest(shard)
    except UnicodeEncodeError as error:
        raise CorpusError(f"the name of shard {shard.name!a} is not UTF-8.", "Rename the file.") from error
    except OSError as error:
        raise CorpusError(f"shard {shard.name} can't be read: {one_line(error)}.", "Check the file.") from error
    return Shard(shard.name, shard.index, shard.url, shard.size_bytes, digest)


def _digest(shard: Shard) -> str:
    with open_shard(shard) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _hub_shards(config: CorpusConfig) -> list[Shard]:
    """The dataset's shards at the commit that `config.revision` means now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        api = HfApi()
        commit = api.dataset_info(config.location, revision=config.revision).sha
        tree = api.list_repo_tree(config.location, repo_type="dataset", revision=commit, recursive=True)
        files = [entry for entry in tree if isinstance(entry, RepoFile) and entry.path.endswith(SUFFIXES)]
    except Exception as error:  # the client's transport has its own families of errors, not only OSError
        raise CorpusError(
            f"dataset {config.location} (revision {config.revision or 'main'}) can't be listed: {_hub_problem(error)}.",
            "Check the network, corpus.location and corpus.revision; a private or gated dataset needs HF_TOKEN.",
        ) from error
    return [
        Shard(
            file.path,
            -1,
            f"{_HUB}datasets/{config.location}@{commit}/{file.path}",
            file.size,
            file.lfs.sha256 if file.lfs else None,
        )
        for file in files
    ]


def _hub_problem(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = {401: "not found, or no permission", 403: "no permission", 404: "not found"}
    return known.get(status or 0, f"{type(error).__name__}: {one_line(error)}")
