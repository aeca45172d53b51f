"""Hostile text, sources and file names through the whole run: they are data everywhere and never anything else."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import unicodedata
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.results import RUN_REPORTS, run_query, run_reports, verify_all
from jacobian_core.errors import LakeError, QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.sql.render import render
from tests.faults.compare import digests
from tests.flows.test_cli import jacobian
from tests.security.conftest import OUTSIDE, RAW_LINES, SHARDS, documents

ACTIVE = {"script", "iframe", "object", "embed", "link", "form", "base", "applet", "frame"}


def unsafe_for_terminals(text: str) -> list[str]:
    """Characters that a terminal would act on."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def invoke(*arguments: str) -> str:
    """A command's output, in this process."""
    ended = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.output


def test_it_ran_and_nothing_is_outside_of_the_lake(
    ran: subprocess.CompletedProcess[str], work: Path, lake: Lake
) -> None:
    assert {path.name for path in work.iterdir()} - {".cache", ".local", ".config"} == {
        "made", "model", "pair", "corpus", "tiny.toml", "lake",
    }  # fmt: skip
    assert not OUTSIDE.exists()
    assert {path.name for path in (work / "corpus").iterdir()} == set(SHARDS)
    assert verify_all(lake.root, None) == []
    assert unsafe_for_terminals(ran.stdout + ran.stderr) == []


def test_every_document_and_source_is_kept_as_it_was(lake: Lake, run_id: str) -> None:
    rows = run_query(lake.root, "SELECT shard, source FROM documents ORDER BY document_id", None, {}).to_pylist()
    sources = [row["meta"]["pile_set_name"] for row in documents()]  # type: ignore[index]
    for shard in SHARDS[1:]:
        assert [row["source"] for row in rows if row["shard"] == shard] == sources
    assert {row["shard"] for row in rows} == set(SHARDS)
    manifest = lake.manifest(run_id)
    assert manifest is not None
    skipped = manifest.corpus["skipped"]
    assert isinstance(skipped, dict)
    assert skipped["broken"] == len(RAW_LINES)
    assert skipped["too_long"] == 1  # the line that expands to 64 MB; the one of 10 MB is a document, truncated


def test_a_line_of_10_mb_is_one_truncated_document(lake: Lake) -> None:
    query = "SELECT tokens, truncated FROM documents WHERE tokens > 1000000"
    rows = run_query(lake.root, query, None, {}).to_pylist()
    assert [row["truncated"] for row in rows] == [True]


def test_reports_are_safe_to_print(lake: Lake, run_id: str) -> None:
    tables = run_reports(lake.root, run_id, RUN_REPORTS)
    assert unsafe_for_terminals("".join(render(table) for table in tables.values())) == []


@pytest.mark.parametrize(
    "command",
    [
        ["sql", "SELECT shard, source FROM documents ORDER BY ALL"],
        ["sql", "SELECT DISTINCT text FROM tokens ORDER BY text"],
        ["sql", 'SELECT source AS "a\x1b[31mb" FROM documents ORDER BY ALL'],
        ["runs"],
        ["report", "--no-write"],
        ["report", "pair_examples", "--no-write"],
    ],
)
def test_commands_are_safe_to_print(lake: Lake, command: list[str]) -> None:
    assert unsafe_for_terminals(invoke(*command, "--lake", str(lake.root))) == []


def test_raw_text_would_not_be_safe(lake: Lake) -> None:
    """The sibling of the tests above: the lake does hold what a terminal would act on."""
    rows = run_query(lake.root, "SELECT source FROM documents", None, {}).to_pylist()
    assert {"\x1b", "\0", "\u202e"} <= set(unsafe_for_terminals("".join(row["source"] or "" for row in rows)))


def test_errors_and_findings_are_safe_to_print(lake: Lake, work: Path, tmp_path: Path) -> None:
    """Names of files that are damaged, or do not belong there, are named as they can be read."""
    (tmp_path / "lake" / "tokens" / f"run_id={SHARDS[2].partition('/')[0]}").mkdir(parents=True)
    (tmp_path / "lake" / "lake.json").write_bytes(lake.description_path.read_bytes())
    found = jacobian("verify", "--lake", "lake", cwd=tmp_path)
    assert "belongs to no run" in found.stdout
    assert "\\x1b[31m" in found.stdout
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / f"{SHARDS[2]}.zst").write_bytes(b"not zstd")
    (tmp_path / "tiny.toml").write_text((work / "tiny.toml").read_text())
    settings = [f"sae.location={work / 'pair'}", f"model.name={work / 'model'}"]
    options = [text for setting in settings for text in ("--set", setting)]
    refused = jacobian("plan", "--profile", "tiny.toml", *options, cwd=tmp_path)
    assert refused.returncode == 5
    assert len(refused.stderr.splitlines()) == 1
    assert "\\x1b[31m" in refused.stderr
    assert unsafe_for_terminals(found.stdout + found.stderr + refused.stdout + refused.stderr) == []


