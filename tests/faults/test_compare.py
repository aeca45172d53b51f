"""The comparison that every trial ends with does notice what it is there to notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jacobian_core.lake.files import temporary_path
from tests.faults.compare import Difference, difference, leftovers, visible_problems
from tests.faults.table import Harness, Tried, summary


def first_part(lake: Path, table: str) -> Path:
    return min((lake / table).rglob("part-*"))


def without_two_rows(lake: Path) -> None:
    rows = pq.ParquetFile(first_part(lake, "tokens")).read()
    pq.write_table(rows.slice(2), first_part(lake, "tokens"))


def with_three_rows_twice(lake: Path) -> None:
    rows = pq.ParquetFile(first_part(lake, "latents")).read()
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 3)]), first_part(lake, "latents"))


def with_another_value(lake: Path) -> None:
    rows = pq.ParquetFile(first_part(lake, "tokens")).read().to_pandas()
    rows.loc[0, "vocab_id"] += 1
    pq.write_table(pa.Table.from_pandas(rows), first_part(lake, "tokens"))


@pytest.fixture
def place(harness: Harness, tmp_path: Path) -> Path:
    """A copy of the undisturbed lake, to be spoilt."""
    harness.runs.copy(harness.lake, tmp_path / "lake")
    return tmp_path


def test_the_same_lake_is_the_same(harness: Harness, place: Path) -> None:
    assert difference(place / "lake", harness.lake) == Difference(0, 0, [])
    assert visible_problems(place / "lake", harness.lake) == []


@pytest.mark.parametrize(
    ("spoil", "lost", "doubled"),
    [(without_two_rows, 2, 0), (with_three_rows_twice, 0, 3), (with_another_value, 1, 1)],
)
def test_rows_are_counted(
    harness: Harness, place: Path, spoil: Callable[[Path], None], lost: int, doubled: int
) -> None:
    spoil(place / "lake")
    found = difference(place / "lake", harness.lake)
    assert (found.rows_lost, found.rows_doubled) == (lost, doubled)
    assert found.problems
    assert visible_problems(place / "lake", harness.lake)


def test_files_that_lack_or_were_left_are_named(harness: Harness, place: Path) -> None:
    lake = place / "lake"
    left = temporary_path(first_part(lake, "tokens"))
    left.touch()
    (lake / "warehouse.duckdb").unlink()
    next((lake / "reports").rglob("sparsity.csv")).unlink()
    found = difference(lake, harness.lake).problems
    for name in (left.name, "warehouse.duckdb: missing", "sparsity.csv: missing", "the warehouse shows []"):
        assert any(name in problem for problem in found)
    (place / "cache" / ".partial-x").mkdir(parents=True)
    (place / "cache" / ".partial-x" / "cfg.json").touch()
    assert leftovers(place) == ["cache/.partial-x/cfg.json"]


def test_a_manifest_that_says_other_things_is_noticed(harness: Harness, place: Path) -> None:
    path = place / "lake" / "runs" / f"{harness.run_id}.json"
    path.write_text(path.read_text().replace('"broken": ', '"broken": 1'))
    assert any("the manifest says other things" in p for p in difference(place / "lake", harness.lake).problems)


def test_lines_of_the_table_add_up() -> None:
    lines = [Tried("a", 1, 2, 0, 0), Tried("b", 1, 0, 1, 0), Tried("a", 1, 1, 0, 4)]
    assert summary(lines).splitlines()[2:] == [
        "| a     |           2 |                 3 |         0 |            4 |",
        "| b     |           1 |                 0 |         1 |            0 |",
        "| all   |           3 |                 3 |         1 |            4 |",
    ]
