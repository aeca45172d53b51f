"""A run's life: begun under an identity, resumed after anything that stopped it, published last of all.

In a store, where nobody can be locked out, its request and its manifest are put only where there are none: of two
workers that begin or end the same run at once, one does it, and the other finds that it is done.

A run that was stopped is mended before it goes on: blocks whose files are missing or short lose their markers and are
computed again. Sizes are compared, not digests: a look at 100,000 parts takes a second, hashing a terabyte an hour.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from jacobian_core.contracts import BLOCK_TABLES, TABLES
from jacobian_core.corpus.blocks import make_block_id
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, RunManifest, RunRequest, from_json, to_json
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.place import drop_damaged
from jacobian_core.lake.publish import intact, merge_totals, publishing

log = logging.getLogger(__name__)

RunState = Literal["new", "resume", "done"]


def begin_run(lake: Lake, run_id: str, identity: Mapping[str, JsonValue], config: Mapping[str, JsonValue]) -> RunState:
    """Start a run, or find out how far it is: 'new', 'resume' (some blocks may be done) or 'done' (nothing to do).

    Raises LakeError where the id stands for a request with another identity, or where the lake can't be written.
    """
    manifest = lake.manifest(run_id)
    request = RunRequest(run_id=run_id, identity=dict(identity), config=dict(config))
    if manifest is not None and not files.is_folder(lake.work_folder(run_id)) and _whole(lake, manifest):
        _check_same(lake.manifest_path(run_id), manifest.identity, request)
        sweep(lake, run_id)
        return "done"
    files.make_folder(lake.work_folder(run_id))
    with publishing(lake, run_id, beginning=True) as manifest:
        if manifest is not None:
            _check_same(lake.manifest_path(run_id), manifest.identity, request)
        state = _begin_locked(lake, manifest, request)
    sweep(lake, run_id)
    return state


def _begin_locked(lake: Lake, manifest: RunManifest | None, request: RunRequest) -> RunState:
    run_id = request.run_id
    if manifest is not None and _whole(lake, manifest):
        files.remove_tree(lake.work_folder(run_id))
        return "done"
    if manifest is not None:
        _reopen(lake, manifest)
        return "resume"
    existing = lake.request(run_id)
    if existing is None:
        if files.write_new(lake.request_path(run_id), to_json(request)):
            return "new"
        existing = lake.request(run_id) or request  # another worker was faster
    _check_same(lake.request_path(run_id), existing.identity, request)
    _mend(lake, run_id)
    return "resume"


def _check_same(path: LakePath, identity: Mapping[str, JsonValue], request: RunRequest) -> None:
    if identity == request.identity:
        return
    keys = sorted({*identity, *request.identity})
    differing = [key for key in keys if identity.get(key) != request.identity.get(key)]
    problem = f"{path}: run id {request.run_id} stands for another request ({', '.join(differing)} differ)."
    raise LakeError(problem, "Give this run another `name`, or use another lake with `--lake`.")


def _whole(lake: Lake, manifest: RunManifest) -> bool:
    return intact(lake, (part for parts in manifest.all_parts().values() for part in parts))


def _reopen(lake: Lake, manifest: RunManifest) -> None:
    """Turn a finished run with missing or short files back into one in progress, so that only those are redone.

    A run that does not keep entries is redone as a whole: nothing is left of what its pairs were summed of.
    """
    run_id = manifest.run_id
    log.warning("run %s: parts are missing or short; their blocks are computed again", run_id)
    request = RunRequest(run_id=run_id, identity=manifest.identity, config=manifest.config)
    files.write_atomic(lake.request_path(run_id), to_json(request))
    for block, whole in zip(manifest.blocks, _whole_blocks(lake, manifest.blocks), strict=True):
        if whole and not block.compacted and block.entries_sha256 is None:
            files.write_atomic(lake.marker_path(run_id, block.block_id), to_json(block))
    drop_damaged(lake, [part for parts in manifest.all_parts().values() for part in parts])
    files.remove(lake.manifest_path(run_id))
    files.fsync_folder(lake.manifest_path(run_id).parent)


def distrust_shard(lake: Lake, run_id: str, shard: int) -> None:
    """Keep in the lake that a shard was changed while the run read it: the run's next start computes it all anew."""
    prefix = make_block_id(shard, 0).partition("-")[0]
    files.write_atomic(lake.distrusted_folder(run_id) / prefix, b"")


