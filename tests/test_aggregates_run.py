"""Whole runs that do not keep entries, or active latents, against those that do: the same sums, nothing else lost."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from flows.results import html_page, reports_of, run_query, run_reports, verify_all
from jacobian_core import pipeline
from jacobian_core.config import LakeConfig, RunConfig
from jacobian_core.errors import LakeError, QueryError
from jacobian_core.lake.compact import compact_run
from jacobian_core.lake.export import export_run
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import lake_path
from jacobian_core.pairs import levels
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.request.identity import run_identity
from jacobian_core.sql.checks import run_checks
from jacobian_core.sql.entries import needs_entries, tables_below
from jacobian_core.sql.reports import list_reports
from jacobian_core.sql.sql_files import sql_files
from jacobian_core.sql.warehouse import connect
from jacobian_core.step_values import RunRef
from tests.tiny import tiny_config

Groups = dict[str, dict[str, object]]


def run_all(config: RunConfig, merge: bool = True) -> RunRef:
    """All steps of a run as the flow has them."""
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    pipeline.check_quality(run)
    for shard in run.shards:
        cursor, more = None, True
        while more:
            batch = pipeline.stage_blocks(run, shard, cursor, None, 4)
            for block in batch.blocks:
                if pipeline.compute_block(run, block.block_id).fresh and merge:
                    pipeline.gather_pairs(run, block.block_id)
            cursor = batch.next_cursor
            more = cursor is not None
    for group in pipeline.open_groups(run):
        pipeline.accumulate_group(run, group)
    pipeline.publish_run(run, {})
    return run


def keeping(tiny: Path, lake: Path, keep: str, **groups: dict[str, object]) -> RunConfig:
    jacobian = {**groups.pop("jacobian", {}), "keep": keep}
    config: RunConfig = tiny_config(tiny, lake, jacobian=jacobian, corpus={"block_tokens": 120}, **groups)
    return config


def tables(lake: Lake, run_id: str) -> dict[str, list[dict[str, Any]]]:
    parts = lake.run_files(run_id).parts
    return {
        name: [row for part in infos for row in pq.read_table(lake.root / part.path, partitioning=None).to_pylist()]
        for name, infos in parts.items()
    }


CASES: dict[str, Groups] = {
    "plain": {},
    "thresholded": {"jacobian": {"min_abs": 0.05, "top_entries_per_token": 20}},
    "interventions": {"interventions": {"kinds": ["ablate", "set"], "shape_token_share": 0.2}},
    "all inputs": {"jacobian": {"scope": "all_inputs"}, "all_inputs": {"group_blocks": 3}},
}


@pytest.mark.parametrize("case", CASES)
def test_everything_but_the_entries(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(levels, "FAN_IN", 3)
    found = {}
    for keep in ("entries", "latents", "aggregates"):
        lake = Lake(tmp_path / keep)
        run = run_all(keeping(tiny, lake.root, keep, **{k: dict(v) for k, v in CASES[case].items()}))
        manifest = lake.manifest(run.run_id)
        assert manifest is not None
        found[keep] = tables(lake, run.run_id), manifest
    (kept, of_kept), (coded, of_coded), (summed, of_summed) = found.values()
    assert kept.pop("jacobian_entries")
    counts = [_of_all_tokens(each.pop("threshold_counts")) for each in (kept, coded, summed)]
    assert counts[0] == counts[1] == counts[2] != []
    assert coded == kept
    latents, by_latent = kept.pop("latents"), summed.pop("latent_stats")
    assert _by_latent(latents) == {(row["side"], row["latent"]): row for row in by_latent}
    assert summed == kept
    assert of_summed.totals == of_coded.totals == of_kept.totals
    assert len({each.run_id for each in (of_summed, of_coded, of_kept)}) == 3
    for keep, gone in (("latents", ["jacobian_entries"]), ("aggregates", ["jacobian_entries", "latents"])):
        assert not [name for name in gone if (tmp_path / keep / name).exists()]
        assert not (tmp_path / keep / "_work" / found[keep][1].run_id).exists()


def _by_latent(latents: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """`latent_stats` from every active latent of every token, in exact fractions."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in latents:
        rows.setdefault((row["side"], row["latent"]), []).append(row)
    return {
        (side, latent): {
            "side": side, "latent": latent, "n_tokens": len(of),
            "sum_activation": float(sum(Fraction(row["activation"]) for row in of)),
            "max_activation": max(row["activation"] for row in of),
            "sum_margin": float(sum(Fraction(row["margin"]) for row in of)),
        }
        for (side, latent), of in rows.items()
    }  # fmt: skip


