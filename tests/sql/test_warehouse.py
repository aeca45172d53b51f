"""The views over a lake: what they show, what they refuse, and what a locked connection can't do."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from jacobian_core.contracts import TABLES
from jacobian_core.errors import JacobianFlowsError, LakeError, QueryError
from jacobian_core.lake.files import sha256_of
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import BlockWriter
from jacobian_core.sql.sql_files import sql_files
from jacobian_core.sql.warehouse import connect, memory_limit
from jacobian_core.sql.warehouse_file import build_warehouse
from jacobian_core.sql.warehouse_sql import DUCKDB_TYPES
from tests.sql.lakes import CONFIG, HAND, HAND_RUN, config_of, hand_lake, tables_of, write_blocks

OTHER = "other-000000000002"


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> object:
    return connection.execute(query).fetchall()[0][0]


def test_table_views_have_the_contract(hand_connection: duckdb.DuckDBPyConnection) -> None:
    for table in TABLES.values():
        described = [(r[0], r[1]) for r in hand_connection.execute(f"DESCRIBE {table.name}").fetchall()]
        assert described == [(c.name, DUCKDB_TYPES[c.type]) for c in table.columns] + [("run_id", "VARCHAR")]


def test_views_show_the_rows(hand_connection: duckdb.DuckDBPyConnection) -> None:
    rows = hand_connection.execute(
        "SELECT token_id, out_latent, in_latent, value, run_id FROM jacobian_entries ORDER BY ALL"
    ).fetchall()
    expected = [(t.token_id, o, i, float(v), HAND_RUN) for t in HAND for (o, i), v in t.values().items()]
    assert rows == expected


def test_everything_is_commented(hand_connection: duckdb.DuckDBPyConnection) -> None:
    views = [*TABLES, "runs", *sql_files("views")]
    for view in views:
        where = f"WHERE view_name = '{view}'"
        assert _one(hand_connection, f"SELECT comment FROM duckdb_views() {where}")
        comments = hand_connection.execute(
            f"SELECT column_name, comment FROM duckdb_columns() WHERE table_name = '{view}'"
        ).fetchall()
        assert comments
        assert all(comment for _, comment in comments), comments
    entries = "WHERE table_name = 'tokens' AND column_name = 'in_active'"
    assert _one(hand_connection, f"SELECT comment FROM duckdb_columns() {entries}") == "active input latents [latents]"


def test_runs_view(hand_connection: duckdb.DuckDBPyConnection) -> None:
    row = hand_connection.execute(
        "SELECT run_id, name, complete, created_utc::VARCHAR, model, layer, artifact, n_in_latents, n_out_latents, "
        "fvu_in, fvu_out, min_abs, top_entries_per_token, thresholded, documents, skipped_documents, tokens, latents, "
        "entries_total, entries_stored, abs_sum_total FROM runs"
    ).fetchall()
    identity = (HAND_RUN, "hand", True, "2026-01-02 03:04:05", "toy", 3, "pairs/toy", 8, 6)
    assert row == [(*identity, 0.125, 0.25, 0.0, None, False, 2, 3, 3, 9, 7, 7, 5.0)]


def test_empty_lake_has_typed_views(tmp_path: Path) -> None:
    with connect(Lake.create(tmp_path)) as connection:
        for view in (*TABLES, "runs", *sql_files("views")):
            assert _one(connection, f"SELECT count(*) FROM {view}") == 0
        described = {r[0]: r[1] for r in connection.execute("DESCRIBE runs").fetchall()}
        assert described["tokens"] == "BIGINT"
        assert described["complete"] == "BOOLEAN"


def test_run_in_progress_shows_finished_blocks_only(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path, complete=False)
    with BlockWriter(lake, HAND_RUN, "0000-000009", CONFIG) as unfinished:
        unfinished.write("tokens", tables_of(HAND[:1])["tokens"])
        with connect(lake) as connection:
            assert _one(connection, "SELECT count(*) FROM tokens") == 3
            assert connection.execute("SELECT complete, tokens, n_in_latents, fvu_out FROM runs").fetchall() == [
                (False, 3, 8, 0.25)
            ]
            # pair_stats of the blocks so far, with no mart
            assert _one(connection, "SELECT sum(n_stored) FROM pair_stats") == 7
    # A part without a marker is not part of the lake, whatever its name.
    stray = lake.part_path("tokens", HAND_RUN, "0000-000777")
    stray.write_bytes(lake.part_path("tokens", HAND_RUN, "0000-000000").read_bytes())
    with connect(lake) as connection:
        assert _one(connection, "SELECT count(*) FROM tokens") == 3


def test_runs_are_told_apart_and_chosen(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    write_blocks(lake, OTHER, [tables_of(HAND[:1])], config_of(name="other"))
    with connect(lake) as connection:
        counts = connection.execute("SELECT run_id, count(*) FROM tokens GROUP BY run_id ORDER BY run_id").fetchall()
        assert counts == [(HAND_RUN, 3), (OTHER, 1)]
        sums = connection.execute("SELECT run_id, sum(n_stored) FROM pair_stats GROUP BY run_id ORDER BY 1").fetchall()
        assert sums == [(HAND_RUN, 7), (OTHER, 4)]
    with connect(lake, [OTHER]) as connection:
        assert connection.execute("SELECT DISTINCT run_id FROM tokens").fetchall() == [(OTHER,)]
    with pytest.raises(QueryError, match=r"no run nobody.*hand-"):
        connect(lake, ["nobody"])


def test_missing_or_short_part_is_named(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path)
    part = lake.part_path("latents", HAND_RUN, "0000-000001")
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(LakeError, match=r"part-0000-000001\.parquet: [0-9]+ bytes"):
        connect(lake)
    part.unlink()
    with pytest.raises(LakeError, match=r"part-0000-000001\.parquet: missing"):
        connect(lake)
    part.write_bytes(content)
    connect(lake).close()


def test_drifted_part_is_refused(tmp_path: Path) -> None:
    """DuckDB alone would cast the float64 values to the first part's float32 without a word."""
    lake = hand_lake(tmp_path)
    part = lake.part_path("jacobian_entries", HAND_RUN, "0000-000001")
    table = pq.read_table(part, partitioning=None)
    place = table.schema.get_field_index("value")
    drifted = table.set_column(place, "value", table.column("value").cast("float64"))
    pq.write_table(drifted.replace_schema_metadata(table.schema.metadata), part)
    manifest = lake.manifest_path(HAND_RUN)
    content = json.loads(manifest.read_text())
    record = content["blocks"][1]["parts"]["jacobian_entries"]
    record["bytes"], record["sha256"] = part.stat().st_size, sha256_of(part)
    manifest.write_text(json.dumps(content))
    both = [str(p) for p in sorted(part.parent.glob("part-*"))]
    assert duckdb.sql(f"SELECT DISTINCT typeof(value) FROM read_parquet({both})").fetchall() == [("FLOAT",)]
    with pytest.raises(LakeError, match="value is double"):
        connect(lake)


