"""Which reports can be asked of a run that does not keep its entries, and what is said of the others.

A report reads entries if any view or macro below it does. One that has something to say without them says in its header
(`without entries`) what is then null; any other refuses such a run, in a line that names the setting.
"""

from __future__ import annotations

from jacobian_core.contracts import JACOBIAN_ENTRIES, PAIR_STATS
from jacobian_core.errors import QueryError
from jacobian_core.sql.sql_files import SqlFile, sql_files


def setting(keep: str) -> str:
    """How a run was told not to keep its entries."""
    return f"jacobian.keep = '{keep}'"


def tables_below(file: SqlFile) -> frozenset[str]:
    """Everything that a file reads, through the views and macros that it reads."""
    known = sql_files("views") | sql_files("macros")
    seen, todo = set[str](), [*file.reads]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += known[name].reads if name in known else ()
    return frozenset(seen)


def needs_entries(report: SqlFile) -> bool:
    """Whether a report has nothing to say without entries."""
    return not report.without_entries and JACOBIAN_ENTRIES.name in tables_below(report)


def refuse_without_entries(report: SqlFile, run_id: str, keep: str, complete: bool) -> None:
    """Refuse a report of a run that does not keep entries, if it can't have it; QueryError says why."""
    if needs_entries(report):
        raise QueryError(
            f"{report.name} reads single entries, which run {run_id} did not keep ({setting(keep)}).",
            f"Ask for {', '.join(_others())}, or analyse the text with jacobian.keep=entries.",
        )
    if not complete and PAIR_STATS.name in tables_below(report):
        raise QueryError(
            f"{report.name} reads sums of pairs, which run {run_id} makes at its end ({setting(keep)}).",
            "Ask again when the run is finished.",
        )


def _others() -> list[str]:
    """Reports of pairs that such a run can have."""
    return [name for name, file in sql_files("reports").items() if file.without_entries and file.parameter("run_id")]
