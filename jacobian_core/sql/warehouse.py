"""DuckDB over the lake: one view a table, over exactly the parts that the records name, and the views of `sql/`.

`connect` makes them in memory, in milliseconds, so a query sees the lake as it is now, also while a run goes on.
`build_warehouse` keeps the same views in `<lake>/warehouse.duckdb` for other DuckDB clients; it holds no data, but
lists the parts by absolute path as they were when it was built, so it is built again whenever a run or a report is
published.

DuckDB casts a drifted part to the first part's types without a word. So each part's footer is compared with the
contract first (once per process and file: the records pin its bytes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from jacobian_core.contracts import TABLES, Table
from jacobian_core.errors import LakeError, QueryError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo
from jacobian_core.lake.validate import check_part
from jacobian_core.sql.run_facts import RunSnapshot, run_snapshot
from jacobian_core.sql.sql_files import literal, reason
from jacobian_core.sql.warehouse_sql import warehouse_statements

if TYPE_CHECKING:
    import duckdb

MORE_MEMORY = "Give DuckDB more with `--set lake.duckdb_memory=8GB`."
_FOOTER_THREADS = 8
_checked: set[tuple[Path, str]] = set()
"""Parts, by path and sha256, whose footers this process has compared with the contract."""


def connect(
    lake: Lake,
    runs: Sequence[str] | None = None,
    memory: str = "4GB",
    threads: int | None = None,
    read_only: bool = True,
    temporary_folder: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views and macros over the lake (`runs`: over these runs only).

    `memory` is DuckDB's limit in its own notation; what does not fit goes to `temporary_folder` (by default the
    system's). With `read_only`, statements reach no file but the listed parts and can't change settings; that they do
    not COPY over a part is `reports.run_sql`'s business. Raises LakeError where a part is missing or breaks its
    contract, and QueryError for an unknown run or a bad memory limit.
    """
    return connect_states(lake, _states(lake, runs), memory, threads, read_only, temporary_folder)


