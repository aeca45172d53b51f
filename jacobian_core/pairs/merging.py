"""Merge the rows and sums of a run that does not keep entries while it goes on, so that its work folder stays small.

A merge reads some output latents of each file at a time and writes their sums: its memory is that of a million rows a
thread, whatever the files' sizes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import or_
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from jacobian_core.ahead import in_order
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.publish import publishing, withdraw_block
from jacobian_core.lake.work_files import WorkFile, new_file
from jacobian_core.numerics.pair_digits import PairDigits, added_up, of_entries
from jacobian_core.pairs.adding import entries_of
from jacobian_core.pairs.ended import list_ends
from jacobian_core.pairs.latent_bytes import merged
from jacobian_core.pairs.levels import Group, Source, alone, cover, list_sources, merged_digest, ready
from jacobian_core.pairs.rows import CODES_SUFFIX, ROWS_SUFFIX, BlockRows, Facts, open_rows
from jacobian_core.pairs.summed import sums_folder
from jacobian_core.pairs.sums_file import SumsFile, SumsWriter, open_sums

_PATIENCE_SECONDS = 10.0
_ROWS_AT_ONCE = 1 << 20
_THREADS = 4

log = logging.getLogger(__name__)


def merge_ready(lake: Lake, run_id: str) -> int:
    """Merge every group that can be; returns how many. Leaves it to another worker that is at it.

    Raises LakeError where a file can't be read or written.
    """
    merged = 0
    with alone(lake, run_id, seconds=0.0) as mine:
        while mine and (found := _next(lake, run_id)) is not None:
            try:
                merge_group(lake, run_id, *found)
            except LakeError:
                if lake.manifest(run_id) is None and (lake.locks or _all_there(found[1])):
                    raise
                break  # the run is finished; or another worker merged this in a store, and removed what was being read
            merged += 1
    return merged


def _next(lake: Lake, run_id: str) -> tuple[Group, list[Source]] | None:
    folder = sums_folder(lake, run_id)
    for group, members in ready(list_sources(folder), list_ends(folder)):
        if group.level > 1 or all(_counts(lake, run_id, source) for source in members):
            return group, members
    return None


def _counts(lake: Lake, run_id: str, source: Source) -> bool:
    """Whether a block's rows are those that its marker names."""
    marker = lake.marker(run_id, source.group.first_block)
    return marker is not None and marker.entries_digest.startswith(source.digest)


def _all_there(sources: Sequence[Source]) -> bool:
    return None not in files.sizes_of([source.path for source in sources])


def mend_sums(lake: Lake, run_id: str) -> None:
    """Before a stopped run goes on: blocks for whose entries nothing stands any more are to be computed again.

    On a disk, files that stand for nothing are removed: a worker was stopped after it had merged them.
    """
    with alone(lake, run_id, _PATIENCE_SECONDS) as mine:
        if not mine or lake.manifest(run_id) is not None:
            return  # another worker merges, and has mended before
        markers = lake.markers(run_id)
        folder = sums_folder(lake, run_id)
        found = cover(list_sources(folder), markers, list_ends(folder))
        for block_id in found.lost:
            log.warning("run %s: the entries of block %s are gone and are computed again", run_id, block_id)
            withdraw_block(lake, run_id, block_id)
        for source in found.superfluous if lake.locks else []:
            remove_source(source)


def merge_group(lake: Lake, run_id: str, group: Group, members: Sequence[Source]) -> None:
    """Sum the files of a group's children into its own, and remove them once that has its name."""
    path = sums_folder(lake, run_id) / group.name(merged_digest([source.digest for source in members]))
    threads = min(os.cpu_count() or 1, _THREADS)
    with ExitStack() as held:
        copies = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="jacobian-pairs-")))
        readers = [
            [held.enter_context(_opened(lake, run_id, source, copies)) for source in members] for _ in range(threads)
        ]
        facts = reduce(or_, (each.facts for each in readers[0]))
        latents = merged([each.latents for each in readers[0]])
        with new_file(lake, run_id, path) as (file, made):
            writer = SumsWriter(file, facts, latents)
            for strip in _strips(readers, range(0, facts.widths[0], writer.outs), facts):
                writer.write(strip)
            writer.close()
    if _placed(lake, run_id, made):
        for source in members:
            remove_source(source)


def _strips(readers: Sequence[Sequence[BlockRows | SumsFile]], starts: range, facts: Facts) -> Iterator[PairDigits]:
    """The sums of all strips in their order, a thread for each set of readers; a few are made ahead."""
    n_out, n_in = facts.widths
    idle: SimpleQueue[Sequence[BlockRows | SumsFile]] = SimpleQueue()
    for each in readers:
        idle.put(each)

    def strip(start: int) -> PairDigits:
        mine = idle.get()
        try:
            return strip_sums(mine, range(start, min(start + starts.step, n_out)), n_in)
        finally:
            idle.put(mine)

    with ThreadPoolExecutor(len(readers)) as pool:
        yield from in_order(pool, strip, starts, len(readers))


@contextmanager
def _opened(lake: Lake, run_id: str, source: Source, copies: Path) -> Iterator[BlockRows | SumsFile]:
    path = on_this_machine(source, copies)
    if source.group.level > 0:
        with open_sums(path) as sums:
            yield sums
        return
    marker = lake.marker(run_id, source.group.first_block)
    with ExitStack() as held:
        rows = None if marker is None else held.enter_context(open_rows(path.parent, marker))
        if rows is None:
            raise LakeError(f"{source.path}: the rows can't be read.", "Start the same command again.")
        yield rows


def on_this_machine(source: Source, copies: Path) -> Path:
    """A file of rows or sums on this machine's disk, copied there if the lake is in a store."""
    if isinstance(source.path, Path):
        return source.path
    for path in _files_of(source):
        to = copies / path.name
        if not to.exists() and (path == source.path or files.is_file(path)):
            part = to.with_name(f"{to.name}.part")
            files.make_folder(copies)
            files.copy_to_disk(path, part)
            files.rename(part, to)
    return copies / source.path.name


def _files_of(source: Source) -> list[LakePath]:
    """The file, after the codes that can be beside rows."""
    codes = source.path.with_name(source.path.name.removesuffix(ROWS_SUFFIX) + CODES_SUFFIX)
    return [codes, source.path] if source.group.level == 0 else [source.path]


def _placed(lake: Lake, run_id: str, made: WorkFile) -> bool:
    """Give merged sums their name, unless the run is finished."""
    try:
        with publishing(lake, run_id) as manifest:
            if manifest is None:
                made.place()
        if manifest is None and not lake.locks and lake.manifest(run_id) is not None:
            files.remove(made.path)  # published while it was put
        return manifest is None
    finally:
        made.discard()


def strip_sums(sources: Sequence[BlockRows | SumsFile], outs: range, n_in: int) -> PairDigits:
    """What open files have of these output latents, added up."""
    waiting, rows = list[PairDigits](), 0
    for source in sources:
        for part in entries_of(source, outs, n_in) if isinstance(source, BlockRows) else source.pairs(outs, n_in):
            waiting.append(part)
            rows += len(part.cell)
            if rows > _ROWS_AT_ONCE:
                waiting = [added_up(waiting)]
                rows = 0
    return added_up(waiting or [of_entries(np.zeros(0, np.int64), np.zeros(0, np.float32))])


def remove_source(source: Source) -> None:
    """Remove a file of rows or sums, and the codes beside rows."""
    for path in reversed(_files_of(source)):
        files.remove(path)
