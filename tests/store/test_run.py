"""A run in an object store is the run in a folder: the same parts, to the byte, and the same answers."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import results
from jacobian_core.errors import QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import lake_path
from jacobian_core.sql import store_access
from jacobian_core.sql.reports import list_reports, run_report, run_sql
from jacobian_core.sql.run_list import list_runs
from jacobian_core.sql.warehouse import connect
from tests.faults.compare import digests
from tests.stand_ins.s3_server import S3Server
from tests.store.conftest import Both
from tests.tiny import run_pipeline, tiny_config

OWN_BYTES = ("warehouse.duckdb", "runs/", "reports/")
"""What holds times or places."""


def same_bytes(name: str) -> bool:
    return not name.startswith((*OWN_BYTES, "_work/"))


def test_the_same_files_with_the_same_bytes(both: Both, store: S3Server) -> None:
    stored, local = store.objects(both.prefix), digests(both.local)
    locks = {"_work/warehouse.lock"}
    assert {name for name in stored if not name.startswith("reports/")} == {*local} - locks
    parts = [name for name in stored if name.endswith(".parquet") and same_bytes(name)]
    assert len(parts) > 12
    for name in parts:
        assert stored[name] == (both.local / name).read_bytes(), name


def test_the_same_manifest(both: Both, store: S3Server) -> None:
    one, other = (Lake.open(place).manifest(both.run_id) for place in (both.local, both.stored))
    assert one is not None
    assert other is not None
    differing = {"config", "seconds", "created_utc"}
    blocks = [[(b.block_id, b.parts, b.totals) for b in each.blocks] for each in (one, other)]
    assert blocks[0] == blocks[1]
    assert one.model_dump(exclude={*differing, "blocks"}) == other.model_dump(exclude={*differing, "blocks"})


def test_nothing_stays_on_this_machine(both: Both) -> None:
    assert [path for path in both.cache.rglob("*") if path.is_file()] == []


def test_the_same_request_again_changes_nothing(both: Both, store: S3Server, tiny: Path) -> None:
    before = store.objects(both.prefix)
    config = Lake.open(both.stored).manifest(both.run_id).config  # type: ignore[union-attr]
    asked = {group: config[group] for group in ("jacobian", "interventions", "corpus")}
    assert run_pipeline(tiny_config(tiny, both.stored, **asked)).state == "done"  # type: ignore[arg-type]
    assert store.objects(both.prefix) == before


@pytest.fixture(params=["httpfs", "pyarrow"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How DuckDB gets at the store."""
    assert store_access.httpfs_path() is not None
    if request.param == "pyarrow":
        monkeypatch.setattr(store_access, "httpfs_path", lambda: None)
    return str(request.param)


def rows(place: Path | str, query: str) -> list[tuple[object, ...]]:
    with connect(Lake.open(place)) as connection:
        return connection.execute(query).fetchall()


def test_sql_sees_the_same_rows(both: Both, store: S3Server, reader: str) -> None:
    filled = set()
    for table in Lake.open(both.local).run_files(both.run_id).parts:
        query = f"SELECT * FROM {table} ORDER BY ALL"
        found = rows(both.stored, query)
        assert found == rows(both.local, query), table
        filled |= {table} if found else set()
    assert filled >= {"tokens", "documents", "latents", "jacobian_entries", "pair_stats", "interventions"}
    filtered = "SELECT count(*), sum(value) FROM entries WHERE run_id = '{}' AND out_latent < 20 AND abs(value) > 0.01"
    assert rows(both.stored, filtered.format(both.run_id)) == rows(both.local, filtered.format(both.run_id))
    assert rows(both.stored, filtered.format("another")) == [(0, None)]


def same_value(one: object, other: object) -> bool:
    """DuckDB adds floats up in any order, so their last bits may differ."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return one == other


def test_reports_are_the_same(both: Both, store: S3Server, reader: str) -> None:
    names = [report.name for report in list_reports() if not report.name.startswith("compare_")]
    tables: list[dict[str, pa.Table]] = []
    for place in (both.local, both.stored):
        with connect(Lake.open(place), threads=1) as connection:
            tables.append({name: run_report(connection, name, {"run_id": both.run_id}) for name in names})
    for name in names:
        assert tables[1][name].schema == tables[0][name].schema
        one, other = ([value for row in t[name].to_pylist() for value in row.values()] for t in tables)
        assert all(map(same_value, one, other)), name
        assert len(one) == len(other)


def test_a_query_reaches_nothing_but_the_parts(both: Both, store: S3Server, reader: str) -> None:
    manifest = f"{both.stored}/runs/{both.run_id}.json"
    for statement in (f"SELECT * FROM read_text('{manifest}')", "SELECT * FROM read_text('/etc/hostname')"):
        with connect(Lake.open(both.stored)) as connection, pytest.raises(QueryError, match="disabled"):
            run_sql(connection, statement)


def test_reports_and_the_page_are_written_into_the_store(both: Both, store: S3Server) -> None:
    place = lake_path(both.stored)
    tables = results.run_reports(place, both.run_id, ("sparsity", "data_quality"))
    written = results.write_reports(place, both.run_id, tables)
    page = results.html_page(place, [both.run_id])
    assert all(str(path).startswith(f"{both.stored}/reports/{both.run_id}/") for path in [*written, *page.files])
    stored = store.objects(f"{both.prefix}reports/{both.run_id}/")
    assert stored["report.html"].startswith(b"<!")
    assert pq.read_table(pa.BufferReader(stored["sparsity.parquet"])).equals(tables["sparsity"])
    assert len(stored) >= len(written) + len(page.files)


def test_runs_are_listed(both: Both, store: S3Server) -> None:
    one, other = (list_runs(Lake.open(place)) for place in (both.local, both.stored))
    assert [(i.run_id, i.state, i.tokens, i.bytes, i.blocks) for i in other] == [
        (i.run_id, i.state, i.tokens, i.bytes, i.blocks) for i in one
    ]
