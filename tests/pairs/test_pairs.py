"""Sums of pairs from blocks' rows: exact, the same for any strips and blocks, and made from new blocks only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import BlockWriter, withdraw_block
from jacobian_core.pairs import by_pair, rows, sorting, tasks
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
    return sorted({name.split("/")[1] for name in opened if name.startswith("jacobian_entries/")})


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
    monkeypatch.setattr(tasks, "_LEAST_ENTRIES", 1)
    monkeypatch.setattr(tasks, "_ENTRIES_A_BLOCK", 1)
    assert pair_bytes(lake) == expected
    monkeypatch.setattr(tasks, "PART_ENTRIES", 5)
    assert pair_bytes(lake) == expected
    monkeypatch.setattr(sorting, "_BATCH_ENTRIES", 1)
    monkeypatch.setattr(by_pair, "PASS_ENTRIES", 2)
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


@pytest.mark.parametrize(("min_abs", "task", "part"), [(0.0, 100, 50), (0.02, 60, 24)])
def test_tasks_have_about_as_many_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_abs: float, task: int, part: int
) -> None:
    """All output latents once and in order; no task has more than asked for, and one with many entries is alone."""
    for name, entries in (("_LEAST_ENTRIES", task), ("_MOST_ENTRIES", task), ("PART_ENTRIES", part)):
        monkeypatch.setattr(tasks, name, entries)
    lake = random_lake(tmp_path, RANDOM_RUN, TOKENS, min_abs, complete=False)
    pair_bytes(lake)
    stored, coactive = np.zeros(10, int), np.zeros(10, int)
    for token in TOKENS:
        for (out, _), value in token.values().items():
            coactive[out] += 1
            stored[out] += abs(value) >= min_abs
    markers, folder = lake.markers(RANDOM_RUN), rows.rows_folder(lake, RANDOM_RUN)
    facts = rows.Facts()
    for marker in markers:
        with rows.opened_rows(folder, marker) as block:
            facts |= block.facts
    run = tasks.RunRows(folder, markers, facts)
    found = list(run.tasks())
    n_out = facts.widths[0]
    assert [out for outs in found for out in outs] == list(range(n_out))
    assert all(stored[outs.start : outs.stop].sum() <= task for outs in found if len(outs) > 1)
    assert all(range(out, out + 1) in found for out in np.flatnonzero(stored > part).tolist())
    assert 1 < len(found) < n_out
    assert [run.coactive(out).sum() for out in range(n_out)] == coactive[:n_out].tolist()