def _drop_distrusted(lake: Lake, run_id: str) -> None:
    """Drop the markers and sums of distrusted shards; the record of that goes last, so that a kill loses nothing."""
    work = lake.work_folder(run_id)
    for record in files.list_folder(lake.distrusted_folder(run_id)):
        for folder in (work / "done", work / "all_inputs", work / "pairs"):
            for path in files.list_folder(folder):
                if path.name.startswith(f"{record.name}-"):
                    log.warning("run %s: %s was made of a changed shard and is made again", run_id, path.stem)
                    files.remove(path)
            if files.is_folder(folder):
                files.fsync_folder(folder)
        files.remove(record)


def _mend(lake: Lake, run_id: str) -> None:
    """Drop markers that can't be read, and those of blocks that are damaged or were made of a changed shard."""
    _drop_distrusted(lake, run_id)
    paths = [lake.marker_path(run_id, block_id) for block_id in lake.done_blocks(run_id)]
    markers = [_readable(data, path) for data, path in zip(files.read_all(paths), paths, strict=True)]
    wholes = _whole_blocks(lake, [marker for marker in markers if marker is not None])
    for path, marker in zip(paths, markers, strict=True):
        if marker is None or not next(wholes):
            log.warning("run %s: block %s is damaged and is computed again", run_id, path.stem)
            files.remove(path)
            drop_damaged(lake, list(marker.parts.values()) if marker else [])


def _readable(data: bytes | None, path: LakePath) -> BlockMarker | None:
    """A marker; None where it can't be read or is gone."""
    try:
        return None if data is None else from_json(BlockMarker, data, path)
    except LakeError:
        return None


def _whole_blocks(lake: Lake, blocks: Sequence[BlockMarker]) -> Iterator[bool]:
    """Of each block, whether its parts are there in their full size; asked for all at once, which a store rewards."""
    parts = [part for block in blocks for part in block.parts.values()]
    sizes = dict(zip(parts, files.sizes_of([lake.root / part.path for part in parts]), strict=True))
    return (all(sizes[part] == part.bytes for part in block.parts.values()) for block in blocks)


def publish_run(lake: Lake, manifest: RunManifest) -> None:
    """Write the manifest of a run whose blocks are all done, then clear its work folder; the run is finished then.

    The same manifest again does nothing. Raises LakeError where it does not name exactly the finished blocks, where a
    part it names is missing or short, where its totals are not those of its blocks, or where the lake can't be written.
    """
    run_id = manifest.run_id
    path = lake.manifest_path(run_id)
    with publishing(lake, run_id) as existing:
        if existing is None:
            _check_manifest(lake, manifest)
            if not files.write_new(path, to_json(manifest)):
                existing = lake.manifest(run_id)  # another worker was faster
        if existing is not None and not _same_run(existing, manifest):
            problem = f"{path}: the run is finished already, with other data."
            raise LakeError(problem, "A finished run does not change: start a new run.")
        files.remove_tree(lake.work_folder(run_id))
    sweep(lake, run_id)


def _same_run(one: RunManifest, other: RunManifest) -> bool:
    """Whether both hold the same rows; where one was compacted, as far as its totals tell."""
    mine, theirs = ({block.block_id: block for block in run.blocks} for run in (one, other))
    return (
        one.identity == other.identity
        and mine.keys() == theirs.keys()
        and all(block.same_data(theirs[block_id]) for block_id, block in mine.items())
        and _run_level(one) == _run_level(other)
    )