@pytest.mark.parametrize("name", ["value=3", "run_id=x"])
def test_root_that_duckdb_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    lake = Lake.create(tmp_path / name / "lake")
    with pytest.raises(LakeError, match=name):
        connect(lake)


def test_root_with_hostile_name_is_read(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path / "it's; DROP [*]=1" / "lake")
    with connect(lake) as connection:
        assert _one(connection, "SELECT count(*) FROM tokens") == 3


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{root}/tokens/x.csv'",
        "COPY (SELECT 1) TO '{tmp}/x.csv'",
        "ATTACH '{tmp}/x.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '1TB'",
        "SET enable_external_access = true",
        "SELECT content FROM read_text('/etc/hostname')",
        "SELECT content FROM read_text('{root}/lake.json')",
        "EXPORT DATABASE '{tmp}/x'",
        "SELECT a FROM some_frame",
    ],
)
def test_locked_connection_reaches_nothing_else(
    hand: Lake, hand_connection: duckdb.DuckDBPyConnection, tmp_path: Path, statement: str
) -> None:
    some_frame = __import__("pyarrow").table({"a": [1]})
    assert some_frame.num_rows == 1
    with pytest.raises(duckdb.Error):
        hand_connection.execute(statement.format(root=hand.root, tmp=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_unlocked_connection_writes_where_it_is_told(hand: Lake, tmp_path: Path) -> None:
    """The sibling of the test above: it is the lock that refuses."""
    with connect(hand, read_only=False) as connection:
        connection.execute(f"COPY (SELECT 1 AS a) TO '{tmp_path}/x.csv'")
    assert (tmp_path / "x.csv").read_text() == "a\n1\n"


def test_spills_under_the_lock(hand: Lake, tmp_path: Path) -> None:
    with connect(hand, memory="60MB", threads=1, temporary_folder=tmp_path / "spill") as connection:
        ordered = (
            "SELECT i FROM (SELECT (hash(r) % 1000003)::BIGINT AS i FROM range(4000000) AS t (r)) ORDER BY i, i + 1"
        )
        assert _one(connection, f"SELECT count(*) FROM ({ordered} LIMIT 3999999)") == 3_999_999


def test_the_limit_that_nobody_set(hand: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a small machine, 4 GB of a large one; DuckDB takes what it is given."""
    for pages, limit in ((2_000_000, "2048000000B"), (2**30, "4000000000B")):
        asked = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
        monkeypatch.setattr("jacobian_core.sql.warehouse.os.sysconf", asked.__getitem__)
        assert memory_limit("auto") == limit
    assert memory_limit("3GB") == "3GB"
    with connect(hand) as connection:
        assert _one(connection, "SELECT current_setting('memory_limit')") == "3.7 GiB"


def test_bad_memory_limit(hand: Lake) -> None:
    with pytest.raises(QueryError, match="lots"):
        connect(hand, memory="lots")


def test_warehouse_opens_in_any_client(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path / "lake")
    path = build_warehouse(lake)
    assert path == lake.warehouse_path
    with duckdb.connect(str(path), read_only=True) as client:
        assert _one(client, "SELECT count(*) FROM entries") == 7
        assert _one(client, "SELECT text_after FROM token_context WHERE text = 'a'") == " b"
        assert _one(client, "SELECT max(l1) FROM token_sparsity('hand-000000000001', 10, [0.5])") == 2.75
        assert _one(client, "SELECT count(*) FROM duckdb_tables()") == 0  # no data: views and macros only
        assert "sum of J" in str(_one(client, "SELECT comment FROM duckdb_columns() WHERE column_name = 'sum'"))
        # Built again while a client has it open: the client keeps what it has, the next one sees the new file.
        write_blocks(lake, OTHER, [tables_of(HAND[:1])], config_of(name="other"))
        build_warehouse(lake)
        assert _one(client, "SELECT count(*) FROM runs") == 1
    with duckdb.connect(str(path), read_only=True) as client:
        assert _one(client, "SELECT count(*) FROM runs") == 2
    assert [p.name for p in lake.root.iterdir() if p.name.startswith(".tmp-")] == []


def test_failed_build_leaves_the_old_warehouse(tmp_path: Path) -> None:
    lake = hand_lake(tmp_path / "lake")
    before = build_warehouse(lake).read_bytes()
    lake.part_path("tokens", HAND_RUN, "0000-000000").unlink()
    with pytest.raises(JacobianFlowsError):
        build_warehouse(lake)
    assert lake.warehouse_path.read_bytes() == before
    assert [p.name for p in lake.root.iterdir() if p.name.startswith(".tmp-")] == []