def _of_all_tokens(counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are not about when an entry came, without how many entries there are."""
    return [row | {"entries": None} for row in counts if row["part"] == 1 and row["left_out"] == -1]


@pytest.fixture(scope="module")
def summed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, str]:
    """A finished run that keeps aggregates alone, with interventions."""
    lake = Lake(tmp_path_factory.mktemp("summed") / "lake")
    run = run_all(keeping(tiny, lake.root, "aggregates", interventions={"kinds": ["ablate"]}))
    return lake, run.run_id


def test_reports_that_need_entries_name_the_setting(summed: tuple[Lake, str]) -> None:
    lake, run_id = summed
    offered = reports_of(lake.root, run_id)
    assert {"threshold_fractions", "mean_max_aggregates", "causal_zero_answer"} <= set(offered)
    assert not {"sparsity", "convergence"} & set(offered)
    found = run_reports(lake.root, run_id, offered)
    thresholds = found["threshold_fractions"].to_pylist()
    assert thresholds[0]["share_max"] > 0.1
    assert {(r["entries_per_token"], r["share_of_entries"], r["share_max_low"]) for r in thresholds} == {(None,) * 3}
    strongest = found["mean_max_aggregates"].to_pylist()
    assert strongest[0]["max_abs"] > 0
    assert {r["example"] for r in strongest} == {None}
    refused = {}
    for report in list_reports():
        given = {p.name: run_id for p in report.parameters if p.name in ("run_a", "run_b")}
        try:
            rows = run_reports(lake.root, run_id, (report.name,), given)[report.name]
        except QueryError as error:
            refused[report.name] = str(error)
        else:
            assert rows.num_rows or "transcoder" in report.name or report.name == "function_shapes"
    assert sorted(refused) == [
        "compare_sparsity", "convergence", "derivative_correlation", "derivative_density", "derivative_quantiles",
        "latent_jacobian_correlation", "pair_examples", "sparsity",
    ]  # fmt: skip
    for name, said in refused.items():
        reason = f"{name} reads single entries, which run {run_id} did not keep (jacobian.keep = 'aggregates')."
        assert said.startswith(reason)


def test_no_statistic_of_entries_is_zero_for_want_of_them(summed: tuple[Lake, str]) -> None:
    lake, run_id = summed
    rows = run_reports(lake.root, run_id, ("run_figures",))["run_figures"].to_pylist()
    names = {row["statistic"] for row in rows}
    assert {"mean_abs", "median_l1_over_l2", "share_of_pairs_max_above", "near_zero_share_above"} <= names
    assert not {"entries_above_per_token", "median_gini", "mean_kurtosis"} & names
    histogram = run_reports(lake.root, run_id, ("value_histogram",))["value_histogram"].to_pylist()
    assert {row["entries"] for row in histogram} == {None}
    assert sum(row["pairs_max"] for row in histogram) > 1000


def test_verify_and_its_sibling(summed: tuple[Lake, str], tmp_path: Path) -> None:
    """Sound; and a sum of a pair that was changed is found, though there are no entries to compare it with."""
    lake, run_id = summed
    assert verify_all(lake.root, run_id) == []
    with connect(lake, [run_id], read_only=False) as connection:
        assert all(check.passed for check in run_checks(connection, run_id))
        connection.execute("CREATE TEMP TABLE changed AS FROM pair_stats")
        connection.execute("UPDATE changed SET sum_sq = sum_sq * 0.999")
        connection.execute("CREATE OR REPLACE TEMP VIEW pair_stats AS FROM changed")
        assert [check.name for check in run_checks(connection, run_id) if not check.passed] == ["pair_sums"]
    with connect(lake, [run_id], read_only=False) as connection:
        connection.execute("CREATE TEMP TABLE changed AS FROM latent_stats")
        connection.execute("UPDATE changed SET n_tokens = n_tokens + 1 WHERE rowid = 0")
        connection.execute("CREATE OR REPLACE TEMP VIEW latent_stats AS FROM changed")
        assert [check.name for check in run_checks(connection, run_id) if not check.passed] == ["latent_sums"]
    manifest = lake.manifest(run_id)
    assert manifest is not None
    assert manifest.quality["checks"] == {"run": len(sql_files("checks"))}


def test_page_says_what_is_not_there(summed: tuple[Lake, str], caplog: pytest.LogCaptureFixture) -> None:
    lake, run_id = summed
    page = html_page(lake.root, [run_id])
    text = Path(str(page.path)).read_text()
    assert text.count("the sums of pairs were kept, not single entries (jacobian.keep = &#x27;aggregates&#x27;)") == 2
    assert "Without convergence: convergence reads single entries" in text
    assert "summed by pair" in text
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "page of" in record.message]


def test_what_the_command_ends_with(summed: tuple[Lake, str], capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli_run import _show_result

    lake, run_id = summed
    _show_result(lake_path(lake.root), run_id, as_json=False)
    said = capsys.readouterr().out
    assert "threshold_fractions: " in said
    assert "mean_max_aggregates: " in said
    assert "sparsity: " not in said
    assert f"run_id: {run_id}" in said


def test_reports_of_active_latents_read_entries_too() -> None:
    """So they are refused with those, by name, and none is empty for want of `latents`."""
    readers = [report for report in list_reports() if "latents" in tables_below(report)]
    assert {report.name for report in readers} >= {"pair_examples", "latent_jacobian_correlation"}
    assert [r.name for r in readers if not needs_entries(r) and not r.name.startswith("transcoder_")] == []


def test_figures_of_active_latents(summed: tuple[Lake, str], tiny: Path, tmp_path: Path) -> None:
    """From sums by latent the same as from every active latent."""
    lake, run_id = summed
    kept = Lake(tmp_path / "lake")
    other = run_all(keeping(tiny, kept.root, "latents", interventions={"kinds": ["ablate"]})).run_id
    query = "SELECT * EXCLUDE (run_id) FROM active_latents ORDER BY side, latent"
    found, expected = (run_query(each.root, query, None, {}).to_pylist() for each in (lake, kept))
    assert [row.pop("side") for row in found] == [row.pop("side") for row in expected]
    assert len(found) > 20
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)
    report = "data_quality"
    rows = [run_reports(*each, (report,))[report].to_pylist() for each in ((lake.root, run_id), (kept.root, other))]
    assert rows[0] == rows[1]
    manifests = [each.manifest(run) for each, run in ((lake, run_id), (kept, other))]
    dead = [manifest.quality["dead_in_share"] for manifest in manifests if manifest is not None]
    assert dead[0] == dead[1] < 1


def test_a_finished_run_of_version_3(summed: tuple[Lake, str], tiny: Path, tmp_path: Path) -> None:
    """Its 'aggregates' kept active latents: the run is read, says so, and is what 'latents' asks for now."""
    lake = Lake(tmp_path / "lake")
    config = keeping(tiny, lake.root, "latents")
    run_id = run_all(config).run_id
    path = lake.manifest_path(run_id)
    assert isinstance(path, Path)
    manifest = json.loads(path.read_text()) | {"schema_version": 3}
    manifest["config"]["jacobian"]["keep"] = "aggregates"
    for block in manifest["blocks"]:
        del block["keeps_latents"]
    path.write_text(json.dumps(manifest))
    assert verify_all(lake.root, run_id) == []
    (row,) = run_query(
        lake.root, "SELECT keep, latents, (SELECT count(*) FROM latents) AS n FROM runs", None, {}
    ).to_pylist()
    assert row["keep"] == "latents"
    assert row["latents"] == row["n"] > 1000
    with connect(lake, [run_id]) as connection:
        assert all(check.passed for check in run_checks(connection, run_id))
    with pytest.raises(QueryError, match=r"sparsity reads single entries, .* \(jacobian.keep = 'latents'\)"):
        run_reports(lake.root, run_id, ("sparsity",))
    assert pipeline.resolve_run(config, pipeline.fetch_artifact(config)).state == "done"


def test_compact_export_and_sql(summed: tuple[Lake, str], tmp_path: Path) -> None:
    lake, run_id = summed
    copy = Lake(shutil.copytree(str(lake.root), tmp_path / "lake"))
    assert compact_run(copy, run_id).done
    assert not [finding for finding in verify_all(copy.root, None) if finding["severity"] == "error"]
    export_run(copy, run_id, tmp_path / "exported")
    assert verify_all(tmp_path / "exported", None) == []
    query = "SELECT keep, entries_stored, (SELECT sum(n_stored) FROM pair_stats) AS summed FROM runs"
    (row,) = run_query(tmp_path / "exported", query, None, {}).to_pylist()
    assert row["keep"] == "aggregates"
    assert row["entries_stored"] == row["summed"] > 10_000


def test_a_lost_part_of_a_finished_run(summed: tuple[Lake, str], tiny: Path, tmp_path: Path) -> None:
    """Nothing is left of what its pairs were summed of, so all of it is computed again, to the same bytes."""
    lake, run_id = summed
    copy = Lake(shutil.copytree(str(lake.root), tmp_path / "lake"))
    before = copy.manifest(run_id)
    assert before is not None
    (copy.root / before.blocks[2].parts["tokens"].path).unlink()
    with pytest.raises(LakeError, match="does not keep entries, so its pairs can't be summed again"):
        build_pair_stats(copy, run_id, LakeConfig(root=str(copy.root)))
    config = keeping(tiny, copy.root, "aggregates", interventions={"kinds": ["ablate"]})
    assert run_all(config).run_id == run_id
    after = copy.manifest(run_id)
    assert after is not None
    assert after.all_parts() == before.all_parts()


def test_a_run_in_progress(tiny: Path, tmp_path: Path) -> None:
    config = keeping(tiny, tmp_path / "lake", "aggregates")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    pipeline.check_quality(run)
    for block in pipeline.stage_blocks(run, run.shards[0], None, None, 2).blocks:
        pipeline.compute_block(run, block.block_id)
    with pytest.raises(QueryError, match=r"threshold_fractions reads sums of pairs, which run .* makes at its end"):
        run_reports(tmp_path / "lake", run.run_id, ("threshold_fractions",))
    rows = run_reports(tmp_path / "lake", run.run_id, ("data_quality",))["data_quality"].to_pylist()
    measured = {row["measure"]: row["measured"] for row in rows}
    assert measured["active input latents per token"] > 0
    assert measured["input latents seen active"] is measured["output latents never active"] is None  # not yet


def test_runs_made_before_keep_their_ids(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path)
    artifact = {"digest": "d"}
    identity = run_identity(config, artifact, {}, [])
    assert "keep" not in identity["jacobian"]  # type: ignore[operator]
    jacobian = {
        keep: run_identity(keeping(tiny, tmp_path, keep), artifact, {}, [])["jacobian"]
        for keep in ("latents", "aggregates")
    }
    # What is 'latents' now was 'aggregates' in version 3 of the lake's records.
    assert jacobian["latents"] == {**identity["jacobian"], "keep": "aggregates"}  # type: ignore[dict-item]
    assert jacobian["aggregates"] == {**jacobian["latents"], "keep_latents": False}  # type: ignore[dict-item]


@pytest.mark.parametrize("keep", ["latents", "aggregates"])
def test_second_derivatives_have_no_place(tiny: Path, tmp_path: Path, keep: str) -> None:
    with pytest.raises(ValidationError, match="derivatives = 'second', which are stored with each entry"):
        keeping(tiny, tmp_path, keep, jacobian={"derivatives": "second"})
