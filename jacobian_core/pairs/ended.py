"""How many blocks a shard has, once it was read to its end: an empty file beside the sums of its groups says so.

Without it nobody knows that a group will get no more blocks. It is named like the shard's other files there, and goes
with them when the shard is found to have been changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jacobian_core.corpus.blocks import make_block_id
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.publish import publishing

Ends = Mapping[int, int]
"""How many blocks each shard has that was read to its end."""
_NAME = re.compile(r"(\d+)-ended-(\d+)")


def record_end(lake: Lake, run_id: str, folder: LakePath, shard: int, blocks: int) -> None:
    """Keep in the folder of a run's sums that a shard has so many blocks; nothing where the run is finished."""
    prefix = make_block_id(shard, 0).partition("-")[0]
    path = folder / f"{prefix}-ended-{blocks:06d}"
    if files.is_file(path):
        return
    with publishing(lake, run_id) as manifest:
        if manifest is None:
            files.write_atomic(path, b"")
    if manifest is None and not lake.locks and lake.manifest(run_id) is not None:
        files.remove(path)  # published while it was put


def list_ends(folder: LakePath) -> Ends:
    """What is known; nothing of a shard of which there are two numbers. Ask after listing its sums, not before."""
    found: dict[int, set[int]] = {}
    for path in files.list_folder(folder):
        if name := _NAME.fullmatch(path.name):
            found.setdefault(int(name[1]), set()).add(int(name[2]))
    return {shard: min(counts) for shard, counts in found.items() if len(counts) == 1}