def _run_level(manifest: RunManifest) -> dict[str, object]:
    of_run = {table: parts for table, parts in manifest.parts.items() if table not in BLOCK_TABLES}
    return {table: [part.content for part in parts] for table, parts in of_run.items()}


def _data(blocks: list[BlockMarker]) -> dict[str, object]:
    """What blocks say, but for the seconds they took."""
    return {block.block_id: (block.parts, block.totals) for block in blocks}


def _check_manifest(lake: Lake, manifest: RunManifest) -> None:
    where = f"manifest of run {manifest.run_id}"
    request = lake.request(manifest.run_id)
    if request is None:
        raise LakeError(f"{where}: the run was not begun.", "Start it with `jacobian run`.")
    _check_same(lake.request_path(manifest.run_id), request.identity, RunRequest(
        run_id=manifest.run_id, identity=manifest.identity, config=manifest.config))  # fmt: skip
    if changed := files.list_folder(lake.distrusted_folder(manifest.run_id)):
        raise LakeError(f"{where}: shard {changed[0].name} was changed while it was read.", _AGAIN)
    named, done = _data(manifest.blocks), _data(lake.markers(manifest.run_id))
    if named != done or len(named) != len(manifest.blocks):
        differing = sorted(block for block in {*named, *done} if named.get(block) != done.get(block))
        raise LakeError(f"{where}: does not match the finished blocks ({', '.join(differing[:3])}).", _AGAIN)
    for table, parts in manifest.all_parts().items():
        if table not in TABLES:
            raise LakeError(f"{where}: {table!r} is not a table of the contract.", _AGAIN)
        for part, size in zip(parts, files.sizes_of([lake.root / part.path for part in parts]), strict=True):
            if size != part.bytes:
                raise LakeError(f"{lake.root / part.path}: missing, or not {part.bytes} bytes.", _AGAIN)
    for name, value in merge_totals(manifest.blocks).items():
        if manifest.totals.get(name) != value:
            raise LakeError(f"{where}: total {name} is {manifest.totals.get(name)}, its blocks say {value}.", _AGAIN)


_AGAIN = "Start the same command again: what is damaged is computed anew."


def sweep(lake: Lake, run_id: str) -> int:
    """Remove temporary files of the run, and of the lake as a whole, whose process is gone; returns how many."""
    removed = 0
    if not lake.locks:
        return _sweep_uploads(lake)
    of_lake = [path for path in files.list_folder(lake.root) if files.is_temporary(path)]
    for path in of_lake + temporary_files(lake, run_id):
        if files.is_stale(path):
            files.remove(path)
            removed += 1
    return removed


def _sweep_uploads(lake: Lake) -> int:
    """The same for a lake in a store: what was to be put into one, and uploads in several parts that were not ended."""
    stale = [path for path in files.list_folder(files.uploads_folder()) if files.is_stale(path)]
    for path in stale:
        files.remove(path)
    try:
        return len(stale) + files.abort_uploads(lake.root)
    except LakeError as error:  # not every store and not every user's rights know these requests
        log.debug("%s", error)
        return len(stale)


def temporary_files(lake: Lake, run_id: str) -> list[LakePath]:
    """Every temporary file of the run, of live processes too."""
    if not lake.locks:
        return []  # an object appears whole
    work = lake.work_folder(run_id)
    folders = [lake.part_path(table, run_id, "x").parent for table in TABLES]
    folders += [
        work,
        work / "staged",
        work / "done",
        work / "pairs",
        lake.distrusted_folder(run_id),
        lake.report_folder(run_id),
    ]
    found = [path for folder in folders for path in files.list_folder(folder) if files.is_temporary(path)]
    manifest = lake.manifest_path(run_id)
    return found + [
        path
        for path in files.list_folder(manifest.parent)
        if files.is_temporary(path) and path.name.endswith(f"-{manifest.name}")
    ]
