"""The reports: given rows and expected rows, brute force on random runs, parameters, files, and ad-hoc SQL."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jacobian_core.errors import LakeError, QueryError
from jacobian_core.sql.reports import list_reports, report_info, run_report, run_sql, write_report
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import (
    HAND_RUN,
    N_IN,
    N_OUT,
    RANDOM_RUN,
    Token,
    config_of,
    hand_lake,
    random_lake,
    random_tokens,
    tables_of,
    write_blocks,
)

PAIRS = N_IN * N_OUT
Connection = duckdb.DuckDBPyConnection


def _rows(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.select(names or table.column_names).to_pylist()]


# ---- given, expect


def test_threshold_fractions(hand_connection: Connection) -> None:
    """Means over all tokens 2/3, 2/3, 1/3, 0; out-active 2, 2/3, 1/3, 0; coactive 2, 1, 1/3, 0; max 2, 1.5, .75, 0."""
    table = run_report(hand_connection, "threshold_fractions", {"thresholds": "0,0.5,0.75,1,2"})
    counts = ("pairs_mean_all_tokens", "pairs_mean_out_active", "pairs_mean_coactive", "pairs_max")
    assert _rows(table, "threshold", *counts, "pairs_total") == [
        (0.0, 3, 3, 3, 3, 48),
        (0.5, 2, 2, 2, 3, 48),
        (0.75, 0, 1, 2, 2, 48),  # strictly greater: the largest |J| of a pair is 0.75
        (1.0, 0, 1, 1, 2, 48),
        (2.0, 0, 0, 0, 0, 48),
    ]
    for row in table.to_pylist():
        for statistic in ("mean_all_tokens", "mean_out_active", "mean_coactive", "max"):
            assert row[f"share_{statistic}"] == row[f"pairs_{statistic}"] / 48
    assert _rows(table, "entries_per_token", "share_of_entries")[:2] == [(5 / 3, 5 / 7), (1.0, 3 / 7)]
    assert _rows(table, "scope", "entries_dropped")[0] == ("active", False)


def test_threshold_fractions_defaults_are_the_notebooks(hand_connection: Connection) -> None:
    table = run_report(hand_connection, "threshold_fractions", {})
    assert table.column("threshold").to_pylist() == [0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]


def test_threshold_fractions_of_another_scope(hand_connection: Connection) -> None:
    """A run without sums of that scope has no pair above anything, and no mean over coactive tokens."""
    table = run_report(hand_connection, "threshold_fractions", {"scope": "all_inputs", "thresholds": [0.0]})
    assert _rows(table, "pairs_mean_all_tokens", "pairs_mean_coactive", "pairs_max") == [(0, None, 0)]


def test_threshold_fractions_of_a_run_that_dropped_entries(tmp_path: Path) -> None:
    with connect(hand_lake(tmp_path, min_abs=0.5)) as connection:
        table = run_report(connection, "threshold_fractions", {"thresholds": [0.0, 0.6]})
    assert _rows(table, "pairs_mean_all_tokens", "pairs_max", "entries_dropped") == [(3, 3, True), (2, 3, True)]


def test_convergence(hand_connection: Connection) -> None:
    """Three tokens: stages of 1, 2 and 3. Sums of |J| after each: (1,0) .5 .5 2; (1,3) .25 1 1; (2,3) 2 2 2."""
    table = run_report(hand_connection, "convergence", {"thresholds": [0.3, 0.6]})
    assert _rows(table, "tokens", "threshold", "pairs_mean_all_tokens", "pairs_max") == [
        (1, 0.3, 2, 2),
        (2, 0.3, 2, 3),
        (3, 0.3, 3, 3),
        (1, 0.6, 1, 1),
        (2, 0.6, 1, 2),
        (3, 0.6, 2, 3),
    ]
    assert table.column("share_max").to_pylist()[0] == 2 / 48


def test_sparsity(hand_connection: Connection) -> None:
    """Token c: |J| = 1.5, 0. Token b: 0.75 alone. Token a: 0.5, 0.25, 0, 2 with l1 2.75, l2 sqrt(4.3125)."""
    table = run_report(hand_connection, "sparsity", {"thresholds": [0.4]})
    found = {row["measure"]: row for row in table.to_pylist()}
    ratio = 2.75 / math.sqrt(4.3125)
    assert found["l1_over_l2"]["mean"] == pytest.approx((1 + 1 + ratio) / 3, rel=1e-12)
    assert found["hoyer"]["mean"] == pytest.approx((1 + (2 - ratio) / (2 - 1)) / 2, rel=1e-12)
    assert found["hoyer"]["tokens"] == 2  # not defined for a single entry
    # Gini of (0, .25, .5, 2): 2 * (2*.25 + 3*.5 + 4*2) / (4 * 2.75) - 5/4; of (0, 1.5): 1/2; of one entry: 0.
    assert found["gini"]["mean"] == pytest.approx((20 / 11 - 1.25 + 0.5 + 0) / 3, rel=1e-12)
    values = np.array([0.5, -0.25, 0, 2.0])
    centred = values - values.mean()
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    assert found["kurtosis"]["mean"] == pytest.approx((kurtosis + 1) / 2, rel=1e-12)
    assert found["entries_above"]["threshold"] == 0.4
    assert (found["entries_above"]["mean"], found["entries_above"]["median"]) == (4 / 3, 1.0)
    assert (found["l1"]["median"], found["abs_max"]["p95"]) == (1.5, pytest.approx(1.95))
    assert (found["entries"]["mean"], found["entries"]["tokens"]) == (7 / 3, 3)


def test_sparsity_of_a_sample_says_so(hand_connection: Connection) -> None:
    table = run_report(hand_connection, "sparsity", {"max_tokens": 2})
    assert {row["measure"]: row["tokens"] for row in table.to_pylist()}["l1"] == 2


def test_mean_max_aggregates(hand_connection: Connection) -> None:
    table = run_report(hand_connection, "mean_max_aggregates", {"top": 3})
    assert _rows(table, "rank", "out_latent", "in_latent", "n_coactive", "max_abs", "example_value", "example") == [
        (1, 1, 0, 2, 1.5, -1.5, ">>>c<<<"),
        (2, 2, 3, 1, 2.0, 2.0, ">>>a<<< b"),
        (3, 1, 3, 3, 0.75, 0.75, "a>>> b<<<"),
    ]
    assert _rows(table, "mean_abs_all_tokens", "mean_abs_out_active", "mean_abs_coactive", "mean", "sd")[0] == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        1.0,
        -0.5,
        1.0,
    )


@pytest.mark.parametrize(
    ("order_by", "first"), [("max_abs", (2, 3)), ("mean_abs_out_active", (2, 3)), ("mean_abs_all_tokens", (1, 0))]
)
def test_mean_max_aggregates_in_other_orders(
    hand_connection: Connection, order_by: str, first: tuple[int, int]
) -> None:
    table = run_report(hand_connection, "mean_max_aggregates", {"order_by": order_by})
    assert table.num_rows == 4
    assert _rows(table, "out_latent", "in_latent")[0] == first
    often = run_report(hand_connection, "mean_max_aggregates", {"order_by": order_by, "min_coactive": "2"})
    assert _rows(often, "out_latent", "in_latent") == [(1, 0), (1, 3)]


def test_mean_max_aggregates_refuses_another_order(hand_connection: Connection) -> None:
    with pytest.raises(QueryError, match="order_by"):
        run_report(hand_connection, "mean_max_aggregates", {"order_by": "sd; DROP VIEW tokens"})


def test_data_quality(hand_connection: Connection) -> None:
    found = {row[0]: row[1] for row in _rows(run_report(hand_connection, "data_quality", {}))}
    assert found["documents"] == 2
    assert found["lines and documents skipped"] == 3
    assert found["tokens"] == 3
    assert found["FVU of the input SAE"] == 0.125
    assert found["active input latents per token"] == 5 / 3
    assert (found["input latents seen active"], found["input latents never active"]) == (2, N_IN - 2)
    assert (found["output latents seen active"], found["output latents never active"]) == (2, N_OUT - 2)
    assert found["sum of |J| dropped by thresholds"] == 0


def test_data_quality_of_a_run_that_dropped_entries(tmp_path: Path) -> None:
    with connect(hand_lake(tmp_path, min_abs=0.5)) as connection:
        found = {row[0]: row[1] for row in _rows(run_report(connection, "data_quality", {}))}
    assert found["entries dropped by thresholds"] == pytest.approx(3 / 7)
    assert found["sum of |J| dropped by thresholds"] == pytest.approx(0.25 / 5)


def test_compare_sparsity(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    halved = [Token(0, 1, "a", {0: 1.0}, {0: 1.0, 1: 1.0}, {(0, 0): 0.25, (1, 0): 0.25})]
    write_blocks(lake, RANDOM_RUN, [tables_of(halved)], config_of(name="b"))
    with connect(lake) as connection:
        table = run_report(
            connection, "compare_sparsity", {"run_a": HAND_RUN, "run_b": RANDOM_RUN, "thresholds": [0.2, 0.3]}
        )
    found = {(row[0], row[1]): row[2:] for row in _rows(table)}
    assert found["tokens", None] == (3.0, 1.0, 3.0)
    assert found["fvu_in", None] == (0.125, 0.125, 1.0)
    assert found["mean_abs", None] == (pytest.approx(5 / 7), 0.25, pytest.approx(20 / 7))
    assert found["median_l1_over_l2", None] == (1.0, pytest.approx(math.sqrt(2)), pytest.approx(1 / math.sqrt(2)))
    assert found["median_kurtosis", None][1] is None  # two equal values do not vary
    assert found["mean_entries_above", 0.2] == (5 / 3, 2.0, 5 / 6)
    assert found["mean_entries_above", 0.3] == (4 / 3, 0.0, None)


# ---- brute force


def _dense(tokens: list[Token]) -> np.ndarray:
    """|J| as (tokens, n_out, n_in), 0 where a latent is not active."""
    dense = np.zeros((len(tokens), N_OUT, N_IN))
    for n, token in enumerate(tokens):
        for (o, i), value in token.values().items():
            dense[n, o, i] = abs(float(value))
    return dense


def test_threshold_fractions_by_brute_force(random_connection: Connection, some_tokens: list[Token]) -> None:
    dense = _dense(some_tokens)
    out_active = np.array([[o in t.outputs for o in range(N_OUT)] for t in some_tokens]).sum(0)[:, None]
    coactive = np.array(
        [[[o in t.outputs and i in t.inputs for i in range(N_IN)] for o in range(N_OUT)] for t in some_tokens]
    ).sum(0)
    total = dense.sum(0)
    statistics = {
        "mean_all_tokens": total / len(some_tokens),
        "mean_out_active": total / np.maximum(out_active, 1),
        "mean_coactive": total / np.maximum(coactive, 1),
        "max": dense.max(0),
    }
    table = run_report(random_connection, "threshold_fractions", {})
    distinct = set()
    for row in table.to_pylist():
        for name, values in statistics.items():
            count = int((values > row["threshold"]).sum())
            assert row[f"pairs_{name}"] == count
            assert row[f"share_{name}"] == count / PAIRS
            distinct.add(count)
        assert row["entries_per_token"] == pytest.approx((dense > row["threshold"]).sum() / len(some_tokens))
    assert len(distinct) > 10  # the thresholds do tell the pairs apart


def test_convergence_by_brute_force(random_connection: Connection, some_tokens: list[Token]) -> None:
    dense = _dense(some_tokens)
    rows = run_report(random_connection, "convergence", {}).to_pylist()
    assert sorted({row["tokens"] for row in rows}) == [10, 20, 40, 80, 160]
    for row in rows:
        seen = dense[: row["tokens"]]
        assert row["pairs_mean_all_tokens"] == (seen.sum(0) / row["tokens"] > row["threshold"]).sum()
        assert row["pairs_max"] == (seen.max(0) > row["threshold"]).sum()
    last = {r["threshold"]: r for r in rows if r["tokens"] == 160}
    for row in run_report(random_connection, "threshold_fractions", {"thresholds": list(last)}).to_pylist():
        assert row["pairs_max"] == last[row["threshold"]]["pairs_max"]


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_token_sparsity_by_brute_force(tmp_path: Path, min_abs: float) -> None:
    """Gini by its definition over all pairs of entries; dropped entries count as 0, l1 and l2 are of all entries."""
    tokens = random_tokens(40, seed=8)
    with connect(random_lake(tmp_path, RANDOM_RUN, tokens, min_abs)) as connection:
        query = f"FROM token_sparsity('{RANDOM_RUN}', 1000, [0.01]) ORDER BY token_id"
        found = {row["token_id"]: row for row in connection.execute(query).to_arrow_table().to_pylist()}
    compared = 0
    for token in tokens:
        every = np.array([float(v) for v in token.values().values()])
        if not every.size:
            assert token.token_id not in found
            continue
        row = found[token.token_id]
        assert row["l1_over_l2"] == pytest.approx(np.abs(every).sum() / math.sqrt((every**2).sum()), rel=1e-12)
        kept = np.where(np.abs(every) >= np.float32(min_abs), every, 0.0)
        if not kept.any():
            continue
        size = np.abs(kept)
        gini = np.abs(size[:, None] - size[None, :]).sum() / (2 * size.size**2 * size.mean())
        assert row["gini"] == pytest.approx(gini, rel=1e-9, abs=1e-12)
        if kept.size > 1:
            centred = kept - kept.mean()
            assert row["kurtosis"] == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2, rel=1e-6)
            compared += 1
    assert compared > 10


# ---- parameters


def test_unknown_names_are_refused_with_the_nearest(hand_connection: Connection) -> None:
    with pytest.raises(QueryError, match="Did you mean 'sparsity'"):
        run_report(hand_connection, "sparsty", {})
    with pytest.raises(QueryError, match=r"no parameter 'treshold'. Did you mean 'thresholds'"):
        run_report(hand_connection, "sparsity", {"treshold": "1"})
    with pytest.raises(QueryError, match=f"no run 'hand-00000001'. Did you mean '{HAND_RUN}'"):
        run_report(hand_connection, "sparsity", {"run_id": "hand-00000001"})
    with pytest.raises(QueryError, match="needs a value of run_a"):
        run_report(hand_connection, "compare_sparsity", {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thresholds", "0,x"), ("thresholds", ""), ("thresholds", "nan"), ("thresholds", []), ("thresholds", 3),
        ("thresholds", "inf"), ("max_tokens", "many"), ("max_tokens", 1.5), ("max_tokens", True),
        ("max_tokens", "99999999999999999999"), ("run_id", 3),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(hand_connection: Connection, name: str, value: object) -> None:
    with pytest.raises(QueryError, match=f"sparsity: {name} = "):
        run_report(hand_connection, "sparsity", {name: value})


def test_text_and_typed_values_mean_the_same(hand_connection: Connection) -> None:
    typed = run_report(hand_connection, "sparsity", {"thresholds": [0.4, 1], "max_tokens": 2, "run_id": HAND_RUN})
    text = run_report(hand_connection, "sparsity", {"thresholds": "[0.4, 1]", "max_tokens": "2"})
    assert typed.equals(text)
    assert not typed.equals(run_report(hand_connection, "sparsity", {"thresholds": "0.4,1", "max_tokens": "1"}))


def test_run_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    write_blocks(lake, RANDOM_RUN, [tables_of(random_tokens(3, 1))], config_of(name="b"))
    with connect(lake) as connection, pytest.raises(QueryError, match="needs a value of run_id"):
        run_report(connection, "sparsity", {})


def _close(row: dict[str, Any]) -> dict[str, Any]:
    """A row to compare with: sums of floats depend on which thread meets which part first."""
    return {
        name: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("report", [r for r in list_reports() if r.parameter("run_id")], ids=lambda r: r.name)
def test_reports_run_while_a_run_goes_on(tmp_path: Path, report: Any) -> None:
    lake = hand_lake(tmp_path / "going", complete=False)
    with connect(lake) as going, connect(hand_lake(tmp_path / "done")) as done:
        now, then = (run_report(c, report.name, {}) for c in (going, done))
    if report.name == "data_quality":
        assert now.slice(3).equals(then.slice(3))  # skipped documents are not known before the end
    else:
        assert now.schema == then.schema
        assert [_close(row) for row in then.to_pylist()] == now.to_pylist()


@pytest.mark.parametrize("report", list_reports(), ids=lambda r: r.name)
def test_reports_run_on_a_run_without_entries(tmp_path: Path, report: Any) -> None:
    tokens = [Token(0, 1, "x", {}, {1: 1.0}), Token(0, 2, "y", {0: 1.0}, {})]
    with connect(random_lake(tmp_path, RANDOM_RUN, tokens)) as connection:
        runs = {p.name: RANDOM_RUN for p in report.parameters if p.name in ("run_a", "run_b")}
        table = run_report(connection, report.name, runs)
    assert table.column_names == [c.name for c in report.columns]


# ---- files


def test_written_reports_hold_every_digit(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    with connect(lake) as connection:
        table = run_report(connection, "mean_max_aggregates", {})
    paths = write_report(lake, HAND_RUN, "mean_max_aggregates", table)
    assert [p.relative_to(lake.root).as_posix() for p in paths] == [
        f"reports/{HAND_RUN}/mean_max_aggregates.parquet",
        f"reports/{HAND_RUN}/mean_max_aggregates.csv",
    ]
    assert pq.read_table(paths[0]).equals(table)
    read = pyarrow.csv.read_csv(paths[1])
    assert read.column("mean_abs_all_tokens").to_pylist() == table.column("mean_abs_all_tokens").to_pylist()
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in write_report(lake, HAND_RUN, "mean_max_aggregates", table)] == before
    assert len(list(paths[0].parent.iterdir())) == 2


def test_report_can_not_be_written_elsewhere(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    with pytest.raises(LakeError):
        write_report(lake, "../../x", "sparsity", pa.table({"a": [1]}))
    with pytest.raises(QueryError):
        write_report(lake, HAND_RUN, "../sparsity", pa.table({"a": [1]}))


def test_report_info_is_complete() -> None:
    for report in list_reports():
        assert report.purpose.endswith("?")
        assert all(c.meaning for c in report.columns)
        assert report_info(report.name) == report


# ---- ad-hoc SQL


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) AS n FROM tokens",
        "FROM tokens SELECT count(*) AS n;",
        "-- how many?\nWITH t AS (FROM tokens) SELECT count(*) AS n FROM t",
        "DESCRIBE tokens",
        "SHOW TABLES",
        "SUMMARIZE tokens",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "/* é */ explain /* é */ analyze SELECT 'é'",
        "VALUES (1)",
    ],
)
def test_reading_sql_runs(hand_connection: Connection, query: str) -> None:
    table = run_sql(hand_connection, query)
    assert table.num_rows
    if "AS n" in query:
        assert table.to_pylist() == [{"n": 3}]


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{part}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}'",
        "/* é */ EXPLAIN /* x */ ANALYZE COPY (SELECT 1) TO '{part}'",
        "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{part}'",
        "EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}'",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW tokens",
        "SELECT 1; COPY (SELECT 1) TO '{part}'",
        "ATTACH 'x.db'",
        "CALL enable_logging()",
        "PRAGMA enable_profiling",
        "SET threads = 1",
        "SELECT",
        "",
        "SELECT nothing FROM tokens",
        "SELECT $missing",
        "FROM enable_logging('FileSystem', storage = 'file', storage_path = '{root}/tokens/log')",
    ],
)
def test_other_sql_is_refused_and_changes_nothing(tmp_path: Path, query: str) -> None:
    lake = hand_lake(tmp_path)
    part = lake.part_path("tokens", HAND_RUN, "0000-000000")
    before = {path: path.read_bytes() for path in lake.root.rglob("*") if path.is_file()}
    with connect(lake) as connection:
        # enable_logging reads as a SELECT and runs, but what it would write is not allowed.
        expected = nullcontext() if "enable_logging(" in query and "FROM" in query else pytest.raises(QueryError)
        with expected as refused:
            run_sql(connection, query.format(part=part, root=lake.root))
    assert refused is None or "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in lake.root.rglob("*") if path.is_file()} == before


def test_copy_over_a_part_works_unless_refused(tmp_path: Path) -> None:
    """The sibling of the test above: the statement's kind is what stops it."""
    lake = hand_lake(tmp_path)
    part = lake.part_path("tokens", HAND_RUN, "0000-000000")
    before = part.read_bytes()
    with connect(lake, read_only=False) as connection:
        run_sql(connection, f"COPY (SELECT 1) TO '{part}'", write=True)
    assert part.read_bytes() != before


def test_sql_from_a_file(hand_connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "count.sql"
    path.write_text("-- how many é\nSELECT count(*) AS n FROM tokens WHERE position >= $least\n", encoding="utf-8")
    for query in (path, str(path)):
        assert run_sql(hand_connection, query, {"least": 2}).to_pylist() == [{"n": 1}]
    for broken in (tmp_path / "none.sql", f"{tmp_path}/none.sql"):
        with pytest.raises(QueryError, match=r"none\.sql"):
            run_sql(hand_connection, broken)
    path.write_bytes(b"\xff")
    with pytest.raises(QueryError, match=r"count\.sql"):
        run_sql(hand_connection, path)
