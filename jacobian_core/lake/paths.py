"""Where a lake is: a folder of this machine, or a prefix of an object store.

A lake's paths are `pathlib.Path`s or `StorePath`s. A StorePath computes names and nothing else: it has no `open` and no
`exists`, so the type checker finds every call that would work on a disk only, and `files` alone knows how either is
read and written. (Path classes of libraries that do both hide a network request in each such call.)
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from jacobian_core.errors import LakeError
from jacobian_core.resources import cache_folder

_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX_NAME = re.compile(r"[\w.=+@-]+")
_HEX_DIGITS = 12
_FORM = "Give a folder, or s3://bucket/prefix; the AWS environment variables say which store and with what credentials."


class StorePath(PurePosixPath):
    """An object's or a prefix's place, `s3://bucket/key`; `lake_path` makes and checks the first one."""

    def __str__(self) -> str:
        return super().__str__().replace("s3:/", _SCHEME, 1)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The object's key, or the prefix without its last '/'; '' for the whole bucket."""
        return "/".join(self.parts[2:])


LakePath: TypeAlias = Path | StorePath
"""A place in a lake."""


def lake_path(place: str | LakePath) -> LakePath:
    """The path that a user's text names; LakeError where that can't be a lake."""
    if isinstance(place, StorePath):
        return place
    if isinstance(place, Path):
        if place.parts[:1] != ("s3:",):
            return place
        place = str(place)  # a store's address that was made a Path on its way: refused below
    if not place.startswith(_SCHEME):
        if "://" in place or place.startswith("s3:"):
            raise LakeError(f"{place.partition('@')[0]}: lakes are folders, or begin with s3://.", _FORM)
        return Path(place)
    names = place.removeprefix(_SCHEME).rstrip("/").split("/")
    if not _BUCKET.fullmatch(names[0]):
        raise LakeError(f"{_SCHEME}{names[0].rpartition('@')[2]}: this is no bucket's name.", _FORM)
    if any(name in (".", "..") or not _PREFIX_NAME.fullmatch(name) for name in names[1:]):
        problem = f"{place!r}: a prefix is names of letters, digits and any of '_.=+@-', with one '/' between them."
        raise LakeError(problem, _FORM)
    return StorePath(_SCHEME + "/".join(names))


def absolute(path: LakePath) -> LakePath:
    """The same place, named so that it means the same in every folder."""
    return path if isinstance(path, StorePath) else path.resolve()


def local_folder(root: LakePath) -> Path:
    """The folder of this machine that belongs to a lake: the lake itself, or for one in a store a folder of the cache.

    It holds what only this machine needs: the state of the local Prefect server, and what is written before it is sent.
    """
    if not isinstance(root, StorePath):
        return root
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:_HEX_DIGITS]
    return cache_folder() / "lakes" / f"{root.name[:40]}-{digest}"
