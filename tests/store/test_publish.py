"""Blocks and runs published without locks: killed anywhere, met by others, or late; nothing is half there or double."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake import publish, runs
from jacobian_core.lake import store as objects
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import BlockWriter
from jacobian_core.lake.runs import begin_run, publish_run
from jacobian_core.lake.verify import verify_lake
from tests.lake.builders import (
    CONFIG,
    IDENTITY,
    RUN,
    example_tables,
    manifest_of,
    snapshot,
    write_block,
    write_pair_stats,
    write_run,
)
from tests.stand_ins.s3_server import BUCKET, S3Server

ROOT = Path(__file__).parents[2]
BLOCK = "0000-000000"


def keys(lake: Lake, store: S3Server) -> dict[str, bytes]:
    """What is in the lake."""
    return store.objects(str(lake.root).removeprefix(f"s3://{BUCKET}/") + "/")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake in a folder."""
    root = tmp_path_factory.mktemp("undisturbed") / "lake"
    write_run(Lake.create(root))
    return root


def is_undisturbed(lake: Lake, store: S3Server, undisturbed: Path) -> None:
    found = keys(lake, store)
    assert found.keys() == snapshot(undisturbed).keys()
    assert all(content == (undisturbed / name).read_bytes() for name, content in found.items())
    assert verify_lake(lake) == []


