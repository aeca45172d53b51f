"""Which rows and sums of a run that does not keep entries stand for which blocks, and when they are merged.

When the `FAN_IN` blocks of a group are finished, their rows are summed into one file; `FAN_IN` such files into one, and
so on, so a shard never has more than `FAN_IN` - 1 files of a level: disk is pairs times the logarithm of the blocks,
not entries. A group is a fixed run of blocks of one shard, its file a function of their entries and named by them:
whoever makes it makes the same, and what is merged is removed only when the merged file has its name. The price: each
pair is written again at every level. When a shard was read to its end, which a file says (`ended.py`), its last groups,
of fewer blocks, are merged too: it is then a single file.

A block counts once: by the widest file that was made of its entries, as its marker names them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from jacobian_core.corpus.blocks import make_block_id
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.paths import LakePath
from jacobian_core.pairs.ended import Ends
from jacobian_core.pairs.rows import DIGEST_DIGITS, ROWS_SUFFIX
from jacobian_core.pairs.sums_file import SUMS_SUFFIX

FAN_IN = 8
LOCK = "pairs.lock"
_ROWS = re.compile(rf"(\d+)-(\d{{6}})-([0-9a-f]{{{DIGEST_DIGITS}}}){re.escape(ROWS_SUFFIX)}")
_SUMS = re.compile(rf"(\d+)-l(\d+)-(\d+)-([0-9a-f]{{{DIGEST_DIGITS}}}){re.escape(SUMS_SUFFIX)}")

log = logging.getLogger(__name__)


class Group(NamedTuple):
    """The blocks from number `number` * FAN_IN^`level` on: FAN_IN^`level` of them, or what the shard has left."""

    level: int
    shard: int
    number: int

    @property
    def parent(self) -> Group:
        """The group that it is merged into."""
        return Group(self.level + 1, self.shard, self.number // FAN_IN)

    def children(self, ends: Ends) -> list[Group]:
        """The groups that are merged into it, in their order: those that begin before the shard's end."""
        first, width = self.number * FAN_IN, FAN_IN ** (self.level - 1)
        last = min(first + FAN_IN, -(-ends[self.shard] // width)) if self.shard in ends else first + FAN_IN
        return [Group(self.level - 1, self.shard, number) for number in range(first, last)]

    def blocks(self, ends: Ends) -> list[str]:
        """Its blocks: fewer where the shard ended before."""
        width = FAN_IN**self.level
        first = self.number * width
        last = min(first + width, ends.get(self.shard, first + width))
        return [make_block_id(self.shard, number) for number in range(first, last)]

    @property
    def first_block(self) -> str:
        """The block that it begins with."""
        return make_block_id(self.shard, self.number * FAN_IN**self.level)

    def name(self, digest: str) -> str:
        """What its file of sums is called."""
        return f"{self.shard:04d}-l{self.level}-{self.number:06d}-{digest}{SUMS_SUFFIX}"


@dataclass(frozen=True)
class Source:
    """A file of rows or sums: the group it is of, the digest of what it was made of, and where it is."""

    group: Group
    digest: str
    path: LakePath


def list_sources(folder: LakePath) -> list[Source]:
    """Every file of rows or sums in a folder."""
    found = []
    for path in files.list_folder(folder):
        if rows := _ROWS.fullmatch(path.name):
            found.append(Source(Group(0, int(rows[1]), int(rows[2])), rows[3], path))
        elif sums := _SUMS.fullmatch(path.name):
            found.append(Source(Group(int(sums[2]), int(sums[1]), int(sums[3])), sums[4], path))
    return found


def merged_digest(digests: Sequence[str]) -> str:
    """The digest of a group's sums from those of its children."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:DIGEST_DIGITS]


def digest_of(group: Group, blocks: Mapping[str, str], ends: Ends) -> str | None:
    """The digest of a group's sums from those of its blocks' entries; None where not all of these are known."""
    if group.level == 0:
        entries = blocks.get(group.first_block)
        return None if entries is None else entries[:DIGEST_DIGITS]
    digests = []
    for child in group.children(ends):
        digest = digest_of(child, blocks, ends)
        if digest is None:
            return None
        digests.append(digest)
    return merged_digest(digests)


@dataclass(frozen=True)
class Cover:
    """Which files stand for finished blocks: those to sum and those of no use; and the blocks that none stands for.

    Of these, `lost` are those that no file over unfinished blocks can stand for when all are finished.
    """

    used: list[Source]
    superfluous: list[Source]
    uncovered: list[str]
    lost: list[str]


def cover(sources: Sequence[Source], markers: Sequence[BlockMarker], ends: Ends) -> Cover:
    """Choose for every finished block the widest file that was made of its entries."""
    blocks = {marker.block_id: marker.entries_digest for marker in markers}
    uncovered, open_ = set(blocks), set[str]()
    used, superfluous = list[Source](), list[Source]()
    for source in sorted(sources, key=lambda each: (-each.group.level, each.group, each.path.name)):
        of_group, first = source.group.blocks(ends), source.group.first_block
        digest = digest_of(source.group, blocks, ends)
        if digest is None:
            open_.update(of_group)
        elif digest == source.digest and first in uncovered:
            used.append(source)
            uncovered.difference_update(of_group)
        elif first not in open_:
            superfluous.append(source)
    return Cover(used, superfluous, sorted(uncovered), sorted(uncovered - open_))


def ready(sources: Sequence[Source], ends: Ends) -> list[tuple[Group, list[Source]]]:
    """The groups that can be merged, with what of, the smallest first."""
    present = {source.group for source in sources}
    children: dict[Group, list[Source]] = {}
    for source in sources:
        if source.group.parent not in present:
            children.setdefault(source.group.parent, []).append(source)
    found = []
    for group, members in sorted(children.items()):
        counts = Counter(source.group for source in members)
        # Of two files of one child only the end knows which one counts.
        if len(counts) == len(group.children(ends)) == len(members) and not _whole_shard(group, ends):
            found.append((group, sorted(members, key=lambda source: source.group)))
    return found


def _whole_shard(group: Group, ends: Ends) -> bool:
    """Whether its first child is the whole shard already."""
    blocks = ends.get(group.shard)
    return blocks is not None and group.number == 0 and blocks <= FAN_IN ** (group.level - 1)


@contextmanager
def alone(lake: Lake, run_id: str, seconds: float) -> Iterator[bool]:
    """Whether this worker is the one that may merge, and remove what was merged; nobody is kept out in a store."""
    with ExitStack() as held:
        try:
            held.enter_context(files.exclusive(lake.work_folder(run_id) / LOCK, seconds))
        except LakeError as error:
            log.debug("%s", error)
            yield False
            return
        yield True
