"""The mart of pairs: hand-made rows, an independent sum, and bytes that do not depend on how it was computed."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jacobian_core.contracts import PAIR_STATS
from jacobian_core.errors import QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import (
    CONFIG,
    HAND,
    HAND_RUN,
    RANDOM_RUN,
    Token,
    config_of,
    hand_lake,
    random_lake,
    random_tokens,
    tables_of,
    write_blocks,
)


def _built(lake: Lake, run_id: str, threads: int | None = None) -> tuple[pa.Table, bytes]:
    prepared = build_pair_stats(lake, run_id, CONFIG, threads)
    try:
        return pq.read_table(prepared.temporary, partitioning=None), prepared.temporary.read_bytes()
    finally:
        prepared.discard()


def _by_hand(tokens: list[Token], min_abs: float = 0.0) -> dict[tuple[int, int], tuple[int, list[float]]]:
    """Per pair: tokens where both latents are active, and the stored values; exact, one entry at a time."""
    coactive: dict[tuple[int, int], int] = defaultdict(int)
    stored: dict[tuple[int, int], list[float]] = defaultdict(list)
    for token in tokens:
        for pair, value in token.values().items():
            coactive[pair] += 1
            if abs(value) >= min_abs:
                stored[pair].append(float(value))
    return {pair: (coactive[pair], values) for pair, values in sorted(stored.items())}


def test_given_expect(hand: Lake) -> None:
    table, _ = _built(hand, HAND_RUN)
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        ("active", 1, 0, 2, 2, -1.0, 2.0, 2.5, 1.5),
        ("active", 1, 3, 3, 3, 0.5, 1.0, 0.625, 0.75),
        ("active", 2, 0, 1, 1, 0.0, 0.0, 0.0, 0.0),
        ("active", 2, 3, 1, 1, 2.0, 2.0, 4.0, 2.0),
    ]
    assert table.schema.equals(PAIR_STATS.schema())


def test_given_expect_with_dropped_entries(tmp_path: Path) -> None:
    """n_coactive still counts the tokens whose entry was dropped; pairs without any stored entry have no row."""
    lake = hand_lake(tmp_path, min_abs=0.5)
    table, _ = _built(lake, HAND_RUN)
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        ("active", 1, 0, 2, 2, -1.0, 2.0, 2.5, 1.5),
        ("active", 1, 3, 3, 1, 0.75, 0.75, 0.5625, 0.75),
        ("active", 2, 3, 1, 1, 2.0, 2.0, 4.0, 2.0),
    ]


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_equals_exact_sums(tmp_path: Path, some_tokens: list[Token], min_abs: float) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, some_tokens, min_abs)
    table, _ = _built(lake, RANDOM_RUN)
    expected = _by_hand(some_tokens, min_abs)
    assert [(r["out_latent"], r["in_latent"]) for r in table.to_pylist()] == list(expected)
    for row, (coactive, values) in zip(table.to_pylist(), expected.values(), strict=True):
        assert (row["n_coactive"], row["n_stored"]) == (coactive, len(values))
        assert row["max_abs"] == max(abs(v) for v in values)
        # Exact rational sums, rounded once: the mart may be one rounding of its result away.
        assert row["sum"] == pytest.approx(float(sum(map(Fraction, values))), rel=1e-15, abs=1e-25)
        assert row["sum_abs"] == pytest.approx(math.fsum(abs(v) for v in values), rel=1e-15)
        assert row["sum_sq"] == pytest.approx(float(sum(Fraction(v) ** 2 for v in values)), rel=1e-14)


def test_notices_a_changed_entry(tmp_path: Path, some_tokens: list[Token]) -> None:
    changed = list(some_tokens)
    place = next(n for n, token in enumerate(changed) if token.jacobian)
    pair, value = next(iter(changed[place].jacobian.items()))
    changed[place] = replace(changed[place], jacobian={**changed[place].jacobian, pair: value * (1 + 1e-6)})
    one, _ = _built(random_lake(tmp_path / "one", RANDOM_RUN, some_tokens), RANDOM_RUN)
    other, _ = _built(random_lake(tmp_path / "other", RANDOM_RUN, changed), RANDOM_RUN)
    differing = [
        (a["out_latent"], a["in_latent"]) for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True) if a != b
    ]
    assert differing == [pair]


def test_bytes_depend_on_the_entries_only(tmp_path: Path) -> None:
    """One, three and many blocks, one thread and four: the same file, where plain float sums would differ."""
    tokens = random_tokens(300, seed=5, scale=6.0)
    found = set()
    for size in (300, 100, 7):
        lake = Lake.create(tmp_path / str(size))
        blocks = [tables_of(tokens[n : n + size]) for n in range(0, len(tokens), size)]
        write_blocks(lake, RANDOM_RUN, blocks, config_of())
        found |= {_built(lake, RANDOM_RUN, threads)[1] for threads in (1, 4)}
    assert len(found) == 1

    values = [float(v) for token in tokens for v in token.values().values()]
    assert sum(values) != sum(reversed(values))  # the sums of this data do depend on their order


def test_tiny_and_huge_values_keep_their_sums(tmp_path: Path) -> None:
    """Values 40 orders of magnitude apart: the small pair's sums stay above 0, never below their largest term."""
    tokens = [
        Token(0, 1, "x", {0: 1.0}, {0: 1.0, 1: 1.0}, {(0, 0): 3e4, (1, 0): 1e-36}),
        Token(0, 2, "y", {0: 1.0}, {0: 1.0, 1: 1.0}, {(0, 0): -3e4, (1, 0): 1e-12}),
    ]
    lake = random_lake(tmp_path, RANDOM_RUN, tokens, complete=False)
    big, small = _built(lake, RANDOM_RUN)[0].to_pylist()
    assert (big["sum"], big["sum_abs"], big["sum_sq"]) == (0.0, 6e4, 1.8e9)
    assert small["sum_abs"] == pytest.approx(float(np.float32(1e-12)), rel=1e-12)
    assert small["sum_sq"] >= small["max_abs"] ** 2 > 0


def test_run_without_entries(tmp_path: Path) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, [Token(0, 1, "x", {}, {1: 1.0})], complete=False)
    assert _built(lake, RANDOM_RUN)[0].num_rows == 0


def test_published_equals_live_view(tmp_path: Path, some_tokens: list[Token]) -> None:
    """What a run in progress shows is what its mart will hold."""
    query = "FROM pair_stats ORDER BY out_latent, in_latent"
    with connect(random_lake(tmp_path / "a", RANDOM_RUN, some_tokens, 0.02, complete=False)) as connection:
        live = connection.execute(query).fetchall()
    with connect(random_lake(tmp_path / "b", RANDOM_RUN, some_tokens, 0.02)) as connection:
        assert connection.execute(query).fetchall() == live
    assert len(live) > 20


def test_work_folder_is_not_left_behind(hand: Lake) -> None:
    _built(hand, HAND_RUN)
    assert not hand.work_folder(HAND_RUN).exists()


def test_unknown_run(hand: Lake) -> None:
    with pytest.raises(QueryError, match="no run nobody-1"):
        build_pair_stats(hand, "nobody-1", CONFIG)


def test_hand_has_an_exact_zero() -> None:
    """The hand-made lake covers entries that are stored and 0, which count as coactive and are above no threshold."""
    assert any(v == 0 for token in HAND for v in token.values().values())
