"""`threshold_counts`: the counts that reports read instead of entries, against their definition and against SQL."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from jacobian_core.numerics.stretches import BATCHES, PARTS, cut_into_stretches
from jacobian_core.pairs import by_pair, counting, tasks
from jacobian_core.pairs.above import pairs_above
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.pairs.threshold_counts import build_threshold_counts
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import (
    CONFIG,
    N_IN,
    N_OUT,
    RANDOM_RUN,
    Token,
    config_of,
    finish,
    marts,
    random_lake,
    random_tokens,
    tables_of,
    write_blocks,
)

THRESHOLDS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
TIED = (0.0, float(np.float32(0.1)), 0.125, 0.25, 0.5, 1.0)
Key = tuple[int, int, float]


def _tied_tokens(count: int) -> list[Token]:
    """Tokens whose values, and often means, are thresholds of `TIED` themselves; many are 0."""
    rng = np.random.default_rng(3)
    tokens = random_tokens(count, seed=3)
    return [
        replace(t, jacobian={pair: float(rng.choice([0.0, 0.125, 0.25, -0.5, 0.1, 4.0])) for pair in t.jacobian})
        for t in tokens
    ]


CASES = {
    "random": (random_tokens(240, seed=1), THRESHOLDS),
    "ties": (_tied_tokens(240), TIED),
    "few documents": (random_tokens(23, seed=4), THRESHOLDS),
    "one document": (random_tokens(4, seed=5), THRESHOLDS),
    "many sizes": (random_tokens(120, seed=6, scale=6.0), (0.0, 1e-9, 1e-6, 1e-3, 1.0, 1e3)),
}


def _built(lake: Lake, thresholds: Sequence[float], threads: int | None = None) -> tuple[list[dict[str, Any]], bytes]:
    above = pairs_above(lake, RANDOM_RUN, thresholds, ["active"])
    build_pair_stats(lake, RANDOM_RUN, CONFIG, threads, above["active"]).discard()
    prepared = build_threshold_counts(lake, RANDOM_RUN, CONFIG, above)
    try:
        return pq.read_table(prepared.temporary, partitioning=None).to_pylist(), prepared.temporary.read_bytes()
    finally:
        prepared.discard()


def _batches(tokens: Sequence[Token]) -> list[int]:
    """The batch of each token, the middles of documents deciding."""
    sizes: dict[int, int] = defaultdict(int)
    for token in tokens:
        sizes[token.row] += 1
    batch, before = {}, 0
    for row, size in sorted(sizes.items()):
        batch[row] = (2 * before + size) * BATCHES // (2 * len(tokens))
        before += size
    return [batch[token.row] for token in tokens]


Values = list[tuple[tuple[int, int], Fraction]]


def _counted(values: Sequence[Values], thresholds: Sequence[float]) -> list[tuple[int, int, int]]:
    """Tokens, pairs whose mean, and pairs whose largest |J| over them is above each threshold, in exact arithmetic."""
    found: dict[tuple[int, int], list[Fraction]] = defaultdict(list)
    for token in values:
        for pair, value in token:
            found[pair].append(value)
    means = [Fraction(float(sum(each))) / len(values) for each in found.values()]
    largest = [max(each) for each in found.values()]
    return [(len(values), *(sum(value > t for value in each) for each in (means, largest))) for t in thresholds]


def _expected(tokens: Sequence[Token], thresholds: Sequence[float], min_abs: float = 0.0) -> dict[Key, Any]:
    """The table's rows by definition: each stage, and each batch of it left out in turn, counted on its own."""
    rows: dict[Key, Any] = {}
    values = [
        [(pair, Fraction(abs(float(value)))) for pair, value in token.values().items() if abs(value) >= min_abs]
        for token in tokens
    ]
    for part in PARTS:
        seen = math.ceil(len(tokens) / part)
        batches = _batches(tokens[:seen])
        for left_out in [-1, *sorted(set(batches))]:
            kept = [of_token for of_token, batch in zip(values[:seen], batches, strict=True) if batch != left_out]
            if kept:
                keys = [(part, left_out, threshold) for threshold in thresholds]
                rows |= dict(zip(keys, _counted(kept, thresholds), strict=True))
    return rows


def _found(rows: list[dict[str, Any]]) -> dict[Key, Any]:
    return {
        (row["part"], row["left_out"], row["threshold"]): (
            row["tokens"], row["pairs_mean_all_tokens"], row["pairs_max"]
        )
        for row in rows if row["tokens"]
    }  # fmt: skip


