"""The gate: a run that breaks an invariant is not published, an unusual one is, with a warning in its manifest."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from jacobian_core import gate
from jacobian_core.config import QualityConfig
from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, to_json
from jacobian_core.lake.publish import BlockWriter, total_problems
from jacobian_core.request.drift import DriftWatch, blocks_drift, blocks_fvu, run_drift, total_measures
from jacobian_core.sql.checks import CheckResult
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.run_list import list_runs
from jacobian_core.sql.warehouse import connect
from tests.lake.builders import CONFIG, IDENTITY, RUN, example_tables, write_run
from tests.tiny import run_pipeline, tiny_config

LIMITS = QualityConfig(drift_blocks=5)


def totals(**changes: float) -> dict[str, Any]:
    usual = {"tokens": 100, "documents": 4, "latents": 1200, "entries_total": 3600, "entries_stored": 3600}
    return usual | {"abs_sum_total": 36.0, "abs_sum_stored": 36.0, "sq_sum_total": 1.0} | changes


def block(number: int, fvu: tuple[float, float] = (0.2, 0.1), **changes: float) -> BlockMarker:
    quality = {"fvu_in": fvu[0], "fvu_out": fvu[1], "fvu_tokens": 128}
    return BlockMarker(run_id=RUN, block_id=f"0000-{number:06d}", parts={}, totals=totals(**changes), quality=quality)


EVEN = [block(n, latents=1200 + n % 3, abs_sum_total=36 + n % 5, documents=3 + n % 4) for n in range(20)]


def test_even_blocks_do_not_drift() -> None:
    assert blocks_drift(EVEN, LIMITS) == []
    watch = DriftWatch(LIMITS)
    assert [watch.add(each) for each in EVEN] == [[]] * len(EVEN)


@pytest.mark.parametrize(
    ("change", "measure"),
    [({"latents": 2400}, "active_latents_per_token"), ({"abs_sum_total": 200.0}, "mean_abs"),
     ({"tokens": 4000, "latents": 48_000}, "tokens_per_document"), ({"fvu": (0.4, 0.1)}, "fvu_in"),
     ({"fvu": (0.2, 0.2)}, "fvu_out")],
)  # fmt: skip
def test_one_block_that_differs_is_named(change: dict[str, Any], measure: str) -> None:
    odd = block(30, **change)
    assert [(d.where, d.measure) for d in blocks_drift([*EVEN, odd], LIMITS)] == [("0000-000030", measure)]
    watch = DriftWatch(LIMITS)
    for each in EVEN:
        watch.add(each)
    assert [drift.measure for drift in watch.add(odd)] == [measure]
    assert "block 0000-000030" in blocks_drift([*EVEN, odd], LIMITS)[0].line()


def test_the_order_of_blocks_is_of_no_account_and_few_blocks_say_nothing() -> None:
    odd = block(30, latents=2400)
    assert blocks_drift([odd, *EVEN[::-1]], LIMITS) == blocks_drift([*EVEN, odd], LIMITS)
    assert blocks_drift([*EVEN[:3], odd], LIMITS) == []
    assert blocks_drift([*EVEN, odd], LIMITS.model_copy(update={"drift_deviations": None})) == []


def test_blocks_of_an_older_lake_have_no_fvu_and_are_judged_by_the_rest() -> None:
    older = [each.model_copy(update={"quality": {}}) for each in EVEN]
    odd = block(30, latents=2400, fvu=(0.9, 0.9))
    assert [drift.measure for drift in blocks_drift([*older, odd], LIMITS)] == ["active_latents_per_token"]
    assert blocks_fvu(older) == {}
    assert blocks_fvu([*older, block(1, (0.5, 0.1)), block(2, (0.3, 0.1)), block(3, (0.4, 0.3))]) == {
        "block_fvu_in": 0.4, "block_fvu_in_max": 0.5, "block_fvu_out": 0.1, "block_fvu_out_max": 0.3,
    }  # fmt: skip


def test_a_block_of_nothing_has_no_figures() -> None:
    assert total_measures({"tokens": 0, "documents": 0, "latents": 0}) == {}


@pytest.mark.parametrize(
    ("change", "what"),
    [({"abs_sum_total": float("nan")}, "abs_sum_total is nan"), ({"tokens": -1}, "tokens is -1"),
     ({"sq_sum_total": float("inf")}, "sq_sum_total is inf"), ({"entries_stored": 3601}, "more than entries_total"),
     ({"abs_sum_stored": 36.1}, "more than abs_sum_total")],
)  # fmt: skip
def test_impossible_totals_are_found(change: dict[str, float], what: str) -> None:
    assert total_problems(totals()) == []
    assert what in " ".join(total_problems(totals(**change)))


def test_a_block_with_impossible_totals_is_not_published(tmp_path: Path) -> None:
    from jacobian_core.lake.runs import begin_run

    lake = Lake.create(tmp_path / "lake")
    begin_run(lake, RUN, IDENTITY, {})
    tables = example_tables()
    stored = tables["tokens"].schema.get_field_index("abs_sum_stored")
    doubled = tables["tokens"].set_column(
        stored,
        tables["tokens"].schema.field(stored),
        tables["tokens"]["abs_sum_total"].combine_chunks().take([2, 2, 2]),
    )
    with BlockWriter(lake, RUN, "0000-000000", CONFIG) as writer:
        for name, data in (tables | {"tokens": doubled}).items():
            writer.write(name, data)
        with pytest.raises(LakeError, match=r"abs_sum_stored is .* more than abs_sum_total"):
            writer.publish({})
    assert lake.markers(RUN) == []


def test_a_run_is_compared_with_earlier_ones_of_the_same_request(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    first = write_run(lake, 2)
    limits = QualityConfig()
    again = first.model_copy(update={"run_id": "demo-00000000000b", "quality": {"fvu_in": 0.3}})
    assert run_drift(lake, again, limits) == []  # the first has no FVU to compare with
    louder = again.model_copy(update={"totals": first.totals | {"abs_sum_total": first.totals["abs_sum_total"] * 2}})
    assert [drift.measure for drift in run_drift(lake, louder, limits)] == ["mean_abs"]
    fitted = first.model_copy(update={"blocks": [block(1, (0.2, 0.1)), block(2, (0.2, 0.1))]})
    lake.manifest_path(RUN).write_bytes(to_json(fitted))
    worse = again.model_copy(update={"blocks": [block(1, (0.2, 0.4)), block(2, (0.2, 0.5)), block(3, (9.0, 0.1))]})
    assert [(drift.measure, drift.usual) for drift in run_drift(lake, worse, limits)] == [("block_fvu_out", 0.1)]
    assert run_drift(lake, louder.model_copy(update={"identity": {"artifact": "other"}}), limits) == []
    assert run_drift(lake, louder, QualityConfig(drift_ratio=None)) == []


@pytest.fixture(scope="module")
def published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    config = tiny_config(tiny, tmp_path_factory.mktemp("gate") / "lake")
    run_pipeline(config)
    return Lake.open(Path(config.lake.root))


def test_a_published_run_says_what_was_checked(published: Lake) -> None:
    manifest = published.manifest(published.runs()[0])
    assert manifest is not None
    from jacobian_core.sql.sql_files import sql_files

    assert manifest.quality["checks"] == {"run": len(sql_files("checks"))}
    assert 0 <= manifest.quality["dead_in_share"] < 1  # type: ignore[operator]
    assert manifest.quality["drift"]["found"] == 0  # type: ignore[index, call-overload]


def test_each_block_says_how_well_the_saes_fit_it(published: Lake, tiny: Path, tmp_path: Path) -> None:
    """The figures of every block, in the run's facts and report; and the same in the same run anew."""
    run_id = published.runs()[0]
    manifest = published.manifest(run_id)
    assert manifest is not None
    sizes = [min(128, int(each.totals["tokens"])) for each in manifest.blocks]
    assert [each.quality.get("fvu_tokens", 0) for each in manifest.blocks] == [n if n >= 32 else 0 for n in sizes]
    measured = [each.quality["fvu_in"] for each in manifest.blocks if each.quality]
    assert len(set(measured)) == len(measured) > 3
    with connect(published, [run_id]) as connection:
        found = connection.execute("SELECT block_fvu_in, block_fvu_in_max FROM runs").fetchone()
        rows = {row["measure"]: row["measured"] for row in run_report(connection, "data_quality", {}).to_pylist()}
    assert found == (median(measured), max(measured))
    assert rows["FVU of the input SAE, worst block"] == max(measured)
    again = run_pipeline(tiny_config(tiny, tmp_path / "lake"))
    blocks = Lake.open(tmp_path / "lake").manifest(again.run_id).blocks  # type: ignore[union-attr]
    assert [each.quality for each in blocks] == [each.quality for each in manifest.blocks]
    assert "fit" in manifest.seconds


