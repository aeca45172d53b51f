"""Compaction, pruning, export and verification of a lake in a store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flows.maintenance import compact_lake, prune_lake
from flows.status import read_status
from jacobian_core.errors import LakeError
from jacobian_core.lake import compact
from jacobian_core.lake.compact import compact_run
from jacobian_core.lake.export import export_run
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.retention import prune, sweep_lake
from jacobian_core.lake.runs import begin_run
from jacobian_core.lake.verify import verify_lake
from jacobian_core.sql.warehouse import connect
from tests.lake.builders import IDENTITY, RUN, snapshot, write_block, write_run
from tests.stand_ins.s3_server import BUCKET, S3Server
from tests.store.conftest import Both

SECOND = "demo-ffffffffffff"
QUERY = "SELECT count(*), count(DISTINCT token_id), sum(abs_sum_total) FROM tokens"


def keys(lake: Lake, store: S3Server) -> dict[str, bytes]:
    return store.objects(str(lake.root).removeprefix(f"s3://{BUCKET}/") + "/")


def rows(lake: Lake) -> list[Any]:
    with connect(lake) as connection:
        return connection.execute(QUERY).fetchall()


def test_compaction_keeps_every_row(lake: Lake, store: S3Server, tmp_path: Path) -> None:
    """The merged parts are those of a folder, to the byte; the old ones stay for their time, and then go."""
    folder = Lake.create(tmp_path / "lake")
    for each in (lake, folder):
        write_run(each, blocks=3)
    before = rows(lake)
    done = compact_run(lake, RUN)
    assert done == compact_run(folder, RUN)
    assert done.done
    assert done.parts_before == 3 * done.parts_after
    assert rows(lake) == before
    stored, local = keys(lake, store), snapshot(tmp_path / "lake")
    assert stored.keys() == {name for name in local if not name.endswith(".lock")}
    assert sweep_lake(lake, grace_seconds=3600).removed == 0
    swept = sweep_lake(lake, grace_seconds=-60)  # the store's clock may be behind ours
    assert swept.removed == done.parts_before
    assert rows(lake) == before
    assert verify_lake(lake) == []
    assert not compact_run(lake, RUN).done


def test_a_reader_sees_every_row_at_every_moment(lake: Lake, store: S3Server) -> None:
    write_run(lake, blocks=3)
    expected, seen, end = rows(lake), list[Any](), threading.Event()

    def read() -> None:
        while not end.is_set():
            seen.append(rows(lake))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        compact_run(lake, RUN)
    finally:
        end.set()
        reader.join()
    seen.append(rows(lake))
    assert len(seen) >= 2
    assert all(each == expected for each in seen)


def test_a_manifest_that_another_replaced_is_not_replaced_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two compactions with other sizes: the one that comes second changes nothing, and both leave a whole run."""
    write_run(lake, blocks=4)
    expected = rows(lake)
    replace = compact._replace

    def and_another(*arguments: Any) -> None:
        monkeypatch.setattr(compact, "_replace", replace)
        compact_run(lake, RUN, part_rows=6)
        replace(*arguments)

    monkeypatch.setattr(compact, "_replace", and_another)
    with pytest.raises(LakeError, match="was changed meanwhile"):
        compact_run(lake, RUN)
    assert rows(lake) == expected
    assert [finding for finding in verify_lake(lake) if finding.severity == "error"] == []


def test_pruning_and_its_grace(lake: Lake, store: S3Server) -> None:
    for run_id in (RUN, SECOND):
        write_run(lake, run_id=run_id)
    assert prune(lake, runs=[RUN]).runs == (RUN,)
    assert lake.runs() == [RUN, SECOND]
    assert prune_lake(lake.root, None, [RUN], really=True).runs == (RUN,)
    assert lake.runs() == [SECOND]
    assert any(RUN in name for name in keys(lake, store))
    waiting = sweep_lake(lake, grace_seconds=3600)
    assert (waiting.removed, waiting.waiting > 0) == (0, True)
    sweep_lake(lake, grace_seconds=-60)
    assert [name for name in keys(lake, store) if RUN in name] == []
    assert verify_lake(lake) == []


def test_a_run_that_was_pruned_and_began_again_stays(lake: Lake, store: S3Server) -> None:
    write_run(lake)
    prune(lake, runs=[RUN], dry_run=False)
    write_run(lake)
    sweep_lake(lake, grace_seconds=-60)
    assert verify_lake(lake) == []
    assert rows(lake)[0][0] == 6


def test_an_export_is_a_folder(both: Both, store: S3Server, tmp_path: Path) -> None:
    exported = export_run(Lake.open(both.stored), both.run_id, tmp_path / "out")
    local = export_run(Lake.open(both.local), both.run_id, tmp_path / "local")
    assert exported.files >= local.files
    for path in (tmp_path / "local").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "local")).read_bytes()
    assert verify_lake(Lake.open(tmp_path / "out")) == []
    with duckdb.connect(str(tmp_path / "out" / "warehouse.duckdb"), read_only=True) as connection:
        connection.execute(f"SET file_search_path = '{tmp_path / 'out'}'")
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]


def test_every_finished_run_is_compacted_and_the_warehouse_follows(lake: Lake, store: S3Server) -> None:
    write_run(lake)
    begin_run(lake, SECOND, IDENTITY, {})
    write_block(lake, 0, SECOND)
    done, failures = compact_lake(lake.root, None)
    assert [(each.run_id, each.done) for each in done] == [(RUN, True)]
    assert failures == []
    assert "warehouse.duckdb" in keys(lake, store)


def test_the_status_tells_of_a_run_in_progress(lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    begin_run(lake, RUN, IDENTITY, {"corpus": {"max_tokens": 7}})
    write_block(lake, 0)
    (line,) = read_status(lake.root).in_progress
    assert (line.run_id, line.tokens, line.tokens_wanted, line.blocks) == (RUN, 3, 7, 1)
    assert read_status(Lake(f"s3://{BUCKET}/nothing-there").root).in_progress == []
