"""J against J'', and activations against J: by numpy, with every batch of documents left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import RANDOM_RUN, Token, config_of, finish, random_tokens, tables_of, write_blocks
from tests.sql.test_causal import t_reach

Connection = duckdb.DuckDBPyConnection
Array = np.ndarray[Any, np.dtype[Any]]


def _lake(root: Path, tokens: list[Token], second: Callable[[Array], Array]) -> tuple[Lake, pa.Table]:
    """A run of the tokens whose J'' are `second` of their J; also its entries."""
    lake = Lake.create(root)
    tables = tables_of(tokens, second=True)
    entries = tables["jacobian_entries"]
    column = pa.array(second(entries["value"].to_numpy()).astype(np.float32))
    place = entries.schema.get_field_index("second_derivative")
    tables["jacobian_entries"] = entries.set_column(place, entries.schema.field(place), column)
    write_blocks(lake, RANDOM_RUN, [tables], config_of(name="random"))
    finish(lake, RANDOM_RUN, config_of(name="random"))
    return lake, tables["jacobian_entries"]


@pytest.fixture(scope="module")
def tokens() -> list[Token]:
    return random_tokens(300, seed=12)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, tokens: list[Token]) -> Iterator[tuple[Connection, pa.Table]]:
    """J'' is about -J / 2, with noise of its own size and a few zeros."""
    rng = np.random.default_rng(0)

    def second(value: Array) -> Array:
        made = -value / 2 * np.exp(rng.standard_normal(len(value))) + rng.standard_normal(len(value)) / 100
        return np.where(rng.random(len(value)) < 0.1, 0, made)

    lake, entries = _lake(tmp_path_factory.mktemp("noisy"), tokens, second)
    with connect(lake) as connection:
        yield connection, entries


def _by_name(connection: Connection, **parameters: Any) -> dict[str, tuple[Any, ...]]:
    table = run_report(connection, "derivative_correlation", parameters).to_pylist()
    return {row["statistic"]: (row["measured"], row["low"], row["high"]) for row in table}


def _batches(entries: pa.Table, tokens: list[Token], count: int) -> Array:
    """The batch of each entry: documents in order, each whole, at the place of its middle token."""
    sizes: dict[int, int] = {}
    for token in tokens:
        sizes[token.token_id >> 24] = sizes.get(token.token_id >> 24, 0) + 1
    batch_of, before = {}, 0
    for document, size in sorted(sizes.items()):
        batch_of[document] = int((before + size / 2) * count // len(tokens))
        before += size
    return np.array([batch_of[t >> 24] for t in entries["token_id"].to_pylist()])


def _jackknife(statistic: Callable[[Array], float], batches: Array) -> tuple[float, float]:
    """The statistic of all rows, and how far its interval reaches."""
    names = np.unique(batches)
    left_out = np.array([statistic(batches != name) for name in names])
    n = len(names)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return statistic(np.full(len(batches), True)), t_reach(n - 1) * float(error)


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share their mean."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def _cosine(x: Array, y: Array) -> float:
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def _pearson(x: Array, y: Array) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_derivative_correlation_by_brute_force(noisy: tuple[Connection, pa.Table], tokens: list[Token]) -> None:
    connection, entries = noisy
    x, y = (entries[name].to_numpy().astype(np.float64) for name in ("value", "second_derivative"))
    batches = _batches(entries, tokens, 20)
    assert len(np.unique(batches)) == 20
    found = _by_name(connection, near_zero_first=0.01, near_zero_second=0.02)
    for prefix, a, b in (("", x, y), ("abs_", abs(x), abs(y))):
        for name, of in (("pearson", _pearson), ("cosine", _cosine)):
            value, reach = _jackknife(lambda keep, of=of, a=a, b=b: of(a[keep], b[keep]), batches)  # type: ignore[misc]
            low = max(value - reach, 0 if (prefix, name) == ("abs_", "cosine") else -1)
            assert found[prefix + name] == pytest.approx((value, low, min(value + reach, 1)), rel=1e-7), prefix + name
        spearman = _pearson(_ranks(a), _ranks(b))
        own = [_pearson(_ranks(a[batches == n]), _ranks(b[batches == n])) for n in range(20)]
        reach = t_reach(19) * float(np.std(own, ddof=1)) / np.sqrt(20)
        assert found[prefix + "spearman"] == pytest.approx((spearman, spearman - reach, spearman + reach), rel=1e-7)
    assert found["spearman"][0] < -0.3 < 0.3 < found["abs_spearman"][0]


def test_near_zero_table_by_brute_force(noisy: tuple[Connection, pa.Table], tokens: list[Token]) -> None:
    connection, entries = noisy
    x, y = (abs(entries[name].to_numpy().astype(np.float64)) for name in ("value", "second_derivative"))
    batches = _batches(entries, tokens, 20)
    found = _by_name(connection, near_zero_first=0.01, near_zero_second=0.02)
    first, second = x < 0.01, y < 0.02
    shares: dict[str, Callable[[Array], float]] = {
        "share_first": lambda keep: float(first[keep].mean()),
        "share_second": lambda keep: float(second[keep].mean()),
        "share_both": lambda keep: float((first & second)[keep].mean()),
        "share_second_where_first": lambda keep: float(second[keep & first].mean()),
        "share_second_where_not_first": lambda keep: float(second[keep & ~first].mean()),
    }
    for name, share in shares.items():
        value, reach = _jackknife(share, batches)
        assert found[name] == pytest.approx((value, max(value - reach, 0), min(value + reach, 1)), rel=1e-7), name

    def log_odds(keep: Array) -> float:
        cells = [(a & b & keep).sum() + 0.5 for a in (first, ~first) for b in (second, ~second)]
        return float(np.log(cells[0] * cells[3] / (cells[1] * cells[2])))

    def log_lift(keep: Array) -> float:
        both, one, other = ((a & keep).sum() + 0.5 for a in (first & second, first, second))
        return float(np.log(both * (keep.sum() + 0.5) / (one * other)))

    for name, logarithm in (("odds_ratio", log_odds), ("lift", log_lift)):
        value, reach = _jackknife(logarithm, batches)
        assert found[name] == pytest.approx(tuple(np.exp([value, value - reach, value + reach])), rel=1e-7)
    assert found["odds_ratio"][1] > 1
    assert found["near_zero_first"] == (0.01, None, None)


def test_second_threshold_makes_as_many_near_zero(noisy: tuple[Connection, pa.Table]) -> None:
    connection, _ = noisy
    found = _by_name(connection, near_zero_first=0.05)
    assert found["share_second"][0] == found["share_first"][0]
    assert 0.005 < found["near_zero_second"][0] < 0.05
    # Ranks of a few tokens are another sample; sums are of all entries all the same.
    fewer = _by_name(connection, near_zero_first=0.05, rank_tokens=30)
    assert fewer["spearman"][0] != found["spearman"][0]
    assert fewer["pearson"] == pytest.approx(found["pearson"], rel=1e-9)  # threads add in any order


@pytest.mark.parametrize(("factor", "expected"), [(0.25, 1.0), (-0.25, -1.0)])
def test_proportional_derivatives(tmp_path: Path, tokens: list[Token], factor: float, expected: float) -> None:
    lake, _ = _lake(tmp_path, tokens[:60], lambda value: value * factor)
    with connect(lake) as connection:
        found = _by_name(connection)
    for name in ("pearson", "spearman", "cosine"):
        assert found[name] == pytest.approx((expected, expected, expected))
        assert found["abs_" + name] == pytest.approx((1, 1, 1))


def test_derivatives_that_were_not_computed(hand_connection: Connection) -> None:
    table = run_report(hand_connection, "derivative_correlation", {}).to_pylist()
    assert len(table) == 15
    assert all(row["measured"] is None and row["entries"] == 0 for row in table if "near_zero" not in row["statistic"])
    assert run_report(hand_connection, "derivative_quantiles", {}).num_rows == 0


def test_derivative_quantiles(noisy: tuple[Connection, pa.Table]) -> None:
    connection, entries = noisy
    x, y = (abs(entries[name].to_numpy().astype(np.float64)) for name in ("value", "second_derivative"))
    rows = run_report(connection, "derivative_quantiles", {"edges": "0.01,0.1"}).to_pylist()
    assert [(row["low"], row["high"]) for row in rows] == [(0, 0.01), (0.01, 0.1), (0.1, None)]
    assert sum(row["share_of_entries"] for row in rows) == pytest.approx(1)
    for row in rows:
        of_bin = (x >= row["low"]) & (x < (row["high"] or np.inf))
        inside = y[of_bin]
        assert row["entries"] == len(inside)
        assert (row["max"], row["mean"]) == (inside.max(), pytest.approx(inside.mean()))
        for name, share in (("p05", 0.05), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95)):
            assert abs((inside <= row[name]).mean() - share) < 0.02 + (inside == row[name]).mean(), name
        assert abs(((y / x)[of_bin] <= row["median_ratio"]).mean() - 0.5) < 0.02


def test_latent_jacobian_correlation(noisy: tuple[Connection, pa.Table], tokens: list[Token]) -> None:
    connection, entries = noisy
    by_id = {token.token_id: token for token in tokens}
    rows = entries.to_pylist()
    j = np.array([row["value"] for row in rows])
    s = np.array([np.float32(by_id[row["token_id"]].inputs[row["in_latent"]]) for row in rows], dtype=np.float64)
    t = np.array([np.float32(by_id[row["token_id"]].outputs[row["out_latent"]]) for row in rows], dtype=np.float64)
    values = {"s": s, "t": t, "J": j, "abs_J": abs(j), "J_s": j * s}
    batches = _batches(entries, tokens, 8)
    table = run_report(connection, "latent_jacobian_correlation", {"batches": 8}).to_pylist()
    names = list(values)
    assert [(row["a"], row["b"]) for row in table] == [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    for row in table:
        a, b = values[row["a"]], values[row["b"]]
        assert row["covariance"] == pytest.approx(float(((a - a.mean()) * (b - b.mean())).mean()), rel=1e-6)
        value, reach = _jackknife(lambda keep, a=a, b=b: _pearson(a[keep], b[keep]), batches)  # type: ignore[misc]
        expected = (value, max(value - reach, -1), min(value + reach, 1))
        assert (row["pearson"], row["pearson_low"], row["pearson_high"]) == pytest.approx(expected, rel=1e-6)
        assert row["entries"] == len(rows)


def test_correlations_of_nothing(noisy: tuple[Connection, pa.Table], tmp_path: Path) -> None:
    """One token: a single document gives no interval, and one entry has no variance."""
    lake, _ = _lake(tmp_path, [Token(0, 1, "a", {0: 2.0}, {1: 4.0}, {(1, 0): 0.5})], lambda value: value)
    with connect(lake) as connection:
        found = _by_name(connection)
        assert found["pearson"] == (None, None, None)
        assert found["spearman"] == (None, None, None)
        assert found["cosine"] == (1, None, None)
        rows = run_report(connection, "latent_jacobian_correlation", {}).to_pylist()
        assert [(row["pearson"], row["covariance"], row["entries"]) for row in rows] == [(None, 0, 1)] * 10
