"""`jacobian run` over a run in miniature, with the real steps: lake, reports, pages in the UI, nothing done twice."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flows.server import ServerState
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from tests.flows.test_cli import jacobian
from tests.tiny import make_corpus, make_model, make_pair

PROFILE = """
name = "command"
[sae]
source = "folder"
location = "pair"
[model]
name = "./model"
[corpus]
source = "folder"
location = "corpus"
context_tokens = 48
block_tokens = 300
[quality]
fvu_tokens = 200
max_fvu_in = 50.0
max_fvu_out = 50.0
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: model, pair, corpus and a profile."""
    root = tmp_path_factory.mktemp("work")
    make_corpus(root / "corpus", documents=30)
    make_model(root / "model", root / "corpus")
    make_pair(root / "pair")
    (root / "tiny.toml").write_text(PROFILE)
    return root


@pytest.fixture(scope="module")
def ran(work: Path, server: ServerState, server_lake: Path) -> subprocess.CompletedProcess[str]:
    return jacobian("run", "--profile", "tiny.toml", "--lake", str(server_lake), cwd=work)


def artifacts(server: ServerState) -> list[dict[str, Any]]:
    body = json.dumps({"sort": "CREATED_DESC", "limit": 50}).encode()
    request = urllib.request.Request(f"{server.api}/artifacts/filter", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def test_the_run_leaves_a_whole_lake_and_prints_its_reports(
    ran: subprocess.CompletedProcess[str], server: ServerState, server_lake: Path
) -> None:
    assert ran.returncode == 0, ran.stderr
    lake = Lake.open(server_lake)
    run_id = next(run for run in lake.runs() if run.startswith("command-"))
    assert verify_lake(lake, run_id) == []
    assert [word for word in ("threshold_fractions", "mean_max_aggregates", "sparsity") if word not in ran.stdout] == []
    assert f"run_id: {run_id}" in ran.stdout
    assert f"run {run_id} (new)" in ran.stderr
    assert "quality: FVU" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(f"Prefect UI: {server.ui} ")
    written = {path.name for path in (server_lake / "reports" / run_id).iterdir()}
    assert {"threshold_fractions.parquet", "threshold_fractions.csv", "data_quality.csv"} <= written
    assert {"report.html", "histogram-entries.png", "convergence.png"} <= written
    assert f"report_page: {server_lake / 'reports' / run_id / 'report.html'}" in ran.stdout


def test_the_ui_has_the_run_s_page_its_tables_and_its_bar(
    ran: subprocess.CompletedProcess[str], server: ServerState
) -> None:
    found = artifacts(server)
    page = next(a for a in found if a["type"] == "markdown" and a["key"].startswith("command-"))
    order = ("Of all 7,680 pairs", "## In figures", "## threshold_fractions", "## Where it is from")
    assert sorted(order, key=page["data"].index) == list(order)
    said = re.search(r"^tokens: (\S+)$", ran.stdout, re.MULTILINE)
    assert said is not None
    assert f"| tokens | {said[1]} |" in page["data"]
    assert "in the median block" in page["data"]
    assert {"threshold-fractions", "mean-max-aggregates"} <= {a["key"] for a in found if a["type"] == "table"}
    assert any(a["type"] == "progress" and a["data"] == 100 for a in found)
    figures = next(a for a in found if a["key"].startswith("figures-command-"))
    assert figures["data"].count("](data:image/png;base64,iVBOR") >= 4


def test_the_same_command_again_computes_nothing(
    ran: subprocess.CompletedProcess[str], work: Path, server_lake: Path
) -> None:
    parts = {path: path.stat().st_mtime_ns for path in server_lake.rglob("part-*.parquet")}
    again = jacobian("run", "--profile", "tiny.toml", "--lake", str(server_lake), "--json", cwd=work)
    assert again.returncode == 0, again.stderr
    assert "already done: nothing to compute" in again.stderr
    assert json.loads(again.stdout)["tokens"] > 500
    assert {path: path.stat().st_mtime_ns for path in server_lake.rglob("part-*.parquet")} == parts


def test_report_sql_verify_and_runs_read_the_lake(
    ran: subprocess.CompletedProcess[str], work: Path, server_lake: Path
) -> None:
    def result(*arguments: str) -> Any:
        found = jacobian(*arguments, "--lake", str(server_lake), "--json", cwd=work)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    (run,) = [r for r in result("runs") if r["run_id"].startswith("command-")]
    assert run["state"] == "complete"
    report = result("report", "mean_max_aggregates", "--set", "top=3", "--run", "command", "--no-write")
    assert len(report["reports"]["mean_max_aggregates"]) == 3
    (row,) = result("sql", "SELECT count(*) AS entries FROM jacobian_entries", "--run", "command")
    assert row["entries"] == run["entries_stored"]
    assert result("verify", "--run", "command") == {"clean": True, "findings": []}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["report", "sparsty"], 7, "there is no 'sparsty' in sql/reports"),
        (["report", "sparsity", "--set", "tokns=1"], 7, "has no parameter 'tokns'"),
        (["report", "--set", "tokns"], 2, "Write it as name=value."),
        (["report", "--run", "nobody"], 6, "no run begins with 'nobody'"),
        (["sql", "SELECT nothing FROM nowhere"], 7, "nowhere"),
        (["sql", "DROP VIEW tokens"], 7, "only reads"),
        (["sql", "none.sql"], 7, "none.sql"),
    ],
)
def test_a_wrong_question_is_one_line_and_a_code(
    ran: subprocess.CompletedProcess[str], work: Path, server_lake: Path, arguments: list[str], code: int, says: str
) -> None:
    found = jacobian(*arguments, "--lake", str(server_lake), cwd=work)
    assert (found.returncode, len(found.stderr.splitlines())) == (code, 1)
    assert says in found.stderr


def test_a_damaged_part_fails_verify(ran: subprocess.CompletedProcess[str], work: Path, server_lake: Path) -> None:
    part = next((server_lake / "jacobian_entries").rglob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        found = jacobian("verify", "--lake", str(server_lake), cwd=work)
    finally:
        part.write_bytes(whole)
    assert found.returncode == 1
    assert part.name in found.stdout
    assert jacobian("verify", "--lake", str(server_lake), cwd=work).returncode == 0
