"""What went wrong with a file of the lake, in one line that names the path and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from jacobian_core.errors import LakeError
from jacobian_core.lake.paths import LakePath, StorePath
from jacobian_core.lake.store_errors import store_errors

_REMEDIES = {
    errno.ENOSPC: "Free some space and start the same command again: finished blocks are kept.",
    errno.EDQUOT: "The disk quota is used up: free some space and start the same command again.",
    errno.EFBIG: "The file would pass the size limit (`ulimit -f`): raise it, or set a smaller `corpus.block_tokens`.",
    errno.EACCES: "Give this user the right to write there, or choose another folder with `--lake`.",
    errno.EPERM: "Give this user the right to write there, or choose another folder with `--lake`.",
    errno.EROFS: "The file system is read-only: choose another folder with `--lake`.",
    errno.ENOTDIR: "A part of the path is a file, not a folder: choose another folder with `--lake`.",
    errno.EEXIST: "A part of the path is a file, not a folder: choose another folder with `--lake`.",
    errno.EISDIR: "There is a folder where a file belongs: remove it, or choose another lake with `--lake`.",
    errno.ENOENT: "It is not there, or not any more: check `--lake`, or start the same command again.",
}


@contextmanager
def lake_errors(path: LakePath, doing: str) -> Iterator[None]:
    """Turn an OSError into a LakeError that names the path and what to do."""
    if isinstance(path, StorePath):
        with store_errors(path, doing):
            yield
        return
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Check the disk and start the same command again.")
        reason = error.strerror or str(error)
        raise LakeError(f"{path}: can't {doing}: {reason}.", remedy) from error
