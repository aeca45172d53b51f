"""`<lake>/warehouse.duckdb`: the lake's views in a file that any DuckDB client opens. It holds no data.

It lists the parts by absolute path as they were when it was built, so it is built again whenever a run is published.
Of a lake in a store it lists s3:// addresses, for a client that has loaded `httpfs` and has a secret of its own: ours
is not in the file. Such a client can attach the file where it lies: `ATTACH 's3://.../warehouse.duckdb' (READ_ONLY)`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.sql import store_access
from jacobian_core.sql.warehouse import check_parts, create_views, open_database, snapshots

log = logging.getLogger(__name__)

_TRIES = 5
"""How often a store's warehouse is built anew because another process has replaced it meanwhile."""


def build_warehouse(lake: Lake) -> LakePath:
    """Write `<lake>/warehouse.duckdb`, views and macros only; returns its path.

    It appears under its name whole, so a reader finds the old file or the new one, and one process builds it at a time,
    so that the last one knows every run; in a store, where several may, one that another has overtaken builds it again.
    A store's lake has none where DuckDB's `httpfs` is not installed. Raises LakeError as `connect` does.
    """
    path = lake.warehouse_path
    if isinstance(path, Path):
        lock = lake.root / "_work" / "warehouse.lock"
        files.make_folder(lock.parent)
        with files.exclusive(lock):
            _build_beside(lake, path)
    elif store_access.httpfs_path() is None:
        log.warning("%s is not written: it needs DuckDB's httpfs (pip install 'jacobian-flows[s3]')", path)
    else:
        _build_and_put(lake, path)
    return path


def refresh_warehouse(lake: Lake, run_id: str) -> None:
    """Build the warehouse if it is not there, or does not have this finished run."""
    if run_id not in _finished_runs(lake.warehouse_path):
        build_warehouse(lake)


def _finished_runs(path: LakePath) -> list[str]:
    """The finished runs that a warehouse file has; none where it can't be read, or another version wrote it."""
    import duckdb

    if not files.is_file(path):
        return []
    try:
        with files.on_disk(path) as copy, duckdb.connect(str(copy), read_only=True) as connection:
            return [row[0] for row in connection.execute("SELECT run_id FROM runs WHERE complete").fetchall()]
    except duckdb.Error:
        return []


def _build_beside(lake: Lake, path: Path) -> None:
    temporary = files.temporary_path(path)
    try:
        _build(lake, temporary)
        files.rename(temporary, path)
        files.fsync_folder(path.parent)
    finally:
        _remove(temporary)


def _build_and_put(lake: Lake, path: LakePath) -> None:
    """What was there when we began to look at the runs is what is replaced, or else we look again."""
    for _ in range(_TRIES):
        version = files.version_of(path)
        temporary = files.temporary_path(files.uploads_folder() / path.name)
        files.make_folder(temporary.parent)
        try:
            _build(lake, temporary)
            if files.write_over(path, temporary.read_bytes(), version):
                return
        finally:
            _remove(temporary)
    raise LakeError(f"{path}: others replaced it {_TRIES} times meanwhile.", "Start the same command again.")


def _build(lake: Lake, path: Path) -> None:
    states = snapshots(lake, None)
    check_parts(lake, states)
    connection = open_database(str(path), memory="1GB", threads=None)
    try:
        create_views(connection, lake, states)
    finally:
        connection.close()


def _remove(temporary: Path) -> None:
    files.remove(temporary)
    files.remove(temporary.with_name(temporary.name + ".wal"))