def test_json_output_is_json(lake: Lake) -> None:
    rows = json.loads(invoke("sql", "SELECT source FROM documents ORDER BY ALL", "--json", "--lake", str(lake.root)))
    assert documents()[0]["meta"]["pile_set_name"] in [row["source"] for row in rows]  # type: ignore[index]


def test_json_output_is_safe_to_print(lake: Lake) -> None:
    output = invoke("sql", "SELECT source FROM documents ORDER BY ALL", "--json", "--lake", str(lake.root))
    assert unsafe_for_terminals(output) == []
    assert {row["source"] for row in json.loads(output)} >= {row["meta"]["pile_set_name"] for row in documents()}  # type: ignore[index]


class Tags(HTMLParser):
    """Every tag, attribute and address of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_has_nothing_active_in_it(lake: Lake, run_id: str) -> None:
    page = (lake.report_folder(run_id) / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.tags.isdisjoint(ACTIVE)
    assert [name for name, _ in tags.attributes if name.startswith("on")] == []
    addresses = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href", "action")]
    assert [value for value in addresses if not value.startswith(("#", "data:image/"))] == []
    assert unsafe_for_terminals(page.replace("\t", "")) == []


def test_the_ui_s_pages_hold_no_markup_of_the_corpus(lake: Lake) -> None:
    """Markdown pages are rendered as HTML by the UI; the pictures in them are the project's own."""
    with closing(sqlite3.connect(lake.root / "_prefect" / "prefect.db")) as database:
        pages = [str(row[0]) for row in database.execute("SELECT data FROM artifact WHERE type = 'markdown'")]
    assert len(pages) >= 2
    assert [page for page in pages if any(tag in page.lower() for tag in ("<script", "<img", "<svg"))] == []
    assert [page for page in pages if "](http" in page or "](file" in page] == []


@pytest.mark.parametrize("run", ["../../etc", "x' OR 1=1 --", "", "\x1b[31m", "hostile'"])
def test_a_run_s_name_can_t_reach_paths_or_sql(lake: Lake, run_id: str, run: str) -> None:
    with pytest.raises((LakeError, QueryError)):
        run_reports(lake.root, run, ("sparsity",))
    with pytest.raises(LakeError):
        lake.report_folder(run)


def test_values_are_bound_and_never_become_sql(lake: Lake) -> None:
    value = "' OR 1=1; DROP VIEW tokens; --"
    rows = run_query(lake.root, "SELECT count(*) AS n FROM documents WHERE source = $s", None, {"s": value})
    assert rows.to_pylist() == [{"n": 0}]


def test_sql_writes_only_where_that_is_asked_for(lake: Lake, tmp_path: Path) -> None:
    query = f"COPY (SELECT count(*) AS n FROM tokens) TO '{tmp_path}/n.csv'"
    with pytest.raises(QueryError, match=r"COPY statements could change something.*--write"):
        run_query(lake.root, query, None, {})
    assert list(tmp_path.iterdir()) == []
    before = digests(lake.root)
    run_query(lake.root, query, None, {}, write=True)
    (said,) = run_query(lake.root, "SELECT count(*) AS n FROM tokens", None, {}).to_pylist()
    assert (tmp_path / "n.csv").read_text().split() == ["n", str(said["n"])]
    assert digests(lake.root) == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT getenv('WANDB_API_KEY')",
        "FROM duckdb_secrets()",
        "SELECT content FROM read_text('/etc/hostname')",
        "FROM glob('/*')",
        "FROM read_csv('{root}/lake.json')",
        "FROM '{root}/lake.json'",
        "FROM '{root}/warehouse.duckdb'",
        "COPY documents TO '{root}/x.csv'",
        "CREATE SECRET s (TYPE s3)",
    ],
)
def test_ad_hoc_sql_reads_the_lake_and_nothing_else(lake: Lake, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary" * 7)
    before = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*")}
    try:
        rows = run_query(lake.root, query.format(root=lake.root), None, {}).to_pylist()
    except QueryError:
        rows = []
    assert rows == []
    assert {path: path.stat().st_mtime_ns for path in lake.root.rglob("*")} == before
