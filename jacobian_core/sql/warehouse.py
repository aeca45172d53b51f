"""DuckDB over the lake: one view a table, over exactly the parts that the records name, and the views of `sql/`.

`connect` makes them in memory, in milliseconds, so a query sees the lake as it is now, also while a run goes on
(`warehouse_file` keeps the same views in a file, for other clients).

DuckDB casts a drifted part to the first part's types without a word. So each part's footer is compared with the
contract first (once per process and file: the records pin its bytes).
"""

from __future__ import annotations

import os
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
from jacobian_core.lake.paths import LakePath, StorePath, absolute
from jacobian_core.lake.validate import check_part
from jacobian_core.sql import store_access
from jacobian_core.sql.run_facts import RunSnapshot, run_snapshot
from jacobian_core.sql.sql_files import literal, reason
from jacobian_core.sql.warehouse_sql import warehouse_statements

if TYPE_CHECKING:
    import duckdb

MORE_MEMORY = "Give DuckDB more with `--set lake.duckdb_memory=8GB`."
AUTO_MEMORY = "auto"
_AUTO_SHARE, _AUTO_AT_MOST = 0.25, 4_000_000_000
_FOOTER_THREADS = 8
_FOOTER_THREADS_STORE = 32
"""More, since a store answers after milliseconds."""
_checked: set[tuple[LakePath, str]] = set()
"""Parts, by path and sha256, whose footers this process has compared with the contract."""


def connect(
    lake: Lake,
    runs: Sequence[str] | None = None,
    memory: str = AUTO_MEMORY,
    threads: int | None = None,
    read_only: bool = True,
    temporary_folder: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views and macros over the lake (`runs`: over these runs only).

    `memory` is DuckDB's limit in its own notation, or 'auto' (see `memory_limit`); what does not fit goes to
    `temporary_folder` (by default the system's). With `read_only`, statements reach no file but the listed parts and
    can't change settings; that they do not COPY over a part is `reports.run_sql`'s business. Raises LakeError where a
    part is missing or breaks its contract, and QueryError for an unknown run or a bad memory limit.
    """
    return connect_states(lake, snapshots(lake, runs), memory, threads, read_only, temporary_folder)


def connect_states(
    lake: Lake,
    states: list[RunSnapshot],
    memory: str = AUTO_MEMORY,
    threads: int | None = None,
    read_only: bool = True,
    temporary_folder: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """As `connect`, over runs as they are given: one that is about to be published can be looked at before it is."""
    check_parts(lake, states)
    connection = open_database(":memory:", memory, threads)
    try:
        folder = temporary_folder or Path(tempfile.gettempdir()) / "jacobian-flows-duckdb"
        connection.execute("SET temp_directory = $folder", {"folder": str(folder)})
        create_views(connection, lake, states)
        if read_only:
            _lock(connection, lake, states)
    except BaseException:
        connection.close()
        raise
    return connection


def _lock(connection: duckdb.DuckDBPyConnection, lake: Lake, states: list[RunSnapshot]) -> None:
    """Let statements open exactly the listed parts: no other file, folder, network address or setting.

    Not even the lake's folders, since a SELECT can write: `FROM enable_logging(..., storage_path = ...)` does.
    """
    root = absolute(lake.root)
    paths = [str(root / part.path) for state in states for parts in state.parts.values() for part in parts]
    connection.execute(f"SET allowed_paths = {literal(paths)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def memory_limit(setting: str) -> str:
    """A limit in DuckDB's notation: of 'auto', a quarter of this machine's memory, but not more than 4 GB."""
    if setting != AUTO_MEMORY:
        return setting
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{min(int(_AUTO_SHARE * machine), _AUTO_AT_MOST)}B"


def open_database(database: str, memory: str, threads: int | None) -> duckdb.DuckDBPyConnection:
    """A connection with the settings that all of ours have; QueryError for a setting that DuckDB refuses."""
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit(memory),
        # A name in a query is a view of the lake, never a Python variable of whoever runs it.
        "python_enable_replacements": False,
        # Every statement of `sql/` that needs an order says so; without this promise less is buffered.
        "preserve_insertion_order": False,
        # What is not installed is not fetched from anywhere.
        "autoinstall_known_extensions": False,
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


def create_views(connection: duckdb.DuckDBPyConnection, lake: Lake, states: list[RunSnapshot]) -> None:
    """Make every view and macro over these runs; LakeError where a part can't be opened."""
    import duckdb

    root = absolute(lake.root)
    datasets = isinstance(root, StorePath) and not store_access.load_httpfs(connection, root)
    if datasets and isinstance(root, StorePath):
        store_access.register_datasets(connection, root, states)
    for statement in warehouse_statements(root, states, datasets):
        try:
            connection.execute(statement)
        except duckdb.OutOfMemoryException as error:
            raise QueryError(f"the views do not fit in DuckDB's memory limit: {reason(error)}.", MORE_MEMORY) from error
        except duckdb.Error as error:
            first = statement.strip().splitlines()[0]
            raise LakeError(
                f"{lake.root}: can't make the views ({first}): {reason(error)}.", "Try `jacobian verify`."
            ) from error


def snapshots(lake: Lake, runs: Sequence[str] | None) -> list[RunSnapshot]:
    """What the records say of these runs, or of all; QueryError for an unknown one."""
    known = lake.runs()
    unknown = sorted(set(runs or ()) - set(known))
    if unknown:
        raise QueryError(f"{lake.root} has no run {unknown[0]}.", f"It has: {', '.join(known) or 'none'}.")
    states = [run_snapshot(lake, run_id) for run_id in known if runs is None or run_id in runs]
    return [state for state in states if state is not None]


def check_parts(lake: Lake, states: list[RunSnapshot]) -> None:
    """Compare every part's size with its record and its footer with its contract; LakeError where they differ."""
    _check_root(absolute(lake.root))
    todo = [
        (state.run_id, TABLES[table], part)
        for state in states
        for table, parts in state.parts.items()
        if table in TABLES
        for part in parts
    ]
    sizes = files.sizes_of([lake.root / part.path for _, _, part in todo])
    with ThreadPoolExecutor(_FOOTER_THREADS if lake.locks else _FOOTER_THREADS_STORE) as pool:
        for future in [pool.submit(_check_one, lake, *item, size) for item, size in zip(todo, sizes, strict=True)]:
            future.result()


def _check_one(lake: Lake, run_id: str, table: Table, part: PartInfo, size: int | None) -> None:
    path = lake.root / part.path
    if size != part.bytes:
        found = "missing" if size is None else f"{size} bytes, its record says {part.bytes}"
        raise LakeError(f"{path}: {found}.", "Restore it from a copy, or remove the run's records and run it again.")
    if (path, part.sha256) not in _checked:
        check_part(path, table, run_id, None, part.rows)
        _checked.add((path, part.sha256))


def _check_root(root: LakePath) -> None:
    """Refuse a root such as `/data/value=3/lake`: DuckDB would read the folder's name over the column of that name."""
    columns = {column.name for table in TABLES.values() for column in table.columns} | {"run_id"}
    for name in root.parts:
        if name.partition("=")[0] in columns and "=" in name:
            raise LakeError(f"{root}: DuckDB takes the folder {name!r} for a column of the lake.", "Move or rename it.")
