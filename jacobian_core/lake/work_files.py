"""Large files of a run's work folder: whole under a temporary name first, like parts, and named while nobody publishes.

They are written among the parts of `pair_stats`: a work folder must not appear again once its run is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath


@dataclass(frozen=True)
class WorkFile:
    """A whole file under its temporary name, and the place where it belongs."""

    temporary: Path
    path: LakePath

    def place(self) -> None:
        """Give it its name, durably, over whatever was there; the run must not be finished."""
        files.make_folder(self.path.parent)
        files.publish(self.temporary, self.path, files.sha256_of(self.temporary))
        files.fsync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary file, if it is there."""
        files.remove(self.temporary)


@dataclass(frozen=True)
class SummedEntries:
    """The entries of a block that are summed and not kept: their digest, and the files that hold them until then.

    Unless the block `keeps_latents`, the files hold the sums of its active latents too.
    """

    sha256: str
    files: tuple[WorkFile, ...]
    keeps_latents: bool = True


@contextmanager
def new_file(lake: Lake, run_id: str, path: LakePath) -> Iterator[tuple[BinaryIO, WorkFile]]:
    """A file to write, durable when the context ends and gone if it ends in an error."""
    place = lake.part_path("pair_stats", run_id, "x")
    file = files.create_temporary(place.with_name(path.name))
    made = WorkFile(Path(file.name), path)
    try:
        with files.lake_errors(path, "write the file"):
            yield file, made
        files.close_durably(file)
    except BaseException:
        files.close_quietly(file)
        made.discard()
        raise
