"""The title question in SQL: given rows and expected rows, brute force over random interventions, the sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pytest

from jacobian_core.sql.checks import run_checks
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.sql_files import sql_file
from jacobian_core.sql.warehouse import connect
from tests.sql.interventions import A, B, C, hand_causal_lake, random_causal_lake
from tests.sql.lakes import HAND_RUN, RANDOM_RUN, Token, random_tokens

Connection = duckdb.DuckDBPyConnection
Row = dict[str, Any]


@pytest.fixture(scope="module")
def hand_causal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(hand_causal_lake(tmp_path_factory.mktemp("causal"))) as connection:
        yield connection


@dataclass
class Sample:
    """A run with interventions on every pair, and its rows for a slow computation."""

    connection: Connection
    tokens: dict[int, Token]
    rows: list[Row]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    tokens = random_tokens(240, seed=8)
    lake, table = random_causal_lake(tmp_path_factory.mktemp("sample"), tokens)
    with connect(lake) as connection:
        yield Sample(connection, {t.token_id: t for t in tokens}, table.to_pylist())


def t_reach(degrees: int) -> float:
    """97.5 % quantile of Student's t, from the series that the macro uses with its terms as functions of z."""
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**n for n, term in enumerate(terms, 1))


def wilson(share: float, effective: float, reach: float) -> tuple[float, float]:
    """Both roots p of |share - p| = reach * sqrt(p (1 - p) / effective)."""
    a, b, c = 1 + reach**2 / effective, -(2 * share + reach**2 / effective), share**2
    root = math.sqrt(max(b * b - 4 * a * c, 0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


# ---- given, expect


def test_effects(hand_causal: Connection) -> None:
    """J at token 'a' has root mean square sqrt((1/4 + 1/16 + 0 + 4) / 4), at ' b' 3/4, at 'c' sqrt(9/8)."""
    rows = hand_causal.execute(
        "SELECT token_id, document_id, out_latent, kind, effect, first_order, second_order, token_rms, relative_value "
        "FROM intervention_effects ORDER BY token_id, out_latent, kind"
    ).fetchall()
    at_a = math.sqrt(1.078125)
    assert rows == [
        (A, 0, 1, "ablate", -0.75, -1.0, -0.75, at_a, pytest.approx(0.5 / at_a)),
        (A, 0, 1, "unit", -0.4375, -0.5, -0.4375, at_a, pytest.approx(0.5 / at_a)),
        (A, 0, 2, "ablate", -1.0, 0.0, 0.0, at_a, 0.0),
        (B, 0, 1, "ablate", -2.0, -2.25, -1.40625, 0.75, 1.0),
        (C, 2, 1, "ablate", 0.0, 0.0, 0.0, math.sqrt(1.125), 0.0),
    ]


def test_causal_zero_test(hand_causal: Connection) -> None:
    """Of 7 pairs, effects 0.75 (1 pair), 1 (3, left), 2 (2, left), 0 (1); the first and the last two at |J| < 0.6."""
    table = run_report(hand_causal, "causal_zero_test", {"edges": "0.6", "relative_edges": "0.9", "relative_tau": 0.5})
    rows = table.to_pylist()
    places = [(r["measure"], r["low"], r["high"], r["interventions"], r["documents"], r["pairs"]) for r in rows]
    assert places == [
        ("absolute", 0.0, 0.6, 3, 2, 5.0),
        ("absolute", 0.6, None, 1, 1, 2.0),
        ("all", 0.0, None, 4, 2, 7.0),
        ("relative", 0.0, 0.9, 3, 2, 5.0),
        ("relative", 0.9, None, 1, 1, 2.0),
    ]
    small, large, every, *_ = rows
    assert small["share_of_pairs"] == 5 / 7
    expected = {
        "mean_abs_effect": 7.75 / 7, "median_abs_effect": 1, "p95_abs_effect": 2, "max_abs_effect": 2,
        "share_above": 6 / 7, "share_above_relative": 5 / 7, "share_left": 5 / 7, "share_above_staying": 1 / 7,
        "mean_abs_first_order": 5.5 / 7,
        "r2_first": 1 - 3.1875 / (11.5625 - 7.75**2 / 7), "r2_first_staying": 1 - 0.0625 / 0.28125,
        "r2_second": 1 - 3.705078125 / (11.5625 - 7.75**2 / 7), "r2_second_staying": 1,
        "unit_interventions": 1, "unit_share_above": 1, "unit_mean_abs_effect": 0.4375,
    }  # fmt: skip
    assert {name: every[name] for name in expected} == pytest.approx(expected)
    # Document 0 holds 6 of the pairs with a sum of 7.75, document 2 one with 0.
    mean = 7.75 / 7
    error = math.sqrt(2 * ((7.75 - 6 * mean) ** 2 + mean**2)) / 7
    assert every["mean_abs_effect_high"] == pytest.approx(mean + t_reach(1) * error)
    assert every["mean_abs_effect_low"] == 0
    # Intervals need more than one document; a single effect has no variance to explain.
    nulls = ("mean_abs_effect_low", "share_above_low", "share_above_high", "r2_first", "unit_share_above")
    assert [large[name] for name in nulls] == [None] * 5


def test_unweighted_rows_would_answer_otherwise(hand_causal: Connection) -> None:
    """The sibling of the test above: a mean over rows is not the mean over pairs."""
    found = run_report(hand_causal, "causal_zero_test", {"edges": "0.6"}).to_pylist()[0]["share_above"]
    naive = hand_causal.execute(
        "SELECT avg((abs(effect) > 0.1)::INT) FROM intervention_effects WHERE kind = 'ablate' AND abs(value) < 0.6"
    ).fetchall()[0][0]
    assert found == 4 / 5
    assert naive == 2 / 3


def test_share_intervals(hand_causal: Connection) -> None:
    """|J| < 0.25: 3 pairs moved in document 0, 1 not moved in document 2; both documents are off by 0.75."""
    row = run_report(hand_causal, "causal_zero_answer", {"near_zero": 0.25}).to_pylist()[0]
    kish = 4**2 / (3**2 + 1**2)
    spread = 0.75 * 0.25 / (2 * (0.75**2 + 0.75**2) / 4**2)
    assert spread < kish
    expected = wilson(0.75, spread, t_reach(1))
    assert (row["share_above_low"], row["share_above_high"]) == pytest.approx(expected)
    assert (row["share_above_staying"], row["share_above_staying_low"]) == (0, 0)
    assert row["share_above_staying_high"] == pytest.approx(wilson(0, kish, t_reach(1))[1])


def test_causal_zero_answer(hand_causal: Connection) -> None:
    row = run_report(hand_causal, "causal_zero_answer", {"near_zero": 0.25}).to_pylist()[0]
    expected = {
        "verdict": "undecided", "kind": "ablate", "near_zero": 0.25, "tau": 0.1, "interventions": 2, "documents": 2,
        "pairs": 4, "share_of_pairs": 4 / 7, "share_above": 0.75, "share_above_relative": 0.75, "share_left": 0.75,
        "share_above_staying": 0, "left_of_above": 1, "median_abs_effect": 1, "p95_abs_effect": 1,
        "max_abs_effect": 1, "other_interventions": 2, "other_share_above": 1, "relative_interventions": 2,
        "relative_share_above": 0.75, "r2_first": 1 - 3.1875 / (11.5625 - 7.75**2 / 7),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == {
        k: v if isinstance(v, str) else pytest.approx(v) for k, v in expected.items()
    }
    assert row["answer"].startswith(
        "Undecided at a tolerance of 1 %: of the active pairs with |J| < 0.25 (2 interventions standing for 4 pairs), "
        "75 % ["
    )
    assert row["answer"].endswith(
        "] moved the output latent by more than 0.1 when the input latent was ablated, 100 % of them by leaving the "
        "selection (0 % of the pairs did so and stayed). Of the pairs with |J| >= 0.25 it is 100 %."
    )


def test_answer_without_interventions(hand_connection: Connection) -> None:
    row = run_report(hand_connection, "causal_zero_answer", {}).to_pylist()[0]
    assert (row["verdict"], row["interventions"], row["pairs"], row["share_above"]) == ("unknown", 0, 0.0, None)
    assert row["answer"].startswith("Unknown: no ablate interventions on pairs with |J| < 0.001")
    for report in ("causal_zero_test", "top_interventions"):
        assert run_report(hand_connection, report, {}).num_rows == 0
    shapes = run_report(hand_connection, "function_shapes", {}).to_pylist()
    assert [(r["traced"], r["share_of_pairs"]) for r in shapes] == [(0, None)] * 6


def test_answer_from_one_document(hand_causal: Connection) -> None:
    """At token 'a' alone |J| / token_rms is not 0 and below 0.9."""
    row = run_report(hand_causal, "causal_zero_answer", {"kind": "unit", "near_zero": 1}).to_pylist()[0]
    assert (row["verdict"], row["share_above"], row["share_above_low"]) == ("undecided", 1, None)
    assert "100 % [no interval from one document]" in row["answer"]
    assert row["answer"].endswith(
        "lost one unit, 0 % of them by leaving the selection (100 % of the pairs did so and stayed)."
    )


@pytest.mark.parametrize(
    ("parameters", "verdict", "starts"),
    [
        ({"tau": 0.01}, "no", "No, a zero in the Jacobian does not rule out a causal connection: of"),
        ({"tau": 100}, "yes", "Yes, to within 1 %: of"),
        ({"tau": 100, "tolerance": 0.001}, "undecided", "Undecided at a tolerance of 0.1 %: of"),
    ],
)
def test_answer_can_go_either_way(sample: Sample, parameters: Row, verdict: str, starts: str) -> None:
    row = run_report(sample.connection, "causal_zero_answer", {"near_zero": 1e9, **parameters}).to_pylist()[0]
    assert (row["verdict"], row["answer"].startswith(starts)) == (verdict, True), row["answer"]


def test_top_interventions(hand_causal: Connection) -> None:
    table = run_report(hand_causal, "top_interventions", {"max_abs": 0.6, "top": 2})
    names = ("rank", "out_latent", "in_latent", "effect", "first_order", "left_selection", "example", "token_id")
    assert [tuple(row[name] for name in names) for row in table.to_pylist()] == [
        (1, 2, 0, -1.0, 0.0, True, ">>>a<<< b", A),
        (2, 1, 0, -0.75, -1.0, False, ">>>a<<< b", A),
    ]


def test_function_shapes(hand_causal: Connection) -> None:
    rows = run_report(hand_causal, "function_shapes", {}).to_pylist()
    names = ("by_rule", "shape", "traced", "pairs", "share_of_pairs", "median_range", "documents")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("published", "linear", 1, 1.0, 0.25, 0.0078125, 2),
        ("published", "jumprelu", 1, 2.0, 0.5, 1.0, 2),
        ("published", "other", 1, 1.0, 0.25, 2.0, 2),
        ("scale_free", "linear", 1, 1.0, 0.25, 2.0, 2),
        ("scale_free", "jumprelu", 1, 2.0, 0.5, 1.0, 2),
        ("scale_free", "other", 1, 1.0, 0.25, 0.0078125, 2),
    ]
    # Linear by the published rule: 0 of 3 pairs in document 0, 1 of 1 in document 2.
    spread = 0.25 * 0.75 / (2 * ((0.25 * 3) ** 2 + 0.75**2) / 4**2)
    assert (rows[0]["share_of_pairs_low"], rows[0]["share_of_pairs_high"]) == pytest.approx(
        wilson(0.25, min(spread, 16 / 6), t_reach(1))
    )


# ---- brute force


def _bin(sample: Sample, measure: str, low: float, high: float, kind: str) -> list[Row]:
    rows = []
    for row in sample.rows:
        values = np.array(list(sample.tokens[row["token_id"]].values().values()), dtype=np.float64)
        rms = math.sqrt((values**2).mean())
        size = abs(row["value"]) / (rms if measure == "relative" else 1)
        if row["kind"] == kind and low <= size < high:
            step = row["in_after"] - row["in_before"]
            effect = -row["out_before"] if row["left_selection"] else row["pre_change"]
            first = row["value"] * step
            rows.append({**row, "document": row["token_id"] >> 24, "effect": effect, "first": first,
                         "second": first + row["second_derivative"] * step**2 / 2})  # fmt: skip
    return rows


def _ratio(rows: list[Row], values: np.ndarray) -> tuple[float, float]:
    """The weighted mean and its standard error, clusters one by one."""
    weight = np.array([row["weight"] for row in rows])
    mean = float((weight * values).sum() / weight.sum())
    sums: dict[int, float] = {}
    for row, off_by in zip(rows, weight * (values - mean), strict=True):
        sums[row["document"]] = sums.get(row["document"], 0.0) + float(off_by)
    off = list(sums.values())
    return mean, math.sqrt(len(off) / (len(off) - 1) * math.fsum(e * e for e in off)) / float(weight.sum())


def _share(rows: list[Row], hits: list[bool]) -> tuple[float, float, float]:
    share, error = _ratio(rows, np.array(hits, dtype=float))
    weight = np.array([row["weight"] for row in rows])
    effective = weight.sum() ** 2 / (weight**2).sum()
    if error:
        effective = min(effective, share * (1 - share) / error**2)
    return (share, *wilson(share, effective, t_reach(len({row["document"] for row in rows}) - 1)))


def _quantile(rows: list[Row], share: float) -> float:
    ordered = sorted((abs(row["effect"]), row["weight"]) for row in rows)
    needed, reached = share * sum(w for _, w in ordered), 0.0
    for size, weight in ordered:
        reached += weight
        if reached >= needed * (1 - 1e-12):
            return size
    raise AssertionError


def _r2(rows: list[Row], prediction: str) -> float:
    weight, effect, predicted = (np.array([row[n] for row in rows]) for n in ("weight", "effect", prediction))
    mean = np.average(effect, weights=weight)
    return float(1 - (weight * (effect - predicted) ** 2).sum() / (weight * (effect - mean) ** 2).sum())


@pytest.mark.parametrize("kind", ["ablate", "unit"])
def test_causal_zero_test_by_brute_force(sample: Sample, kind: str) -> None:
    parameters = {"kind": kind, "edges": "0.01,0.1", "relative_edges": "0.05,1", "tau": 0.05, "relative_tau": 0.2}
    table = run_report(sample.connection, "causal_zero_test", parameters).to_pylist()
    assert len(table) == 7
    for found in table:
        rows = _bin(sample, found["measure"], found["low"], found["high"] or math.inf, kind)
        assert (found["interventions"], found["pairs"]) == (len(rows), sum(row["weight"] for row in rows))
        sizes = np.array([abs(row["effect"]) for row in rows])
        mean, error = _ratio(rows, sizes)
        reach = t_reach(found["documents"] - 1) * error
        assert [found["mean_abs_effect" + end] for end in ("", "_low", "_high")] == pytest.approx(
            [mean, max(mean - reach, 0), mean + reach], rel=1e-6
        )
        left = [row["left_selection"] for row in rows]
        hits = {
            "above": [s > 0.05 for s in sizes],
            "above_relative": [s > 0.2 * row["out_before"] for s, row in zip(sizes, rows, strict=True)],
            "left": left,
            "above_staying": [s > 0.05 and not gone for s, gone in zip(sizes, left, strict=True)],
        }
        for name, hit in hits.items():
            columns = [found[f"share_{name}{end}"] for end in ("", "_low", "_high")]
            assert columns == pytest.approx(_share(rows, hit), rel=1e-6, abs=1e-12), name
        assert found["median_abs_effect"] == pytest.approx(_quantile(rows, 0.5))
        assert found["p95_abs_effect"] == pytest.approx(_quantile(rows, 0.95))
        staying = [row for row in rows if not row["left_selection"]]
        for order in ("first", "second"):
            assert found[f"r2_{order}"] == pytest.approx(_r2(rows, order), rel=1e-6)
            assert found[f"r2_{order}_staying"] == pytest.approx(_r2(staying, order), rel=1e-6)
    every = next(row for row in table if row["measure"] == "all")
    assert every["r2_first_staying"] < every["r2_second_staying"]  # the effects were made with a second order


def test_intervals_hold_the_truth() -> None:
    """Documents differ in how often latents leave; the interval holds their mean in about 95 of 100 samples.

    By the slow computation, which the test above shows to be that of the report.
    """
    rng = np.random.default_rng(5)
    places = [{"document": n // 40, "weight": 1.0} for n in range(30 * 40)]
    scattered = [{**place, "document": n} for n, place in enumerate(places)]
    held = {"documents": 0, "rows": 0}
    for _ in range(200):
        rates = np.repeat(rng.beta(0.5, 4.5, size=30), 40)  # 0.1 on average
        hits = list(rng.random(30 * 40) < rates)
        for name, rows in (("documents", places), ("rows", scattered)):
            _, low, high = _share(rows, hits)
            held[name] += low <= 0.1 <= high
    assert held["documents"] >= 180
    assert held["rows"] < 140  # with every row for a document of its own


# ---- checks


def test_checks_pass(hand_causal: Connection, sample: Sample) -> None:
    for connection, run_id in ((hand_causal, HAND_RUN), (sample.connection, RANDOM_RUN)):
        results = {r.name: r for r in run_checks(connection, run_id)}
        for name in ("interventions_refer", "interventions_agree", "function_shapes_agree", "finite_values"):
            assert results[name].passed, results[name]


def _broken(table: str, setting: str, where: str) -> str:
    return f"UPDATE {table} SET {setting} WHERE {where}"


@pytest.mark.parametrize(
    ("statement", "check", "problem"),
    [
        (_broken("interventions", "token_id = 7", f"token_id = {C}"), "interventions_refer", "no such token"),
        (_broken("interventions", "in_latent = 0", f"token_id = {B}"), "interventions_refer", "input latent not"),
        (_broken("interventions", "out_latent = 3", f"token_id = {B}"), "interventions_refer", "output latent not"),
        (_broken("interventions", "in_before = 4", f"token_id = {B}"), "interventions_refer", "in_before is not"),
        (_broken("interventions", "out_before = 4", f"token_id = {B}"), "interventions_refer", "out_before is not"),
        (_broken("interventions", "value = 4", f"token_id = {B}"), "interventions_refer", "value is not the entry's"),
        (_broken("function_shapes", "value = 4", f"token_id = {C}"), "interventions_refer", "value is not the entry's"),
        (_broken("function_shapes", "in_latent = 5", f"token_id = {C}"), "interventions_refer", "input latent not"),
        (_broken("interventions", "in_after = 1", f"token_id = {B}"), "interventions_agree", "ablated to another"),
        (_broken("interventions", "in_after = 0.5", "kind = 'unit'"), "interventions_agree", "another step than -1"),
        (_broken("interventions", "out_after = 1", f"token_id = {B}"), "interventions_agree", "left the selection"),
        (_broken("interventions", "out_after = 0", f"token_id = {C}"), "interventions_agree", "stayed, but"),
        (_broken("interventions", "out_after = 1.1", f"token_id = {C}"), "interventions_agree", "out_before + pre_"),
        (_broken("interventions", "in_before = 0", f"token_id = {C}"), "interventions_agree", "in_before is not an"),
        (_broken("interventions", "out_before = 0", f"token_id = {C}"), "interventions_agree", "out_before is not an"),
        (_broken("interventions", "weight = 0.5", f"token_id = {C}"), "interventions_agree", "weight is below 1"),
        (_broken("function_shapes", "in_max = 4", f"token_id = {C}"), "function_shapes_agree", "max(5, s_j + 1)"),
        (_broken("function_shapes", "linear_residual = 9", f"token_id = {C}"), "function_shapes_agree", "too large"),
        (_broken("function_shapes", "weight = 0", f"token_id = {C}"), "function_shapes_agree", "weight is below"),
        (_broken("function_shapes", "shape = 'other'", f"token_id = {C}"), "function_shapes_agree", "linear by its"),
        (_broken("function_shapes", "shape = 'linear'", "out_latent = 2"), "function_shapes_agree", "linear by its na"),
        (_broken("function_shapes", "shape_scale_free = 'other'", "out_latent = 2"), "function_shapes_agree",
         "other by its name"),
        (_broken("function_shapes", "shape_scale_free = 'jumprelu'", f"token_id = {C}"), "function_shapes_agree",
         "jumprelu by its name"),
    ],
)  # fmt: skip
def test_checks_find(hand_causal: Connection, statement: str, check: str, problem: str) -> None:
    with duckdb.connect(config={"python_enable_replacements": False}) as copy:
        for name in ("interventions", "function_shapes", "tokens", "latents", "jacobian_entries", "runs"):
            copied = hand_causal.execute(f"FROM {name}").to_arrow_table()
            copy.register("copied", copied)
            copy.execute(f"CREATE TABLE {name} AS FROM copied")
        query = sql_file("checks", check).statement
        assert copy.execute(query, {"run_id": HAND_RUN}).fetchall() == []
        copy.execute(statement)
        found = copy.execute(query, {"run_id": HAND_RUN}).fetchall()
        assert found
        assert any(problem in row[-1] for row in found), found