def test_a_failed_check_stops_publication_and_the_next_attempt_continues(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny, tmp_path / "lake")
    real = gate.run_checks

    def one_fails(*given: Any) -> list[CheckResult]:
        return [*real(*given), CheckResult("made_up", "nothing is wrong", False, 3, ({"what": "a\x1b[31m b"},))]

    with monkeypatch.context() as patch:
        patch.setattr(gate, "run_checks", one_fails)
        with pytest.raises(LakeError, match="check made_up failed: 3 rows break 'nothing is wrong'"):
            run_pipeline(config)
    lake = Lake.open(tmp_path / "lake")
    run_id = lake.runs()[0]
    assert lake.manifest(run_id) is None
    assert len(lake.markers(run_id)) > 1
    run = run_pipeline(config)
    assert lake.manifest(run.run_id) is not None
    assert list_runs(lake)[0].state == "complete"


def test_a_run_above_the_limit_says_that_it_was_not_checked(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"fvu_tokens": 200, "max_fvu_in": 50.0, "max_fvu_out": 50.0, "checks_max_entries": 1, "drift_blocks": 3}
    config = tiny_config(tiny, tmp_path / "lake", quality=small, corpus={"max_tokens": 900})
    with caplog.at_level(logging.WARNING):
        run = run_pipeline(config)
    manifest = Lake.open(tmp_path / "lake").manifest(run.run_id)
    assert manifest is not None
    assert "checks_max_entries = 1" in str(manifest.quality["checks"])
