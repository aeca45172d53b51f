"""What a page shows of a run: the rows of its reports and its record, all small whatever the run's size.

A report that is missing, fails, or has no rows leaves its part of the page empty with the reason; it never stops the
page, since a page of a run that goes on, or has no interventions, is useful too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jacobian_core.errors import QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.page.theme import SERIES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Row = dict[str, Any]

PAGE_REPORTS = (
    "causal_zero_answer",
    "causal_zero_test",
    "effect_density",
    "value_histogram",
    "threshold_fractions",
    "convergence",
    "derivative_density",
    "derivative_correlation",
    "function_shapes",
    "sparsity",
    "pair_examples",
    "top_interventions",
    "data_quality",
)
MOST_RUNS = len(SERIES)
CHECKED_ENTRIES = 50_000_000
"""Runs with more stored entries are not checked for the page: the checks read every row (`jacobian verify`)."""

_KEPT_FOLDERS = 2
_TEXT = """
SELECT
    token_id,
    text_around($run_id, token_id, -14, 0) AS text_before,
    text,
    text_around($run_id, token_id, 1, 9) AS text_after
FROM tokens
WHERE run_id = $run_id AND list_contains($token_ids, token_id)
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckLine:
    """The outcome of one check of `sql/checks`."""

    name: str
    invariant: str
    violations: int


@dataclass(frozen=True)
class RunData:
    """One run as the page shows it: `facts` is its row of the view `runs`, `record` the sections of its manifest."""

    run_id: str
    label: str
    series: int
    facts: Row
    record: dict[str, Any]
    reports: dict[str, list[Row]]
    missing: dict[str, str] = field(default_factory=dict)
    checks: tuple[CheckLine, ...] | None = None

    def rows(self, report: str) -> list[Row]:
        """The rows of a report; none where it could not be run."""
        return self.reports.get(report, [])


def gather_runs(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    run_ids: Sequence[str],
    known: Mapping[str, Mapping[str, pa.Table]] | None = None,
) -> list[RunData]:
    """Everything that the page shows of these runs; `known` has reports by run that were run already.

    Raises QueryError for no run, too many of them, or one that the connection does not have.
    """
    if not 1 <= len(run_ids) <= MOST_RUNS:
        raise QueryError(f"a page shows 1 to {MOST_RUNS} runs, not {len(run_ids)}.", "Name fewer with `--run`.")
    labels = short_labels(run_ids)
    given = known or {}
    return [
        _gather(connection, lake, run_id, (labels[run_id], place), given.get(run_id, {}))
        for place, run_id in enumerate(run_ids)
    ]


def short_labels(run_ids: Sequence[str]) -> dict[str, str]:
    """A short name of each run: its configuration's name, with the start of its hash where names are the same."""
    names = [run_id.rpartition("-")[0] or run_id for run_id in run_ids]
    return {
        run_id: name if names.count(name) == 1 else f"{name} {run_id.rpartition('-')[2][:4]}"
        for run_id, name in zip(run_ids, names, strict=True)
    }


def _gather(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    run_id: str,
    shown_as: tuple[str, int],
    known: Mapping[str, pa.Table],
) -> RunData:
    from jacobian_core.sql.reports import list_reports, run_report, run_sql

    facts = run_sql(connection, "SELECT * FROM runs WHERE run_id = $run_id", {"run_id": run_id}).to_pylist()
    if not facts:
        raise QueryError(f"there is no run {run_id!r}.", "`jacobian runs` lists the runs.")
    existing = {info.name for info in list_reports()}
    reports: dict[str, list[Row]] = {}
    missing: dict[str, str] = {}
    for name in PAGE_REPORTS:
        if name not in existing:
            missing[name] = "this version has no such report"
            continue
        try:
            table = known[name] if name in known else run_report(connection, name, {"run_id": run_id})
            reports[name] = table.to_pylist()
        except QueryError as error:
            expected = facts[0]["keep"] != "entries"  # what it did not keep is no news
            logger.log(logging.DEBUG if expected else logging.WARNING, "page of %s without %s: %s", run_id, name, error)
            missing[name] = error.problem
    add_text(connection, run_id, reports.get("top_interventions", []))
    label, series = shown_as
    fact = short_paths(facts[0])
    checks = _checks(connection, run_id, facts[0])
    return RunData(run_id, label, series, fact, short_paths(_record(lake, run_id)), reports, missing, checks)


def add_text(connection: duckdb.DuckDBPyConnection, run_id: str, rows: Sequence[Row]) -> None:
    """Give rows with a `token_id` the token's text, and what stands before and after it."""
    from jacobian_core.sql.reports import run_sql

    ids = [row["token_id"] for row in rows]
    found = run_sql(connection, _TEXT, {"run_id": run_id, "token_ids": ids}).to_pylist() if ids else []
    texts = {row["token_id"]: row for row in found}
    for row in rows:
        row.update(texts.get(row["token_id"], {"text_before": "", "text": "", "text_after": ""}))


def short_paths(value: Any) -> Any:
    """The value with every absolute path in it cut to its end: a page travels, and folders name people."""
    if isinstance(value, dict):
        return {key: short_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [short_paths(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return "/".join(["…", *PurePath(value).parts[-_KEPT_FOLDERS:]])
    return value


def _record(lake: Lake, run_id: str) -> dict[str, Any]:
    """The manifest, or the request of a run that goes on, without its list of parts."""
    from jacobian_core.sql.run_facts import run_snapshot

    snapshot = run_snapshot(lake, run_id)
    return {} if snapshot is None else snapshot.record.model_dump(mode="json", exclude={"blocks", "parts"})


def _checks(connection: duckdb.DuckDBPyConnection, run_id: str, facts: Row) -> tuple[CheckLine, ...] | None:
    from jacobian_core.sql.checks import run_checks

    if (facts.get("entries_stored") or 0) > CHECKED_ENTRIES:
        return None
    try:
        found = run_checks(connection, run_id)
    except QueryError as error:
        logger.warning("page of %s without checks: %s", run_id, error)
        return None
    return tuple(CheckLine(c.name, c.invariant, c.violations) for c in found)