def connect_states(
    lake: Lake,
    states: list[RunSnapshot],
    memory: str = "4GB",
    threads: int | None = None,
    read_only: bool = True,
    temporary_folder: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """As `connect`, over runs as they are given: one that is about to be published can be looked at before it is."""
    _check_parts(lake, states)
    connection = _open(":memory:", memory, threads)
    try:
        folder = temporary_folder or Path(tempfile.gettempdir()) / "jacobian-flows-duckdb"
        connection.execute("SET temp_directory = $folder", {"folder": str(folder)})
        _create(connection, lake, states)
        if read_only:
            _lock(connection, lake, states)
    except BaseException:
        connection.close()
        raise
    return connection


def build_warehouse(lake: Lake) -> Path:
    """Write `<lake>/warehouse.duckdb`, views and macros only; returns its path.

    It appears under its name whole, so a reader finds the old file or the new one, and one process builds it at a time,
    so that the last one knows every run. Raises LakeError as `connect` does.
    """
    lock = lake.root / "_work" / "warehouse.lock"
    files.make_folder(lock.parent)
    with files.exclusive(lock):
        return _build(lake)


def refresh_warehouse(lake: Lake, run_id: str) -> None:
    """Build the warehouse if it is not there, or does not have this finished run."""
    if run_id not in _finished_runs(lake.warehouse_path):
        build_warehouse(lake)


def _finished_runs(path: Path) -> list[str]:
    """The finished runs that a warehouse file has; none where it can't be read, or another version wrote it."""
    import duckdb

    if not path.is_file():
        return []
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            return [row[0] for row in connection.execute("SELECT run_id FROM runs WHERE complete").fetchall()]
    except duckdb.Error:
        return []


def _build(lake: Lake) -> Path:
    states = _states(lake, None)
    _check_parts(lake, states)
    path = lake.warehouse_path
    temporary = files.temporary_path(path)
    try:
        connection = _open(str(temporary), memory="1GB", threads=None)
        try:
            _create(connection, lake, states)
        finally:
            connection.close()
        files.rename(temporary, path)
        files.fsync_folder(path.parent)
    finally:
        files.remove(temporary)
        files.remove(temporary.with_name(temporary.name + ".wal"))
    return path


def _lock(connection: duckdb.DuckDBPyConnection, lake: Lake, states: list[RunSnapshot]) -> None:
    """Let statements open exactly the listed parts: no other file, folder, network address or setting.

    Not even the lake's folders, since a SELECT can write: `FROM enable_logging(..., storage_path = ...)` does.
    """
    root = lake.root.resolve()
    paths = [str(root / part.path) for state in states for parts in state.parts.values() for part in parts]
    connection.execute(f"SET allowed_paths = {literal(paths)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _open(database: str, memory: str, threads: int | None) -> duckdb.DuckDBPyConnection:
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        # A name in a query is a view of the lake, never a Python variable of whoever runs it.
        "python_enable_replacements": False,
        # Every statement of `sql/` that needs an order says so; without this promise less is buffered.
        "preserve_insertion_order": False,
    }
    if threads is not None:
        settings["threads"] = threads
    try:
        connection = duckdb.connect(database, config=settings)
    except duckdb.IOException as error:
        raise LakeError(f"{database}: can't create it: {reason(error)}.", "Check the folder and the disk.") from error
    except duckdb.Error as error:
        raise QueryError(
            f"DuckDB refuses memory limit {memory!r} or threads {threads!r}: {reason(error)}.", "Such as 4GB."
        ) from error
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _create(connection: duckdb.DuckDBPyConnection, lake: Lake, states: list[RunSnapshot]) -> None:
    import duckdb

    for statement in warehouse_statements(lake.root.resolve(), states):
        try:
            connection.execute(statement)
        except duckdb.OutOfMemoryException as error:
            raise QueryError(f"the views do not fit in DuckDB's memory limit: {reason(error)}.", MORE_MEMORY) from error
        except duckdb.Error as error:
            first = statement.strip().splitlines()[0]
            raise LakeError(
                f"{lake.root}: can't make the views ({first}): {reason(error)}.", "Try `jacobian verify`."
            ) from error


def _states(lake: Lake, runs: Sequence[str] | None) -> list[RunSnapshot]:
    known = lake.runs()
    unknown = sorted(set(runs or ()) - set(known))
    if unknown:
        raise QueryError(f"{lake.root} has no run {unknown[0]}.", f"It has: {', '.join(known) or 'none'}.")
    states = [run_snapshot(lake, run_id) for run_id in known if runs is None or run_id in runs]
    return [state for state in states if state is not None]


def _check_parts(lake: Lake, states: list[RunSnapshot]) -> None:
    """Compare every part's size with its record and its footer with its contract; LakeError where they differ."""
    _check_root(lake.root.resolve())
    todo = [
        (state.run_id, TABLES[table], part)
        for state in states
        for table, parts in state.parts.items()
        if table in TABLES
        for part in parts
    ]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for future in [pool.submit(_check_one, lake, *item) for item in todo]:
            future.result()


def _check_one(lake: Lake, run_id: str, table: Table, part: PartInfo) -> None:
    path = lake.root / part.path
    size = files.size_of(path)
    if size != part.bytes:
        found = "missing" if size is None else f"{size} bytes, its record says {part.bytes}"
        raise LakeError(f"{path}: {found}.", "Restore it from a copy, or remove the run's records and run it again.")
    if (path, part.sha256) not in _checked:
        check_part(path, table, run_id, None, part.rows)
        _checked.add((path, part.sha256))


def _check_root(root: Path) -> None:
    """Refuse a root such as `/data/value=3/lake`: DuckDB would read the folder's name over the column of that name."""
    columns = {column.name for table in TABLES.values() for column in table.columns} | {"run_id"}
    for name in root.parts:
        if name.partition("=")[0] in columns and "=" in name:
            raise LakeError(f"{root}: DuckDB takes the folder {name!r} for a column of the lake.", "Move or rename it.")
