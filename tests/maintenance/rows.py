"""What readers see of a lake: every row of every table, and a digest of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

from jacobian_core.contracts import TABLES
from jacobian_core.lake.layout import Lake
from jacobian_core.sql.warehouse import connect


def rows_of(connection: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[object, ...]]]:
    """Every row by table, in the order of its key."""
    return {
        name: connection.execute(f"SELECT * FROM {name} ORDER BY run_id, {', '.join(table.key)}").fetchall()
        for name, table in TABLES.items()
    }


def seen(lake: Lake) -> str:
    """A digest of every row that a reader who comes now can see."""
    with connect(lake) as connection:
        return hashlib.sha256(repr(rows_of(connection)).encode()).hexdigest()


def parts_on_disk(lake: Lake) -> set[str]:
    return {lake.relative(path) for path in Path(lake.root).rglob("part-*.parquet")}


def parts_named(lake: Lake) -> set[str]:
    return {part.path for run in lake.catalogue().values() for parts in run.parts.values() for part in parts}