def killed(store: S3Server, cache: Path, first: int, stride: int) -> list[Lake]:
    prefix = f"s3://{BUCKET}/killed-{first}-{stride}"
    command = [sys.executable, "-W", "ignore", "-m", "tests.store.crash_driver", prefix, str(first), str(stride)]
    env = {**os.environ, **store.environment, "JACOBIAN_FLOWS_CACHE": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return [Lake(f"{prefix}/{step}") for step in done.stdout.split()]


def all_is_well_after_kills(lakes: list[Lake], store: S3Server, undisturbed: Path, cache: Path) -> None:
    for lake in lakes:
        before = keys(lake, store)
        for run in lake.catalogue().values():
            assert len({len(parts) for table, parts in run.parts.items() if table != "pair_stats"}) <= 1
            for part in (part for parts in run.parts.values() for part in parts):
                assert before[part.path] == (undisturbed / part.path).read_bytes()
        write_run(Lake.create(lake.root))
        is_undisturbed(lake, store, undisturbed)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_killed_before_requests_and_started_again(store: S3Server, undisturbed: Path, tmp_path: Path) -> None:
    lakes = killed(store, tmp_path / "cache", 1, 6)
    assert len(lakes) >= 4  # 2 blocks of 6 parts and a marker, 4 records, a part, removals
    all_is_well_after_kills(lakes, store, undisturbed, tmp_path / "cache")


@pytest.mark.slow
def test_killed_before_every_request(store: S3Server, undisturbed: Path, tmp_path: Path) -> None:
    lakes = killed(store, tmp_path / "cache", 0, 1)
    assert len(lakes) >= 20
    all_is_well_after_kills(lakes, store, undisturbed, tmp_path / "cache")


def other_tables() -> dict[str, pa.Table]:
    """The block as another device would compute it: the last bits of a value differ."""
    tables = example_tables(0, 0)
    latents = tables["latents"]
    moved = pa.array([value.as_py() * 1.0000001 for value in latents.column("activation")], pa.float32())
    at = latents.column_names.index("activation")
    return {**tables, "latents": latents.set_column(at, latents.schema.field(at), moved)}


def write_other(lake: Lake) -> Any:
    with BlockWriter(lake, RUN, BLOCK, CONFIG) as block:
        for name, data in other_tables().items():
            block.write(name, data)
        return block.publish({})


def test_other_bytes_are_refused_and_change_nothing(lake: Lake, store: S3Server) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    before = keys(lake, store)
    with pytest.raises(LakeError, match="published already, with other latents"):
        write_other(lake)
    assert keys(lake, store) == before


def meanwhile(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Just before a block's parts are put, after every look at what is there, something else happens."""
    place = publish.place

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(publish, "place", place)
        do()
        return place(*arguments)

    monkeypatch.setattr(publish, "place", late)


def test_two_workers_put_the_same_block_at_once(lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    meanwhile(monkeypatch, lambda: write_block(lake, 0))
    marker = write_block(lake, 0)
    assert lake.marker(RUN, BLOCK) == marker
    assert len([name for name in keys(lake, store) if name.endswith(".parquet")]) == len(marker.parts)
    assert verify_lake(lake) == []


@pytest.mark.parametrize("mode", ["normal", "ignores conditions", "refuses conditions"])
def test_two_workers_put_other_bytes_at_once(
    lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The first one's block stands as it is; the other is refused, and what it put is named by nobody."""
    begin_run(lake, RUN, IDENTITY, {})
    meanwhile(monkeypatch, lambda: write_block(lake, 0))
    with store.being(mode), pytest.raises(LakeError, match="published already, with other latents"):
        write_other(lake)
    assert verify_lake(lake) == []
    beside = [name for name in keys(lake, store) if name.startswith("latents/")]
    assert len(beside) == 2
    assert sum("-" in Path(name).stem.removeprefix(f"part-{BLOCK}") for name in beside) == 1


def test_what_a_killed_attempt_left_does_not_stand_in_the_way(lake: Lake, store: S3Server) -> None:
    """Parts with other bytes and no marker: the block's own are put beside them, and found there again."""
    begin_run(lake, RUN, IDENTITY, {})
    write_other(lake)
    objects.delete(lake.marker_path(RUN, BLOCK))  # type: ignore[arg-type]
    marker = write_block(lake, 0)
    assert marker.parts["latents"].path != f"latents/run_id={RUN}/part-{BLOCK}.parquet"
    assert marker.parts["tokens"].path == f"tokens/run_id={RUN}/part-{BLOCK}.parquet"
    assert write_block(lake, 0) == marker
    write_block(lake, 1)
    publish_run(lake, manifest_of(lake, write_pair_stats(lake)))
    findings = verify_lake(lake)
    assert [(finding.severity, finding.what) for finding in findings] == [
        ("warning", "not named by the run's manifest")
    ]


def test_a_worker_that_comes_after_the_end_changes_nothing(
    lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked when the run went on; when it puts its block, the run is finished and its markers are gone."""
    begin_run(lake, RUN, IDENTITY, {})
    after: list[dict[str, bytes]] = []

    def end_the_run() -> None:
        write_run(lake)
        after.append(keys(lake, store))

    meanwhile(monkeypatch, end_the_run)
    marker = write_block(lake, 0)
    assert marker.block_id == BLOCK
    assert keys(lake, store) == after[0]
    assert verify_lake(lake) == []


def test_two_workers_end_the_same_run(lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    for number in range(2):
        write_block(lake, number)
    manifest = manifest_of(lake, write_pair_stats(lake))
    check = runs._check_manifest

    def and_then_another(*arguments: Any) -> None:
        check(*arguments)
        monkeypatch.setattr(runs, "_check_manifest", check)
        publish_run(lake, manifest)

    monkeypatch.setattr(runs, "_check_manifest", and_then_another)
    publish_run(lake, manifest)
    assert lake.manifest(RUN) == manifest
    assert begin_run(lake, RUN, IDENTITY, {}) == "done"


def test_a_run_that_another_ended_otherwise_is_not_replaced(
    lake: Lake, store: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    manifest = manifest_of(lake, write_pair_stats(lake))
    theirs = manifest.model_copy(update={"parts": {}})
    check = runs._check_manifest

    def and_then_another(*arguments: Any) -> None:
        check(*arguments)
        monkeypatch.setattr(runs, "_check_manifest", check)
        publish_run(lake, theirs)

    monkeypatch.setattr(runs, "_check_manifest", and_then_another)
    with pytest.raises(LakeError, match="finished already, with other data"):
        publish_run(lake, manifest)
    assert lake.manifest(RUN) == theirs
