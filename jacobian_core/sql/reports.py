"""Run the reports of `sql/reports`, or any query, over a connection of `warehouse.connect`, and write what they return.

Reports are SQL files with typed parameters; results are Arrow tables, small enough to hold in memory. Ad-hoc SQL may
read anything in the lake and write nothing: only statements that select are run, besides the connection's own limits.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from jacobian_core.errors import QueryError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.report_parameters import typed_parameters
from jacobian_core.sql.entries import refuse_without_entries
from jacobian_core.sql.sql_files import SqlFile, nearest, reason, sql_file, sql_files

if TYPE_CHECKING:
    import duckdb

ReportInfo = SqlFile
"""A report: `name`, `purpose` (its question), `parameters`, `grain` and `columns`."""


def list_reports() -> list[ReportInfo]:
    """Every report, in alphabetical order."""
    return list(sql_files("reports").values())


def report_info(name: str) -> ReportInfo:
    """The report of that name; QueryError with the nearest name if there is none."""
    return sql_file("reports", name)


def run_report(connection: duckdb.DuckDBPyConnection, name: str, parameters: Mapping[str, object]) -> pa.Table:
    """Run a report; what is not in `parameters` takes its default, and `run_id` the only run there is.

    Values may be text, as typed on a command line. Raises QueryError for an unknown report, parameter or run, a value
    of the wrong type, a run that did not keep what the report reads, or a failing query.
    """
    report = report_info(name)
    found = _execute(connection, "SELECT run_id, keep, complete FROM runs ORDER BY run_id", {}).fetchall()
    runs, given = [row[0] for row in found], dict(parameters)
    if report.parameter("run_id") and given.get("run_id") is None and len(runs) == 1:
        given["run_id"] = runs[0]
    values = typed_parameters(report, given)
    for parameter in ("run_id", "run_a", "run_b"):
        if parameter in values and values[parameter] not in runs:
            raise QueryError(f"there is no run {values[parameter]!r}.", nearest(str(values[parameter]), runs))
    for run_id, keep, complete in found:
        if keep != "entries" and run_id in [values.get(parameter) for parameter in ("run_id", "run_a", "run_b")]:
            refuse_without_entries(report, run_id, keep, complete)
    table: pa.Table = _execute(connection, report.statement, values).to_arrow_table()
    return table


def write_report(lake: Lake, run_id: str, name: str, table: pa.Table) -> list[LakePath]:
    """Write a report's table as `<lake>/reports/<run_id>/<name>.parquet` and `.csv`, each whole or not at all.

    Raises LakeError where the lake can't be written.
    """
    return write_table(lake.report_folder(run_id), report_info(name).name, table)


def write_table(folder: LakePath, name: str, table: pa.Table) -> list[LakePath]:
    """Write a table as Parquet and as CSV into a folder of the lake, each whole or not at all."""
    import pyarrow.csv
    import pyarrow.parquet

    parquet, csv = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, csv)
    paths: list[LakePath] = []
    for suffix, content in ((".parquet", parquet), (".csv", csv)):
        path = folder / f"{name}{suffix}"
        files.write_atomic(path, content.getvalue())
        paths.append(path)
    return paths


def run_sql(
    connection: duckdb.DuckDBPyConnection,
    query: str | Path,
    parameters: Mapping[str, object] | None = None,
    write: bool = False,
) -> pa.Table:
    """Run one statement, given as text or as a file (a Path, or text that is the path of a `.sql` file).

    Unless `write`, only statements that select (also DESCRIBE, SHOW, SUMMARIZE, and EXPLAIN of these) are run. Raises
    QueryError where the file can't be read, the statement may write, or DuckDB refuses it.
    """
    text = _query_text(query)
    if not write:
        _check_reads_only(connection, text)
    relation = _execute(connection, text, parameters or {})
    return relation.to_arrow_table() if relation.description else pa.table({})


def _query_text(query: str | Path) -> str:
    is_file = isinstance(query, Path) or (query.strip().endswith(".sql") and "\n" not in query.strip())
    if not is_file:
        return str(query)
    path = Path(str(query).strip())
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(
            f"{path}: can't read it as SQL ({error}).", "Give a text file, or the query itself."
        ) from error


def _check_reads_only(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    import duckdb

    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        raise _query_error(error) from error
    if len(statements) != 1:
        raise QueryError(f"the query holds {len(statements)} statements.", "Give exactly one.")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        _check_reads_only(connection, _explained(text))
    elif kind != duckdb.StatementType.SELECT:
        problem = f"{kind.name} statements could change something, and this connection only reads."
        raise QueryError(
            problem, "Write a SELECT (`--csv` keeps its rows in a file), or allow it: `jacobian sql --write`."
        )


def _explained(text: str) -> str:
    """The statement that an EXPLAIN explains: with ANALYZE, DuckDB runs it."""
    import duckdb

    raw = text.encode()
    starts = [start for start, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]  # in bytes
    rest = [raw[start:] for start in starts[1:]]  # after EXPLAIN
    if rest and rest[0][:7].lower() in (b"analyze", b"analyse"):
        rest = rest[1:]
    if not rest or rest[0].startswith(b"("):
        raise QueryError("EXPLAIN with options is not read here.", "Write EXPLAIN or EXPLAIN ANALYZE, then a SELECT.")
    return rest[0].decode()


def _execute(
    connection: duckdb.DuckDBPyConnection, statement: str, parameters: Mapping[str, object]
) -> duckdb.DuckDBPyConnection:
    import duckdb

    try:
        return connection.execute(statement, dict(parameters))
    except duckdb.Error as error:
        raise _query_error(error) from error


def _query_error(error: Exception) -> QueryError:
    return QueryError(f"{reason(error)}.", '`jacobian sql "SHOW TABLES"` lists the views, DESCRIBE their columns.')