def _close(row: dict[str, Any]) -> dict[str, Any]:
    """Counts exactly; floats but for last digits, since spreads are sums in any order."""
    return {
        name: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
@pytest.mark.parametrize("case", CASES)
def test_by_definition(tmp_path: Path, case: str, min_abs: float) -> None:
    tokens, thresholds = CASES[case]
    lake = random_lake(tmp_path, RANDOM_RUN, tokens, min_abs, complete=False)
    assert _found(_built(lake, thresholds)[0]) == _expected(tokens, thresholds, min_abs)


def test_notices_a_changed_entry(tmp_path: Path) -> None:
    """One value across a threshold, at one token: other counts, in its own stages only."""
    tokens, thresholds = CASES["random"]
    place = next(n for n, token in enumerate(tokens) if n > len(tokens) // 2 and token.jacobian)
    pair = next(iter(tokens[place].jacobian))
    changed = [*tokens]
    changed[place] = replace(tokens[place], jacobian=tokens[place].jacobian | {pair: 1e6})
    one, other = (
        _found(_built(random_lake(tmp_path / name, RANDOM_RUN, t, complete=False), thresholds)[0])
        for name, t in (("one", tokens), ("other", changed))
    )
    assert {key[0] for key in one if one[key] != other[key]} == {1}


@pytest.mark.parametrize("case", ["random", "ties", "many sizes"])
def test_reports_are_the_same_from_entries(tmp_path: Path, case: str) -> None:
    """Both reports, and the macro behind `compare_runs`, with the mart and without it, intervals included."""
    tokens, thresholds = CASES[case]
    tables = []
    for name, kept in (("with", thresholds), ("without", ())):
        lake = random_lake(tmp_path / name, RANDOM_RUN, tokens, complete=False)
        finish(lake, RANDOM_RUN, config_of(name="random"), marts(lake, RANDOM_RUN, kept))
        assert verify_lake(lake) == []
        with connect(lake) as connection:
            held = connection.execute("SELECT count(*) FROM threshold_counts").fetchall()[0][0]
            assert (held > 0) == (name == "with")
            asked = {"thresholds": list(thresholds)}
            tables.append(
                [run_report(connection, report, asked) for report in ("threshold_fractions", "convergence")]
                + [run_report(connection, "run_figures", {"thresholds": list(thresholds[1:3])})]
            )
    for one, other in zip(*tables, strict=True):
        assert one.column_names == other.column_names
        for row, expected in zip(one.to_pylist(), other.to_pylist(), strict=True):
            assert row == _close(expected)
    assert any(row["share_max_low"] for row in tables[0][0].to_pylist())


def test_other_thresholds_and_batches_are_read_from_entries(tmp_path: Path) -> None:
    """One threshold that the mart lacks, or another number of batches: the figures of a lake without it."""
    tokens, _ = CASES["random"]
    with_mart = random_lake(tmp_path / "with", RANDOM_RUN, tokens)
    without = random_lake(tmp_path / "without", RANDOM_RUN, tokens, complete=False)
    finish(without, RANDOM_RUN, config_of(name="random"), marts(without, RANDOM_RUN, ()))
    with connect(with_mart) as one, connect(without) as other:
        for asked in ({"thresholds": [0.0, 0.0123]}, {"batches": 7}, {"batches": 0}):
            for report in ("threshold_fractions", "convergence"):
                rows, expected = (run_report(each, report, asked).to_pylist() for each in (one, other))
                for row, wanted in zip(rows, expected, strict=True):
                    assert row == _close(wanted), (asked, report)


@pytest.mark.parametrize("case", ["random", "ties", "few documents"])
def test_shares_of_pairs_of_whole_runs(tmp_path: Path, case: str) -> None:
    """`run_figures` and both sides of `compare_runs`: from the mart, for thresholds that it lacks, and without it."""
    tokens, thresholds = CASES[case]
    lake, other_run = random_lake(tmp_path, RANDOM_RUN, tokens, complete=False), "random-000000000002"
    finish(lake, RANDOM_RUN, config_of(name="random"), marts(lake, RANDOM_RUN, thresholds))
    random_lake(tmp_path, other_run, tokens, complete=False)
    finish(lake, other_run, config_of(name="random"), marts(lake, other_run, ()))
    asked = [thresholds[1:3], [*thresholds[:2], 0.0123]]
    with connect(lake) as connection:
        for some in asked:
            given = {"thresholds": list(some), "run_a": RANDOM_RUN, "run_b": other_run}
            rows = run_report(connection, "compare_runs", given).to_pylist()
            by_definition = _expected(tokens, some)
            for threshold in some:
                _, mean, largest = by_definition[1, -1, threshold]
                for statistic, pairs in (("mean", mean), ("max", largest)):
                    row = _shares(rows)[f"share_of_pairs_{statistic}_above", threshold]
                    assert row["run_a"] == row["run_b"] == pairs / (N_IN * N_OUT)


def test_shares_of_pairs_come_from_where_they_are_held(tmp_path: Path) -> None:
    """Counts that are one too many show in the figures; without `pair_stats`, only thresholds that are held stay."""
    lake = random_lake(tmp_path, RANDOM_RUN, CASES["random"][0])
    held, lacking = {"thresholds": [0.001]}, {"thresholds": [0.0123]}
    key, other = ("share_of_pairs_max_above", 0.001), ("share_of_pairs_max_above", 0.0123)
    with connect(lake) as connection:
        before = [_shares(run_report(connection, "run_figures", asked).to_pylist()) for asked in (held, lacking)]
        connection.execute("CREATE TABLE counts AS FROM threshold_counts")
        connection.execute("CREATE TABLE sums AS FROM pair_stats")
        connection.execute("CREATE OR REPLACE VIEW pair_stats AS FROM sums LIMIT 0")
        after = [_shares(run_report(connection, "run_figures", asked).to_pylist()) for asked in (held, lacking)]
        connection.execute(
            "CREATE OR REPLACE VIEW threshold_counts AS SELECT * REPLACE (pairs_max + 1 AS pairs_max) FROM counts"
        )
        wrong = _shares(run_report(connection, "run_figures", held).to_pylist())
    assert after[0][key] == before[0][key]
    assert (after[1][other]["measured"], before[1][other]["measured"] > 0) == (0, True)
    assert wrong[key]["measured"] == pytest.approx(before[0][key]["measured"] + 1 / (N_IN * N_OUT))


def _shares(rows: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, Any]]:
    """The rows of shares of pairs, by statistic and threshold."""
    return {(r["statistic"], r["threshold"]): r for r in rows if r["statistic"].startswith("share_of_pairs")}


def test_means_of_other_denominators(tmp_path: Path) -> None:
    """Counts by the tokens at which the output latent, or both, are active, as `pair_means` has them."""
    lake = random_lake(tmp_path, RANDOM_RUN, random_tokens(200, seed=8), 0.01)
    with connect(lake) as connection:
        rows = connection.execute(
            "SELECT t.threshold, t.pairs_mean_out_active, t.pairs_mean_coactive, t.entries, "
            "count(*) FILTER (WHERE p.mean_abs_out_active > t.threshold), "
            "count(*) FILTER (WHERE p.mean_abs_coactive > t.threshold), "
            "(SELECT count(*) FROM jacobian_entries AS e WHERE abs(e.value) > t.threshold) "
            "FROM threshold_counts AS t CROSS JOIN pair_means AS p WHERE t.part = 1 AND t.left_out = -1 GROUP BY ALL"
        ).fetchall()
    assert [row[1:4] for row in rows] == [row[4:] for row in rows]
    assert len({row[1:4] for row in rows}) > 3


def test_bytes_depend_on_the_entries_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any blocks, threads and tasks, entries added in parts: the same file."""
    tokens, thresholds = CASES["random"]
    found = set()
    for size in (len(tokens), 100, 7):  # 7 cuts documents in two
        lake = Lake.create(tmp_path / str(size))
        blocks = [tables_of(tokens[n : n + size]) for n in range(0, len(tokens), size)]
        write_blocks(lake, RANDOM_RUN, blocks, config_of())
        found |= {_built(lake, thresholds, threads)[1] for threads in (1, 4)}
        with monkeypatch.context() as patched:
            patched.setattr(by_pair, "PASS_ENTRIES", 3)
            found.add(_built(lake, thresholds)[1])
            patched.setattr(tasks, "PART_ENTRIES", 5)
            found.add(_built(lake, thresholds)[1])
            patched.setattr(counting, "_MERGED", 2)
            found.add(_built(lake, thresholds)[1])
    assert len(found) == 1


def test_a_run_without_entries(tmp_path: Path) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, [Token(0, 1, "x", {}, {1: 1.0})], complete=False)
    rows = _built(lake, THRESHOLDS)[0]
    assert {(row["pairs_mean_all_tokens"], row["pairs_max"]) for row in rows} == {(0, 0)}


@pytest.mark.parametrize("sizes", [[1], [5, 5], [1] * 7, [3, 200, 1, 40] * 20, [512] * 192])
def test_stretches(sizes: list[int]) -> None:
    """Every token's batch at every stage, from its stretch, against documents walked one by one."""
    cut = cut_into_stretches(np.array(sizes))
    tokens = [Token(row, n, "", {}, {}) for row, size in enumerate(sizes) for n in range(size)]
    stretch = cut.of(np.arange(len(tokens)))
    assert stretch.max() < 128
    for stage, part in enumerate(PARTS):
        batches = _batches(tokens[: math.ceil(len(tokens) / part)])
        batches += [-1] * (len(tokens) - len(batches))
        assert cut.batch[stage][stretch].tolist() == batches
        assert cut.tokens[stage].tolist() == [batches.count(batch) for batch in range(BATCHES)]
