"""The sweep flow on a real server, with real training and real runs in miniature."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from flows.progress import listening
from jacobian_core.errors import SweepError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from jacobian_core.sweep.record import choose_sweep
from tests.flows.test_run_flow import Ear
from tests.report.test_page import Outline
from tests.sweep.test_cells import changed


class Stop(Ear):
    """Interrupts the sweep when it comes to its second run."""

    def summary(self, facts: object) -> None:
        pass

    def note(self, text: str) -> None:
        super().note(text)
        if text.startswith("[2 of "):
            raise KeyboardInterrupt


def ages(lake: Lake) -> dict[str, int]:
    """When each finished run was published."""
    return {run: lake.manifest_path(run).stat().st_mtime_ns for run in lake.runs() if lake.manifest(run)}


def test_a_sweep_goes_on_where_it_was_stopped_and_tries_again_what_failed(
    work: Path, tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.sweep import sweep

    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    file, root = str(changed(work, "layers = [0, 1]", "layers = [1]")), str(tmp_path / "lake")
    ear: Ear = Stop()
    with listening(ear), pytest.raises(KeyboardInterrupt):
        sweep(file, root)
    assert len([note for note in ear.notes if note.startswith("trained the pair")]) == 1
    lake = Lake.open(root)
    first = ages(lake)
    assert [run.rpartition("-")[0] for run in first] == ["tiny-l1-made-trained"]

    ear = Ear()
    with (
        listening(ear),
        pytest.raises(SweepError, match=r"2 of 3 runs of the sweep failed: l1-taken-trained: .*pairs/"),
    ):
        sweep(file, root)
    assert not [note for note in ear.notes if note.startswith("trained the pair")]
    record = choose_sweep(lake, "tiny-")
    assert [cell.state for cell in record.cells] == ["complete", "failed", "failed"]
    assert {run: ages(lake)[run] for run in first} == first
    page = (tmp_path / "lake/reports" / record.sweep_id / "report.html").read_text()
    assert "2 of 3 runs are not in this page" in page
    assert "pairs/layer1" in page

    (work / "pairs").mkdir()
    shutil.copytree(work / "pair", work / "pairs/layer1")
    shutil.rmtree(tmp_path / "cache")  # what was trained and analysed is not trained again
    second, ear = ages(lake), Ear()
    with listening(ear):
        sweep_id = sweep(file, root)
    assert sweep_id == record.sweep_id
    assert not [note for note in ear.notes if note.startswith("trained the pair")]
    assert {run: ages(lake)[run] for run in second} == second
    done = choose_sweep(lake, "tiny-")
    assert [cell.state for cell in done.cells] == ["complete"] * 3
    assert verify_lake(lake) == []
    check_page(lake, sweep_id)


def check_page(lake: Lake, sweep_id: str) -> None:
    """The page and its tables say what the reports of the single runs say."""
    folder = lake.report_folder(sweep_id)
    page = (folder / "report.html").read_text()
    outline = Outline(page)
    assert outline.open == []
    sections = [attributes["id"] for tag, attributes in outline.tags if tag == "section"]
    assert sections == ["answer", "causal", "sizes", "shapes", "fit", "compared", "runs", "provenance"]
    linked = [a["href"] for tag, a in outline.tags if tag == "a" and str(a["href"]).startswith("../")]
    assert len(linked) == 3
    assert all((folder / str(href)).is_file() for href in linked)
    rows = rows_of(folder / "sweep_answers.csv")
    assert [(row["layer"], row["pair"], row["weights"]) for row in rows] == [
        ("1", "made", "trained"), ("1", "taken", "trained"), ("1", "taken", "random"),
    ]  # fmt: skip
    for row in rows:
        own = rows_of(lake.report_folder(row["run_id"]) / "causal_zero_answer.csv")[0]
        assert_agree({name: row[name] for name in own}, own)
    compared = rows_of(folder / "sweep_comparisons.csv")
    assert {(row["layer"], row["axis"], row["a"], row["b"]) for row in compared} == {
        ("1", "pair", "made, trained", "taken, trained"), ("1", "weights", "taken, trained", "taken, random"),
    }  # fmt: skip
    figures = {
        (r["run_id"], r["statistic"], r["threshold"]): r["measured"] for r in rows_of(folder / "sweep_figures.csv")
    }
    for r in compared:
        assert_agree({"": r["run_a"] or ""}, {"": figures.get((r["run_id_a"], r["statistic"], r["threshold"]), "")})
    shown = re.search(r'<figure id="sweep-fvu">.*?</figure>', page, re.DOTALL)
    assert shown
    assert "in layer 1" in shown[0]
    assert json.loads((lake.root / f"sweeps/{sweep_id}.json").read_bytes())["sweep_id"] == sweep_id


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def assert_agree(one: dict[str, str], other: dict[str, str]) -> None:
    """Two readings of a run are the same but for the order of additions."""
    for name, text in one.items():
        try:
            assert float(text) == pytest.approx(float(other[name]), rel=1e-9)
        except ValueError:
            assert text == other[name]


def test_another_reading_would_be_noticed() -> None:
    assert_agree({"share": "0.5", "verdict": "no"}, {"share": "0.50000000000001", "verdict": "no"})
    for wrong in ({"share": "0.5001", "verdict": "no"}, {"share": "0.5", "verdict": "yes"}):
        with pytest.raises(AssertionError):
            assert_agree({"share": "0.5", "verdict": "no"}, wrong)


def test_ctrl_c_during_a_query_is_no_failed_run() -> None:
    import duckdb

    from flows.sweep import was_interrupted

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(RuntimeError) as stopped, duckdb.connect() as connection:
            connection.execute("SELECT sum(a.range * b.range) FROM range(30000) a, range(30000) b").fetchall()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert was_interrupted(stopped.value)
    assert not was_interrupted(RuntimeError("out of memory"))
