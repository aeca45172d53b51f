"""The statements that make the warehouse: views over listed parts, `runs`, and every view and macro of `sql/`.

A run that has no `pair_stats` yet (it goes on) gets them computed from its entries whenever they are read, by a mart's
statement: reports work from the first block on, at the price of an aggregation a query. `latent_stats` is computed so
for every run that keeps its active latents.
"""

from __future__ import annotations

from collections.abc import Iterator

from jacobian_core.contracts import TABLES, Table
from jacobian_core.lake.paths import LakePath
from jacobian_core.sql.run_facts import RUN_FACTS, RunSnapshot
from jacobian_core.sql.sql_files import SqlFile, bound_statement, in_reading_order, literal, sql_file, sql_files

DUCKDB_TYPES = {
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
}
"""DuckDB's name of each type of a contract."""

_RUN_ID_COMMENT = "the run"


def warehouse_statements(root: LakePath, states: list[RunSnapshot], datasets: bool = False) -> Iterator[str]:
    """Every statement, in order; `root` is the lake's absolute path.

    `datasets`: the parts of each table are known to the connection under `dataset_name`.
    """
    for table in TABLES.values():
        yield f"CREATE VIEW {table.name} AS {_table_view(root, table, states, datasets)}"
        yield from _comments(table.name, f"{table.description} A row: {table.grain}.", _table_columns(table))
    yield f"CREATE VIEW runs AS {_runs_view(states)}"
    facts = {fact.name: _with_unit(fact.description, fact.unit) for fact in RUN_FACTS}
    yield from _comments(
        "runs", "The runs of the lake when these views were made (they name every file). A row: one run.", facts
    )
    # Together: macros read views, and views may use macros.
    for file in in_reading_order(sql_files("macros") | sql_files("views")):
        if file.kind == "macros":
            yield macro_statement(file)
            continue
        yield f"CREATE VIEW {file.name} AS {file.statement}"
        comment = f"{file.purpose} A row: {file.grain}."
        yield from _comments(file.name, comment, {column.name: column.comment for column in file.columns})


def macro_statement(file: SqlFile) -> str:
    """CREATE MACRO of a file of `sql/macros`; one without columns returns a single value."""
    parameters = ", ".join(parameter.name for parameter in file.parameters)
    body = f"TABLE {file.statement}" if file.columns else f"({file.statement}\n)"
    return f"CREATE MACRO {file.name}({parameters}) AS {body}"


def dataset_name(table: str) -> str:
    """The name under which a connection knows a table's parts, where it does not open them itself."""
    return f"_parts_of_{table}"


def _table_view(root: LakePath, table: Table, states: list[RunSnapshot], datasets: bool) -> str:
    paths = [str(root / part.path) for state in states for part in state.parts.get(table.name, [])]
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    selects = []
    if paths and datasets:
        selects.append(f"SELECT {columns}, run_id FROM {dataset_name(table.name)}")
    elif paths:
        # run_id is the part's folder; the columns are listed, so that no other folder of the path becomes one.
        selects.append(
            f"SELECT {columns}, run_id FROM read_parquet({literal(paths)}, hive_partitioning = true, "
            "hive_types = {'run_id': VARCHAR}, union_by_name = false)"
        )
    if (source := _LIVE.get(table.name)) is not None:
        lacking = [state for state in states if table.name not in state.parts and state.parts.get(source)]
        selects += [_live(table, columns, state) for state in lacking]
    return "\nUNION ALL ".join(selects) or _empty_view(table)


def _empty_view(table: Table) -> str:
    columns = [f'NULL::{DUCKDB_TYPES[column.type]} AS "{column.name}"' for column in table.columns]
    return f"SELECT {', '.join(columns)}, NULL::VARCHAR AS run_id WHERE false"


_LIVE = {"pair_stats": "jacobian_entries", "latent_stats": "latents"}
"""Tables that are computed from another one while there is no part of them."""


def _live(table: Table, columns: str, state: RunSnapshot) -> str:
    file, values = sql_file("marts", table.name), {"run_id": state.run_id, "thresholded": state.thresholded}
    mart = bound_statement(file, {parameter.name: values[parameter.name] for parameter in file.parameters})
    return f"SELECT {columns}, {literal(state.run_id)} AS run_id FROM ({mart}\n)"


def _runs_view(states: list[RunSnapshot]) -> str:
    names = ", ".join(f"{fact.name}" for fact in RUN_FACTS)
    if not states:
        nulls = ", ".join(f"NULL::{fact.type} AS {fact.name}" for fact in RUN_FACTS)
        return f"SELECT {nulls} WHERE false"
    rows = [", ".join(f"{literal(fact.of(state))}::{fact.type}" for fact in RUN_FACTS) for state in states]
    values = ",\n".join(f"({row})" for row in rows)
    return f"SELECT {names} FROM (VALUES {values}) AS facts ({names})"


def _table_columns(table: Table) -> dict[str, str]:
    columns = {column.name: _with_unit(column.description, column.unit) for column in table.columns}
    return columns | {"run_id": _RUN_ID_COMMENT}


def _with_unit(description: str, unit: str) -> str:
    return f"{description} [{unit}]" if unit else description


def _comments(view: str, comment: str, columns: dict[str, str]) -> Iterator[str]:
    yield f"COMMENT ON VIEW {view} IS {literal(comment)}"
    for name, text in columns.items():
        yield f'COMMENT ON COLUMN {view}."{name}" IS {literal(text)}'
