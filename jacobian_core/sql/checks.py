"""Invariants between the tables of a run, as SQL: each file of `sql/checks` returns the rows that break one of them.

They read every row of the run (seconds for ten million entries), so `jacobian verify` runs them, and a run may before
it is published; the cheap per-part contract is checked on every write already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jacobian_core.errors import QueryError
from jacobian_core.sql.sql_files import SqlFile, reason, sql_files

if TYPE_CHECKING:
    import duckdb

_SAMPLE_ROWS = 5


@dataclass(frozen=True)
class CheckResult:
    """What one check found: how many rows break the invariant, and the first few of them."""

    name: str
    invariant: str
    passed: bool
    violations: int
    sample: tuple[dict[str, Any], ...]


def run_checks(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[CheckResult]:
    """Run every check over one run of a connection of `warehouse.connect`, in the order of their names.

    Raises QueryError where there is no such run, or a check can't be run (not enough memory, a damaged part).
    """
    if not connection.execute("SELECT count(*) FROM runs WHERE run_id = $run_id", {"run_id": run_id}).fetchall()[0][0]:
        raise QueryError(f"there is no run {run_id!r}.", "`jacobian runs` lists the runs.")
    return [_run_check(connection, file, run_id) for file in sql_files("checks").values()]


def _run_check(connection: duckdb.DuckDBPyConnection, file: SqlFile, run_id: str) -> CheckResult:
    import duckdb

    names = [column.name for column in file.columns]
    try:
        rows = connection.execute(file.statement, {"run_id": run_id}).fetchmany(_SAMPLE_ROWS)
        # Only a broken run pays for the second pass, which counts what the first few rows are a sample of.
        violations = _count(connection, file, run_id) if len(rows) == _SAMPLE_ROWS else len(rows)
    except duckdb.Error as error:
        raise QueryError(
            f"check {file.name} on {run_id}: {reason(error)}.", "Try more memory, or `jacobian verify`."
        ) from error
    sample = tuple(dict(zip(names, row, strict=True)) for row in rows)
    return CheckResult(file.name, file.purpose, not rows, violations, sample)


def _count(connection: duckdb.DuckDBPyConnection, file: SqlFile, run_id: str) -> int:
    result = connection.execute(f"SELECT count(*) FROM ({file.statement}\n)", {"run_id": run_id})
    return int(result.fetchall()[0][0])
