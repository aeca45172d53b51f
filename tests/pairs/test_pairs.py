"""Sums of pairs from blocks' rows: exact, the same for any strips and blocks, and made from new blocks only."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import BlockWriter, withdraw_block
from jacobian_core.numerics.pair_sums import StripSums, units_of
from jacobian_core.pairs import adding, build, rows, sorting
from jacobian_core.pairs.build import build_pair_stats
from tests.pairs.aggregates import pair_bytes
from tests.sql.lakes import (
    CONFIG,
    RANDOM_RUN,
    Token,
    config_of,
    finish,
    random_lake,
    random_tokens,
    tables_of,
    write_blocks,
)

TOKENS = random_tokens(120, seed=11)


def _tables(lake: Lake) -> list[dict[str, object]]:
    prepared = build_pair_stats(lake, RANDOM_RUN, CONFIG)
    try:
        return pq.read_table(prepared.temporary, partitioning=None).to_pylist()  # type: ignore[no-any-return]
    finally:
        prepared.discard()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are read to make rows, as they are opened."""
    seen: list[str] = []
    real: Callable[[Path], object] = sorting.open_part

    def noted(path: Path) -> object:
        seen.append(f"{path.parent.parent.name}/{path.name}")
        return real(path)

    monkeypatch.setattr(sorting, "open_part", noted)
    return seen


def _entries(opened: list[str]) -> list[str]:
    return sorted(name.split("/")[1] for name in opened if name.startswith("jacobian_entries/"))


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_a_resumed_run_reads_new_blocks_only(tmp_path: Path, opened: list[str], min_abs: float) -> None:
    whole = pair_bytes(random_lake(tmp_path / "whole", RANDOM_RUN, TOKENS, min_abs, complete=False))
    opened.clear()
    lake = random_lake(tmp_path / "stopped", RANDOM_RUN, TOKENS[:50], min_abs, complete=False)
    before = pair_bytes(lake)
    assert _entries(opened) == ["part-0000-000000.parquet", "part-0000-000001.parquet"]
    opened.clear()
    for number in (2, 3, 4):
        with BlockWriter(lake, RANDOM_RUN, f"0000-{number:06d}", CONFIG) as writer:
            for name, table in tables_of(TOKENS[25 * number : 25 * number + 25], min_abs).items():
                writer.write(name, table)
            writer.publish({})
    assert pair_bytes(lake) == whole != before
    assert _entries(opened) == [f"part-0000-00000{number}.parquet" for number in (2, 3, 4)]
    opened.clear()
    assert pair_bytes(lake) == whole
    assert opened == []


def test_rows_of_other_entries_are_not_used(tmp_path: Path, opened: list[str]) -> None:
    """A block that was withdrawn and computed differently: its old rows are there, and count for nothing."""
    lake = random_lake(tmp_path / "a", RANDOM_RUN, TOKENS, complete=False)
    pair_bytes(lake)
    changed = [Token(t.row, t.position, t.text, t.inputs, t.outputs, {}) for t in TOKENS[:25]]
    withdraw_block(lake, RANDOM_RUN, "0000-000000")
    with BlockWriter(lake, RANDOM_RUN, "0000-000000", CONFIG) as writer:
        for name, table in tables_of(changed).items():
            writer.write(name, table)
        writer.publish({})
    opened.clear()
    found = pair_bytes(lake)
    assert _entries(opened) == ["part-0000-000000.parquet"]
    assert found == pair_bytes(random_lake(tmp_path / "b", RANDOM_RUN, changed + TOKENS[25:], complete=False))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 4096])
def test_damaged_rows_are_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, TOKENS, complete=False)
    expected = pair_bytes(lake)
    path = rows.rows_folder(lake, RANDOM_RUN) / "0000-000001.arrow"
    path.write_bytes(damage(path.read_bytes()))
    assert pair_bytes(lake) == expected


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_strips_and_batches_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_abs: float) -> None:
    """One strip or one for each output latent, record batches of everything or of a row: the same bytes."""
    lake = random_lake(tmp_path / "a", RANDOM_RUN, TOKENS, min_abs, complete=False)
    expected = pair_bytes(lake)
    monkeypatch.setattr(build, "_CELLS", 1)
    assert pair_bytes(lake) == expected
    monkeypatch.setattr(sorting, "_BATCH_ENTRIES", 1)
    monkeypatch.setattr(adding, "_ADDED_ENTRIES", 2)
    assert pair_bytes(random_lake(tmp_path / "b", RANDOM_RUN, TOKENS, min_abs, complete=False)) == expected


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_equals_a_dense_accumulation(tmp_path: Path, min_abs: float) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, TOKENS, min_abs, complete=False)
    shape = (10, 16)
    total, magnitude, square, largest = (np.zeros(shape) for _ in range(4))
    coactive, stored = np.zeros(shape, int), np.zeros(shape, int)
    for token in TOKENS:
        for pair, value in token.values().items():
            coactive[pair] += 1
            if abs(value) >= min_abs:
                exact = float(value)
                stored[pair] += 1
                total[pair] += exact
                magnitude[pair] += abs(exact)
                square[pair] += exact * exact
                largest[pair] = max(largest[pair], abs(exact))
    found = _tables(lake)
    assert [(r["out_latent"], r["in_latent"]) for r in found] == [tuple(p) for p in np.argwhere(stored).tolist()]
    for row in found:
        pair = row["out_latent"], row["in_latent"]
        assert (row["n_coactive"], row["n_stored"], row["max_abs"]) == (coactive[pair], stored[pair], largest[pair])
        for name, dense in (("sum", total), ("sum_abs", magnitude), ("sum_sq", square)):
            assert row[name] == pytest.approx(dense[pair], rel=1e-13, abs=1e-15)  # the dense sums are rounded each time


