"""Give a part that was written and checked its name in the lake.

On a disk that is a rename under the run's lock, over whatever was there. In a store there is no lock, so a name that is
taken is never given other bytes: a part whose name is taken by others is put beside it, its digest in its name, and the
records say where. Whoever else still writes to the first name can then do no harm to what a record names. The objects
that no record names are removed by `retention.sweep_lake`, as those of a killed compaction are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jacobian_core.lake import files, store
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo
from jacobian_core.lake.parts import PreparedPart
from jacobian_core.lake.paths import StorePath

_HEX_DIGITS = 12
_AT_ONCE = 8


def place(lake: Lake, parts: Sequence[PreparedPart]) -> list[PartInfo]:
    """Let the parts appear in the lake, durably; returns what records are to say of each, in the same order."""
    if not lake.locks:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda part: _put(lake, part), parts))
    for part in parts:
        files.publish(part.temporary, part.path, part.info.sha256)
    for folder in sorted({part.path.parent for part in parts}):
        files.fsync_folder(folder)
    return [part.info for part in parts]


def restore(lake: Lake, part: PreparedPart, info: PartInfo) -> None:
    """Put a part's bytes back where a record, which names the same bytes, says that they are."""
    path = lake.root / info.path
    files.publish(part.temporary, path, info.sha256)
    files.fsync_folder(path.parent)


def drop_damaged(lake: Lake, parts: Sequence[PartInfo]) -> None:
    """In a store, remove objects that are not as long as they should be, so that their names can be given again."""
    if lake.locks:
        return
    paths = [lake.root / part.path for part in parts]
    for path, part, size in zip(paths, parts, files.sizes_of(paths), strict=True):
        if size is not None and size != part.bytes:
            files.remove(path)


def _put(lake: Lake, part: PreparedPart) -> PartInfo:
    info, path = part.info, part.path
    assert isinstance(path, StorePath)  # noqa: S101 - a lake without locks is one in a store
    if store.put_file(path, part.temporary, info.sha256, new=True) or _holds(path, info):
        return info
    beside = path.with_name(f"{path.stem}-{info.sha256[:_HEX_DIGITS]}{path.suffix}")
    if not _holds(beside, info):
        store.put_file(beside, part.temporary, info.sha256)
    return info.model_copy(update={"path": lake.relative(beside)})


def _holds(path: StorePath, info: PartInfo) -> bool:
    """Whether the object has these bytes, by what was said of it when it was put, or else by its content."""
    found = store.head(path)
    if found is None or found.size != info.bytes:
        return False
    return (found.sha256 or files.sha256_of(path)) == info.sha256
