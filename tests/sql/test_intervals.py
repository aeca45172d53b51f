"""Shares of pairs with every batch left out in turn; aggregates over all inputs; two runs side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pytest

from jacobian_core.contracts import PAIR_STATS
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter
from jacobian_core.lake.publish import publish_part
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.sql.checks import run_checks
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.sql_files import sql_files
from jacobian_core.sql.warehouse import connect
from tests.sql.interventions import hand_causal_lake
from tests.sql.lakes import (
    CONFIG,
    HAND,
    HAND_RUN,
    N_IN,
    N_OUT,
    RANDOM_RUN,
    Token,
    config_of,
    finish,
    random_tokens,
    rows_table,
    tables_of,
    write_blocks,
)
from tests.sql.test_causal import t_reach

Connection = duckdb.DuckDBPyConnection
THRESHOLDS = [0.0, 1e-3, 1e-2, 0.1, 1.0]
CALLS = {
    "token_sparsity": "('r', 5, [0.5])",
    "causal_bins": "('r', 'ablate', [0.5], [0.5], 0.1, 0.1)",
    "document_batches": "('r', 20, 1)",
    "j_steps": "('r')",
    "pair_share_reach": "('r', [0.5], 20, 1)",
    "run_statistics": "('r', [0.5], 5, 'ablate', 0.1, 0.1, 0.1)",
}


def _shares(tokens: Sequence[Token]) -> np.ndarray:
    """Shares of pairs whose mean, and largest, |J| is above each threshold, over these tokens alone."""
    mass, largest = np.zeros((N_OUT, N_IN)), np.full((N_OUT, N_IN), -1.0)
    for token in tokens:
        for pair, value in token.values().items():
            mass[pair] += abs(float(value))
            largest[pair] = max(largest[pair], abs(float(value)))
    means = mass / len(tokens)
    return np.array([[(means > t).mean(), (largest > t).mean()] for t in THRESHOLDS])


def _reach(tokens: Sequence[Token], batches: int) -> np.ndarray:
    """Half of the jackknife's interval of each of these shares."""
    sizes: dict[int, int] = {}
    for token in tokens:
        sizes[token.row] = sizes.get(token.row, 0) + 1
    batch_of, before = {}, 0
    for row, size in sorted(sizes.items()):
        batch_of[row] = int((before + size / 2) * batches // len(tokens))
        before += size
    names = sorted(set(batch_of.values()))
    shares = np.array([_shares([t for t in tokens if batch_of[t.row] != name]) for name in names])
    error = np.sqrt((len(names) - 1) / len(names) * ((shares - shares.mean(0)) ** 2).sum(0))
    return np.asarray(t_reach(len(names) - 1) * error)


def _interval(share: float, reach: float) -> list[object]:
    """Share, low and high; a spread of 0 is one that was not seen."""
    ends = [max(share - reach, 0), min(share + reach, 1)] if reach else [None, None]
    return [None if value is None else pytest.approx(value, rel=1e-6, abs=1e-7) for value in (share, *ends)]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_table_macros_are_as_their_headers_say(hand_connection: Connection, name: str) -> None:
    described = hand_connection.execute(f"DESCRIBE FROM {name}{CALLS[name]}").fetchall()
    expected = [(c.name, c.type) for c in sql_files("macros")[name].columns]
    assert expected == [(row[0], re.sub(", ", ",", row[1])) for row in described]


def test_every_table_macro_is_called() -> None:
    assert {name for name, file in sql_files("macros").items() if file.columns} == set(CALLS)


def test_threshold_fractions_by_brute_force(random_connection: Connection, some_tokens: list[Token]) -> None:
    table = run_report(random_connection, "threshold_fractions", {"thresholds": THRESHOLDS, "batches": 10}).to_pylist()
    shares, reaches = _shares(some_tokens), _reach(some_tokens, 10)
    assert (reaches > 0).any(axis=0).all()
    for row, (mean, largest), (mean_reach, max_reach) in zip(table, shares, reaches, strict=True):
        for name, share, reach in (("mean_all_tokens", mean, mean_reach), ("max", largest, max_reach)):
            expected = _interval(share, reach)
            found = [row[f"share_{name}{end}"] for end in ("", "_low", "_high")]
            assert found == expected, (row["threshold"], name)


def test_convergence_by_brute_force(random_connection: Connection, some_tokens: list[Token]) -> None:
    table = run_report(random_connection, "convergence", {"thresholds": THRESHOLDS, "batches": 4}).to_pylist()
    found = {(row["tokens"], row["threshold"]): row for row in table}
    assert len(found) == len(table)
    for part in (16, 8, 4, 2, 1):
        seen = some_tokens[: math.ceil(len(some_tokens) / part)]
        for threshold, (mean, largest), (mean_reach, max_reach) in zip(
            THRESHOLDS, _shares(seen), _reach(seen, 4), strict=True
        ):
            row = found[len(seen), threshold]
            for name, share, reach in (("mean_all_tokens", mean, mean_reach), ("max", largest, max_reach)):
                expected = _interval(share, reach)
                columns = [row[f"share_{name}{end}"] for end in ("", "_low", "_high")]
                assert columns == expected, (len(seen), threshold, name)


@pytest.mark.parametrize("report", ["threshold_fractions", "convergence"])
def test_no_batches_no_intervals(random_connection: Connection, report: str) -> None:
    with_intervals, without = (
        run_report(random_connection, report, {"batches": batches}).to_pylist() for batches in (20, 0)
    )
    for one, other in zip(with_intervals, without, strict=True):
        assert all(name.endswith(("_low", "_high")) for name in one if one[name] != other[name])
        assert (one["share_max_low"] is None, other["share_max_low"], other["share_mean_all_tokens_high"]) == (
            one["share_max"] == 1,
            None,
            None,
        )


def test_one_document_has_no_interval(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    write_blocks(lake, HAND_RUN, [tables_of(HAND[:2])], config_of())
    with connect(lake) as connection:
        row = run_report(connection, "threshold_fractions", {}).to_pylist()[0]
    assert (row["share_max"], row["share_max_low"], row["share_mean_all_tokens_high"]) == (3 / 48, None, None)


# ---- all inputs

# out, in, n_coactive, n_stored, sum, sum_abs, sum_sq, max_abs: output 1 is active at three tokens, output 2 at one.
ALL_INPUTS = [
    ("all_inputs", 1, 0, 0, 3, -0.75, 2.25, 2.5625, 1.5),  # 0.5, 0.25 (input not active), -1.5
    ("all_inputs", 1, 5, 0, 3, 0.5, 0.5, 0.25, 0.5),  # input never active
    ("all_inputs", 2, 3, 0, 1, 2.0, 2.0, 4.0, 2.0),
]


@pytest.fixture(scope="module")
def both_scopes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    lake = Lake.create(tmp_path_factory.mktemp("scopes"))
    write_blocks(lake, HAND_RUN, [tables_of(HAND)], config_of())
    parts = [publish_part(lake, build_pair_stats(lake, HAND_RUN, CONFIG))]
    with PartWriter(lake, PAIR_STATS, HAND_RUN, "all-inputs", CONFIG) as writer:
        writer.write(rows_table("pair_stats", ALL_INPUTS))
        parts.append(publish_part(lake, writer.finish()))
    finish(lake, HAND_RUN, config_of(), {"pair_stats": parts})
    with connect(lake) as connection:
        yield connection


def test_pair_means_of_all_inputs(both_scopes: Connection) -> None:
    """Pairs of which no input was ever active have means too, over the tokens at which their output was."""
    rows = both_scopes.execute(
        "SELECT out_latent, in_latent, n_tokens, n_out_active, n_stored, mean_abs_all_tokens, mean_abs_out_active, "
        "mean_abs_coactive, mean, sd FROM pair_means WHERE scope = 'all_inputs' ORDER BY ALL"
    ).fetchall()
    assert rows == [
        (1, 0, 3, 3, 3, 0.75, 0.75, None, -0.25, pytest.approx(math.sqrt(2.5625 / 3 - 0.0625))),
        (1, 5, 3, 3, 3, 0.5 / 3, 0.5 / 3, None, 0.5 / 3, pytest.approx(math.sqrt(0.25 / 3 - 0.25 / 9))),
        (2, 3, 3, 1, 1, 2 / 3, 2.0, None, 2.0, 0.0),
    ]
    assert both_scopes.execute("SELECT count(*) FROM pair_means WHERE scope = 'active'").fetchall() == [(4,)]


def test_threshold_fractions_of_all_inputs(both_scopes: Connection) -> None:
    parameters = {"scope": "all_inputs", "thresholds": "0,0.5,1.5"}
    rows = run_report(both_scopes, "threshold_fractions", parameters).to_pylist()
    counts = ("threshold", "pairs_mean_all_tokens", "pairs_mean_out_active", "pairs_mean_coactive", "pairs_max")
    assert [tuple(row[name] for name in counts) for row in rows] == [
        (0.0, 3, 3, None, 3),
        (0.5, 2, 2, None, 2),
        (1.5, 0, 1, None, 1),
    ]
    assert all(row["share_max_low"] is None and row["share_mean_all_tokens_low"] is None for row in rows)
    active = run_report(both_scopes, "threshold_fractions", {"thresholds": "0,0.5,1.5"}).to_pylist()
    assert [row["pairs_mean_all_tokens"] for row in active] == [3, 2, 0]
    assert all(row["share_max_low"] is not None for row in active)


def test_strongest_pairs_of_all_inputs(both_scopes: Connection) -> None:
    rows = run_report(both_scopes, "mean_max_aggregates", {"scope": "all_inputs"}).to_pylist()
    assert [(row["out_latent"], row["in_latent"], row["mean_abs_all_tokens"]) for row in rows] == [
        (1, 0, 0.75), (2, 3, 2 / 3), (1, 5, 0.5 / 3)
    ]  # fmt: skip
    often = run_report(both_scopes, "mean_max_aggregates", {"scope": "all_inputs", "min_coactive": 2}).to_pylist()
    assert [(row["out_latent"], row["in_latent"]) for row in often] == [(1, 0), (1, 5)]


def test_checks_take_both_scopes(both_scopes: Connection) -> None:
    assert [r.name for r in run_checks(both_scopes, HAND_RUN) if not r.passed] == []


# ---- two runs


def test_compare_runs(tmp_path: Path) -> None:
    """The figures of the single-run reports, side by side."""
    lake = hand_causal_lake(tmp_path / "one")
    with connect(lake) as connection:
        rows = run_report(connection, "compare_runs", {
            "run_a": HAND_RUN, "run_b": HAND_RUN, "thresholds": "0.5", "near_zero": 0.25, "relative_near_zero": 0.9,
        }).to_pylist()  # fmt: skip
        answer = run_report(connection, "causal_zero_answer", {"near_zero": 0.25}).to_pylist()[0]
        fractions = run_report(connection, "threshold_fractions", {"thresholds": "0.5"}).to_pylist()[0]
    found = {row["statistic"]: row for row in rows}
    assert len(found) == len(rows)
    expected = {
        "tokens": 3, "fvu_in": 0.125, "fvu_out": 0.25, "entries_per_token": 7 / 3, "mean_abs": 5 / 7,
        "entries_above_per_token": 1, "share_of_pairs_mean_above": 2 / 48, "share_of_pairs_max_above": 3 / 48,
        "near_zero_share_above": 0.75, "near_zero_share_left": 0.75, "near_zero_share_above_staying": 0,
        "relative_near_zero_share_above": 0.8, "share_above": 6 / 7, "r2_first": answer["r2_first"],
        "r2_second": answer["r2_second"], "shape_linear": 0.25, "shape_jumprelu": 0.5, "shape_other": 0.25,
        "scale_free_linear": 0.25, "scale_free_jumprelu": 0.5, "scale_free_other": 0.25,
    }  # fmt: skip
    assert {name: found[name]["run_a"] for name in expected} == pytest.approx(expected)
    # Both columns are the same run, but threads add in any order: equal but for the last digits.
    assert all(row["run_a"] == pytest.approx(row["run_b"], rel=1e-9) for row in rows)
    assert all(row["a_minus_b"] == pytest.approx(0, abs=1e-9) for row in rows)
    moved = found["near_zero_share_above"]
    assert (moved["run_a_low"], moved["run_b_high"]) == pytest.approx(
        (answer["share_above_low"], answer["share_above_high"])
    )
    assert found["share_of_pairs_max_above"]["run_a_high"] == pytest.approx(fractions["share_max_high"])
    assert found["tokens"]["run_a_low"] is None


def test_compare_runs_of_different_kinds(tmp_path: Path) -> None:
    """One run has interventions and shapes, the other has not: what one lacks is null, not left out."""
    lake = hand_causal_lake(tmp_path)
    tokens = random_tokens(60, seed=2)
    write_blocks(lake, RANDOM_RUN, [tables_of(tokens)], config_of(name="random"))
    finish(lake, RANDOM_RUN, config_of(name="random"))
    with connect(lake) as connection:
        rows = run_report(connection, "compare_runs", {"run_a": HAND_RUN, "run_b": RANDOM_RUN}).to_pylist()
        swapped = run_report(connection, "compare_runs", {"run_a": RANDOM_RUN, "run_b": HAND_RUN}).to_pylist()
    found = {(row["statistic"], row["threshold"]): row for row in rows}
    shape, tokens_row = found["shape_linear", None], found["tokens", None]
    assert (shape["run_a"], shape["run_b"], shape["a_minus_b"], shape["a_over_b"]) == (0.25, None, None, None)
    assert (tokens_row["run_a"], tokens_row["run_b"], tokens_row["a_minus_b"], tokens_row["a_over_b"]) == (
        3,
        60,
        -57,
        0.05,
    )
    for row, back in zip(rows, swapped, strict=True):
        assert row["statistic"] == back["statistic"]
        assert (row["run_a"], row["run_b"]) == (_close(back["run_b"]), _close(back["run_a"]))


def _close(value: float | None) -> object:
    return None if value is None else pytest.approx(value)