def test_a_finished_run_stays_without_work_folder(tmp_path: Path) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, TOKENS, complete=False)
    finish(lake, RANDOM_RUN, config_of(name="random"))
    pair_bytes(lake)
    assert not lake.work_folder(RANDOM_RUN).exists()


def test_rows_that_come_too_late_leave_nothing(tmp_path: Path) -> None:
    """A worker that wakes after its run was published by another."""
    lake = random_lake(tmp_path, RANDOM_RUN, TOKENS, complete=False)
    marker = lake.markers(RANDOM_RUN)[0]
    finish(lake, RANDOM_RUN, config_of(name="random"))
    sorting.make_rows(lake, RANDOM_RUN, rows.rows_folder(lake, RANDOM_RUN), marker)
    assert not lake.work_folder(RANDOM_RUN).exists()


def test_blocks_without_tokens_or_entries(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    silent = [Token(9, 1, "x", {}, {1: 1.0}), Token(9, 2, "y", {2: 1.0}, {})]
    write_blocks(lake, RANDOM_RUN, [tables_of(silent), tables_of([]), tables_of(TOKENS[:10])], config_of())
    alone = random_lake(tmp_path / "alone", RANDOM_RUN, TOKENS[:10], complete=False)
    found, expected = (_tables(each) for each in (lake, alone))
    assert found == expected
    assert found


# ---- the accumulators


def _added(values: np.ndarray, tokens: int, largest: float) -> tuple[float, float, float]:
    sums = StripSums(2, units_of(tokens, largest))
    sums.add(torch.ones(len(values), dtype=torch.int64), torch.from_numpy(values.astype(np.float32)))
    (pairs,) = [sums.take()]
    assert pairs.cell.tolist() == [1]
    assert len(sums.take().cell) == 0  # taken sums are gone
    return float(pairs.sum[0]), float(pairs.sum_abs[0]), float(pairs.sum_sq[0])


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e6])
def test_sums_are_exact(scale: float) -> None:
    """Of values of many sizes that cancel but for their last digits, where float64 sums are off."""
    rng = np.random.default_rng(0)
    half = (rng.standard_normal(500) * np.exp(6 * rng.standard_normal(500)) * scale).astype(np.float32)
    values = np.concatenate([half, -half[::-1], np.float32([3e-9 * scale, -1e-9 * scale])])
    largest = float(np.abs(values).max())
    total, magnitude, square = _added(values, len(values), largest)
    exact = [Fraction(float(v)) for v in values]
    assert total == float(sum(exact))
    assert magnitude == pytest.approx(float(sum(map(abs, exact))), rel=2e-16)
    assert square == pytest.approx(float(sum(v * v for v in exact)), rel=2e-16)
    assert float(np.cumsum(values.astype(np.float64))[-1]) != total


@pytest.mark.parametrize("tokens", [1, 3, 1 << 20, (1 << 20) + 1])
def test_the_largest_values_fit(tokens: int) -> None:
    """Every token of the run at the largest |J|, of either sign."""
    for value in (0.75, -1.0):
        values = np.full(tokens, value)
        assert _added(values, tokens, 1.0) == (tokens * value, tokens * abs(value), tokens * value * value)


def test_units_leave_room_for_every_token() -> None:
    for tokens in (1, 2, 3, 24_000, 10**9):
        for largest in (1e-12, 0.3, 1.0, 700.0):
            unit = units_of(tokens, largest)
            for size, exponent in ((largest, unit.value), (largest**2, unit.square)):
                assert size <= 2.0**exponent  # so a value's first digit is at most 2^bits
            assert tokens * 2.0**unit.bits <= 2.0**62
            assert unit.bits == 48 or 2 * 2 * tokens * 2.0**unit.bits > 2.0**62
