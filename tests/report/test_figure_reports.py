"""The reports that count for pictures: given rows and what must come of them, and every value found again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from jacobian_core.contracts import document_id, token_id
from jacobian_core.lake.layout import Lake
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.warehouse import connect
from tests.report.lakes import RUNS
from tests.sql.lakes import HAND, HAND_RUN, config_of, finish, hand_lake, rows_table, tables_of, write_blocks

Connection = duckdb.DuckDBPyConnection
EFFECTS = "effects-000000000001"


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(hand_lake(tmp_path_factory.mktemp("hand"))) as connection:
        yield connection


@pytest.fixture(scope="module")
def many(lake: Lake) -> Iterator[Connection]:
    with connect(lake) as connection:
        yield connection


def _rows(connection: Connection, name: str, **given: object) -> list[dict[str, object]]:
    return run_report(connection, name, given).to_pylist()


def test_histogram_of_the_hand_lake(hand: Connection) -> None:
    """|J|: 0, 0, 0.25, 0.5, 0.75, 1.5, 2 in bins of a decade; pair sums are divided by the three tokens."""
    rows = _rows(hand, "value_histogram", run_id=HAND_RUN, bins_per_decade=1)
    found = [(r["low"], r["high"], r["entries"], r["pairs_mean_all_tokens"], r["pairs_max"]) for r in rows]
    #   means: (1,0) 2/3, (1,3) 1/3, (2,0) 0, (2,3) 2/3; largest: 1.5, 0.75, 0, 2
    assert found == [(0, 1e-8, 2, 1, 1), (0.1, 1, 3, 3, 1), (1, 10, 2, 0, 2)]
    assert [r["share_of_entries"] for r in rows] == pytest.approx([2 / 7, 3 / 7, 2 / 7])


def test_histogram_follows_its_parameters(hand: Connection) -> None:
    """What is below `smallest` moves into the first row: a row that ignored it would keep 0.25 apart."""
    rows = _rows(hand, "value_histogram", run_id=HAND_RUN, bins_per_decade=1, smallest=0.3)
    assert [(r["low"], r["entries"]) for r in rows if r["entries"]] == [(0, 3), (0.1, 2), (1, 2)]


def test_histogram_has_every_entry_in_its_bin(many: Connection) -> None:
    query = "SELECT abs(value) AS size FROM jacobian_entries WHERE run_id = ?"
    values = many.execute(query, [RUNS[0]]).fetchnumpy()["size"].astype(np.float64)
    rows = _rows(many, "value_histogram", run_id=RUNS[0])
    for row in rows:
        inside = (values >= row["low"] * (1 - 1e-12)) & (values < row["high"] * (1 - 1e-12))
        assert row["entries"] == inside.sum()
    assert sum(row["entries"] for row in rows) == len(values)


def test_density_of_both_derivatives(tmp_path: Path) -> None:
    """J'' is J / 4 in this lake, so each J falls into one known cell; zeros into the cell at 0."""
    lake = Lake.create(tmp_path)
    write_blocks(lake, HAND_RUN, [tables_of(HAND, second=True)], config_of())
    finish(lake, HAND_RUN, config_of())
    with connect(lake) as connection:
        rows = _rows(connection, "derivative_density", run_id=HAND_RUN, bins_per_decade=1)
    found = {(r["low_first"], r["low_second"]): (r["entries"], r["same_sign"]) for r in rows}
    #   0.25 -> 0.0625; 0.5, 0.75 -> 0.125, 0.1875; 1.5, 2 -> 0.375, 0.5
    assert found == {(0, 0): (2, 0), (0.1, 0.01): (1, 1), (0.1, 0.1): (2, 2), (1, 0.1): (2, 2)}


def test_density_needs_second_derivatives(hand: Connection) -> None:
    assert _rows(hand, "derivative_density", run_id=HAND_RUN) == []


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Three ablations of token 'a': as predicted, to the other side, and out of the selection; one of kind 'unit'."""
    lake = Lake.create(tmp_path_factory.mktemp("effects"))
    tables = tables_of(HAND)
    token = token_id(document_id(0, 0), 1)
    rows = [
        #          kind      before after  J      J''  t    t after change left   weight
        (token, 1, 0, "ablate", 2.0, 0.0, 0.5, 0.0, 4.0, 3.0, -1.0, False, 3.0),
        (token, 1, 3, "ablate", 1.0, 0.0, -0.25, 0.0, 4.0, 3.5, -0.5, False, 2.0),
        (token, 2, 0, "ablate", 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, -0.125, True, 1.0),
        (token, 1, 0, "unit", 2.0, 1.0, 0.5, 0.0, 4.0, 3.5, -0.5, False, 1.0),
    ]
    tables["interventions"] = rows_table("interventions", sorted(rows))
    write_blocks(lake, EFFECTS, [tables], config_of())
    finish(lake, EFFECTS, config_of())
    with connect(lake) as connection:
        yield connection


@pytest.mark.parametrize(
    ("left", "predicted", "effect", "pairs"),
    [(False, -1.0, -1.0, 3.0), (False, 0.25, -0.5, 2.0), (True, 0.0, -1.0, 1.0)],
    ids=["as predicted", "other side", "left: lost all of t"],
)
def test_effects_fall_into_their_cells(
    effects: Connection, left: bool, predicted: float, effect: float, pairs: float
) -> None:
    rows = _rows(effects, "effect_density", run_id=EFFECTS)
    assert len(rows) == 3
    hit = [
        r for r in rows
        if r["predicted_low"] <= predicted < r["predicted_high"] and r["effect_low"] <= effect < r["effect_high"]
    ]  # fmt: skip
    assert [(r["left_selection"], r["interventions"], r["pairs"]) for r in hit] == [(left, 1, pairs)]


def test_effects_of_another_kind_are_other_cells(effects: Connection) -> None:
    (row,) = _rows(effects, "effect_density", run_id=EFFECTS, kind="unit")
    assert row["predicted_low"] <= -0.5 < row["predicted_high"]


def test_cells_are_equal_steps_of_asinh(effects: Connection) -> None:
    for row in _rows(effects, "effect_density", run_id=EFFECTS, linear=0.1, bins_per_decade=4):
        width = math.asinh(row["effect_high"] / 0.1) - math.asinh(row["effect_low"] / 0.1)
        assert width == pytest.approx(math.log(10) / 4)


def test_examples_of_the_strongest_pairs(hand: Connection) -> None:
    """Pair (1, 0) and (2, 3) tie at 2/3: the lower latent is first. Its strongest token is 'c', then 'a'."""
    rows = _rows(hand, "pair_examples", run_id=HAND_RUN, top=2, min_coactive=1)
    found = [(r["rank"], r["place"], r["out_latent"], r["in_latent"], r["text"], r["value"]) for r in rows]
    assert found == [(1, 1, 1, 0, "c", -1.5), (1, 2, 1, 0, "a", 0.5), (2, 1, 2, 3, "a", 2.0)]
    first, second = rows[0], rows[1]
    assert (first["in_activation"], first["out_activation"], first["source"]) == (1.0, 1.0, "Made up")
    assert (second["text_before"], second["text_after"]) == ("", " b")
    assert first["mean_abs_all_tokens"] == pytest.approx(2 / 3)


def test_examples_are_as_many_as_asked_for(hand: Connection) -> None:
    rows = _rows(hand, "pair_examples", run_id=HAND_RUN, top=1, examples=1, min_coactive=1)
    assert [(r["rank"], r["place"]) for r in rows] == [(1, 1)]
    assert {r["in_latent"] for r in _rows(hand, "pair_examples", run_id=HAND_RUN, min_coactive=3)} == {3}
