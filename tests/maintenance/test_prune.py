"""Pruning: what is asked for goes, at once from the catalogue and later from the disk; everything else stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import to_json
from jacobian_core.lake.retention import prune, sweep_lake
from jacobian_core.lake.runs import begin_run
from jacobian_core.lake.verify import verify_lake
from jacobian_core.sql.warehouse import connect
from jacobian_core.sql.warehouse_file import build_warehouse
from tests.lake.builders import IDENTITY, snapshot, write_block, write_run
from tests.maintenance.rows import parts_named, parts_on_disk, rows_of

RUNS = [f"{name}-{number:012x}" for number in range(3) for name in ("demo", "demo-control")]
GOING = "demo-0000000000ff"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Three finished runs of each of two names, an hour apart, and one in progress."""
    made = Lake.create(tmp_path / "lake")
    for number, run_id in enumerate(RUNS):
        manifest = write_run(made, 1, run_id)
        created = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        made.manifest_path(run_id).write_bytes(to_json(manifest.model_copy(update={"created_utc": created})))
    begin_run(made, GOING, IDENTITY, {})
    write_block(made, 0, GOING)
    build_warehouse(made)
    return made


def without_locks(lake: Lake) -> dict[str, str]:
    return {name: digest for name, digest in snapshot(lake.root).items() if not name.endswith(".lock")}


def test_a_dry_run_touches_nothing(lake: Lake) -> None:
    before = without_locks(lake)
    found = prune(lake, keep=1)
    assert found.runs == tuple(sorted(RUNS[:4]))
    assert found.bytes > 0
    assert without_locks(lake) == before


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (1, RUNS[4:]), (2, RUNS[2:]), (9, RUNS)])
def test_the_newest_of_each_name_stay(lake: Lake, keep: int, kept: list[str]) -> None:
    done = prune(lake, keep=keep, dry_run=False)
    assert done.kept == tuple(sorted(kept))
    assert lake.runs() == sorted([*kept, GOING])


def test_a_pruned_run_is_gone_for_readers_at_once_and_from_the_disk_later(lake: Lake) -> None:
    with connect(lake) as reader:
        before = rows_of(reader)
        prune(lake, runs=[RUNS[0]], dry_run=False)
        assert rows_of(reader) == before  # who has the list may still read
    with connect(lake) as reader:
        assert {row[-1] for row in rows_of(reader)["tokens"]} == {*RUNS[1:], GOING}
    assert sweep_lake(lake).removed == 0
    assert sweep_lake(lake, grace_seconds=0).removed > 0
    assert parts_on_disk(lake) == parts_named(lake)
    assert verify_lake(lake) == []
    assert sweep_lake(lake, grace_seconds=0).removed == 0


def test_a_pruned_run_that_is_started_again_keeps_its_files(lake: Lake) -> None:
    prune(lake, runs=[RUNS[0]], dry_run=False)
    write_run(lake, 1, RUNS[0])
    sweep_lake(lake, grace_seconds=0)
    assert verify_lake(lake) == []
    assert RUNS[0] in lake.runs()
    assert not list((lake.root / "runs").glob(".removed-*"))


@pytest.mark.parametrize("named", [GOING, "demo-00000000abcd"])
def test_only_finished_runs_are_pruned_and_else_none(lake: Lake, named: str) -> None:
    with pytest.raises(LakeError, match="no finished run"):
        prune(lake, runs=[RUNS[0], named], dry_run=False)
    assert RUNS[0] in lake.runs()
