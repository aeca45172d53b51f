"""`warehouse.duckdb` of a lake in a store: for any DuckDB with httpfs and credentials of its own, and without ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jacobian_core.lake import store as objects
from jacobian_core.lake.layout import Lake
from jacobian_core.sql import store_access, warehouse_file
from jacobian_core.sql.warehouse_file import build_warehouse
from tests.lake.builders import RUN, write_run
from tests.stand_ins.s3_server import BUCKET, S3Server
from tests.store.conftest import Both


def client(store: S3Server) -> duckdb.DuckDBPyConnection:
    """What somebody else does who has DuckDB, httpfs and a key."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": False})
    connection.execute(f"LOAD '{store_access.httpfs_path()}'")
    connection.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y', ENDPOINT '{store.url.removeprefix('http://')}', "
        "USE_SSL false, URL_STYLE 'path')"
    )
    return connection


def test_another_client_attaches_it_where_it_lies(both: Both, store: S3Server) -> None:
    with client(store) as connection:
        connection.execute(f"ATTACH '{both.stored}/warehouse.duckdb' AS lake (READ_ONLY)")
        connection.execute("USE lake")
        assert connection.execute("SELECT run_id, complete FROM runs").fetchall() == [(both.run_id, True)]
        found = connection.execute("SELECT count(*), sum(value) FROM entries").fetchall()
    with duckdb.connect(str(both.local / "warehouse.duckdb"), read_only=True) as connection:
        assert found == connection.execute("SELECT count(*), sum(value) FROM entries").fetchall()


def test_it_holds_no_credentials(both: Both, store: S3Server, tmp_path: Path) -> None:
    content = store.objects(both.prefix)["warehouse.duckdb"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert store.environment[name].removeprefix("http://").encode() not in content
    assert f"{both.stored}/tokens/run_id={both.run_id}".encode() in content


def test_of_two_builders_the_last_knows_every_run(lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks at the runs, another publishes a second run and its warehouse, then the first puts its own."""
    write_run(lake)
    second = "demo-ffffffffffff"
    check_parts = warehouse_file.check_parts
    looked: list[int] = []

    def meanwhile(*arguments: Any) -> None:
        check_parts(*arguments)
        looked.append(len(arguments[1]))
        if len(looked) == 1:
            write_run(lake, run_id=second)
            build_warehouse(lake)

    monkeypatch.setattr(warehouse_file, "check_parts", meanwhile)
    build_warehouse(lake)
    assert looked == [1, 2, 2]
    with client(store) as connection:
        connection.execute(f"ATTACH '{lake.warehouse_path}' AS lake (READ_ONLY)")
        assert connection.execute("SELECT run_id FROM lake.runs ORDER BY ALL").fetchall() == [(RUN,), (second,)]


def test_without_httpfs_there_is_none_and_a_word_about_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_access, "httpfs_path", lambda: None)
    write_run(lake)
    with caplog.at_level(logging.WARNING):
        build_warehouse(lake)
    assert objects.head(lake.warehouse_path) is None  # type: ignore[arg-type]
    assert "httpfs" in caplog.text
    assert str(lake.root).startswith(f"s3://{BUCKET}/")
