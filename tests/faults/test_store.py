"""The faults with the lake in an object store: nothing is locked there, and all is as in an undisturbed folder."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from tests.faults.child import Done
from tests.faults.faults import slow_blocks
from tests.faults.store import StoreHarness, in_this_process, prefix_of
from tests.faults.table import Harness, Tried, failure
from tests.stand_ins.s3_server import BUCKET, S3Server

Note = Callable[[Tried], None]
QUICK = (("publish block", 0),)
LONG = {"tokenise": 3, "compute": 3, "write": 4, "publish block": 8, "publish run": 8, "report": 2}


@pytest.fixture
def stored(harness: Harness, s3: S3Server) -> StoreHarness:
    """The harness of this session's miniature, its lakes in the store."""
    return StoreHarness(harness, s3)


@pytest.mark.parametrize(("stage", "seed"), QUICK)
def test_killed_anywhere_and_started_again(
    stored: StoreHarness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    place, attempt = stored.kill_in(tmp_path, stage, random.Random(f"{stage} {seed}"))
    tried(stored.run_again(place, attempt.computing.value, f"SIGKILL in {stage}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "seed"), [(stage, seed) for stage, n in LONG.items() for seed in range(100, 100 + n)]
)
def test_killed_for_long(stored: StoreHarness, tmp_path: Path, stage: str, seed: int, tried: Note) -> None:
    test_killed_anywhere_and_started_again(stored, tmp_path, stage, seed, tried)


@pytest.mark.slow
def test_killed_while_groups_are_summed(all_inputs_harness: Harness, s3: S3Server, tmp_path: Path, tried: Note) -> None:
    test_killed_anywhere_and_started_again(StoreHarness(all_inputs_harness, s3), tmp_path, "accumulate", 0, tried)


def test_two_workers_on_the_same_blocks(stored: StoreHarness, tmp_path: Path, tried: Note) -> None:
    both = [stored.runs.start(stored.config, tmp_path) for _ in range(2)]
    for worker in both:
        said = worker.end()
        assert isinstance(said, Done), said
    computed = sum(worker.computing.value for worker in both)
    assert computed > stored.blocks  # they did meet
    tried(stored.check(tmp_path, computed - stored.blocks, "two workers on the same blocks"))


def sleeps_and_wakes(stored: StoreHarness, place: Path, stage: str, seed: int) -> Tried:
    """A worker stops at a random moment of a stage, another does the run, as no lock holds it back, the first wakes."""
    sleeper = stored.start_until(place, stage, random.Random(f"asleep in {stage} {seed}"))
    sleeper.pause()
    other, more = stored.runs.run(stored.config, place)
    assert isinstance(other, Done), other
    before = stored.server.objects(f"{prefix_of(place)}/")
    sleeper.resume()
    woken = sleeper.end()
    assert isinstance(woken, Done), woken
    after = stored.server.objects(f"{prefix_of(place)}/")
    changing = ("warehouse.duckdb", "reports/")  # written again, with other bytes and the same rows
    assert [n for n in {*before, *after} if before.get(n) != after.get(n) and not n.startswith(changing)] == []
    return stored.check(place, sleeper.computing.value + more - stored.blocks, f"worker paused in {stage}")


@pytest.mark.parametrize("stage", ["publish block"])
def test_a_worker_that_wakes_when_another_has_done_its_work(
    stored: StoreHarness, tmp_path: Path, stage: str, tried: Note
) -> None:
    tried(sleeps_and_wakes(stored, tmp_path, stage, 0))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenise", "compute", "write", "publish block", "publish run"])
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_worker_that_wakes_for_long(stored: StoreHarness, tmp_path: Path, stage: str, seed: int, tried: Note) -> None:
    tried(sleeps_and_wakes(stored, tmp_path, stage, seed))


def test_the_store_is_away_for_a_while(stored: StoreHarness, tmp_path: Path, tried: Note) -> None:
    """The run ends in one line, and the same request goes on when the store is back."""
    attempt = stored.runs.start(stored.config, tmp_path, fault=partial(slow_blocks, 0.5))
    done = Lake(stored.runs.lake_of(tmp_path))
    with in_this_process(stored.server, tmp_path / "own-cache"):
        while not done.done_blocks(stored.run_id):
            assert attempt.process.is_alive()
            time.sleep(0.02)
    stored.server.tell("down")
    try:
        said = failure(attempt.end())
    finally:
        stored.server.tell("up")
    assert said.kind == "LakeError"
    assert said.message.startswith(f"s3://{BUCKET}/{prefix_of(tmp_path)}/")
    assert "the store does not answer" in said.message
    assert "\n" not in said.message
    tried(stored.run_again(tmp_path, attempt.computing.value, "store away in mid-run"))


@pytest.mark.parametrize("damage", ["truncated", pytest.param("bit flipped", marks=pytest.mark.slow)])
def test_a_damaged_object(stored: StoreHarness, tmp_path: Path, damage: str, tried: Note) -> None:
    """`verify` finds it; the run makes its block again, under the same name."""
    said, computed = stored.runs.run(stored.config, tmp_path)
    assert isinstance(said, Done), said
    client, prefix = stored.server.client(), f"{prefix_of(tmp_path)}/"
    name = sorted(n for n in stored.server.objects(prefix) if n.startswith("jacobian_entries/"))[1]
    content = bytearray(stored.server.objects(prefix)[name])
    content[len(content) // 2] ^= 4
    body = bytes(content) if damage == "bit flipped" else bytes(content[:-7])
    client.put_object(Bucket=BUCKET, Key=prefix + name, Body=body)
    with in_this_process(stored.server, tmp_path / "own-cache"):
        found = [f for f in verify_lake(Lake.open(stored.runs.lake_of(tmp_path))) if f.severity == "error"]
    assert name in [finding.path for finding in found]
    if damage == "bit flipped":
        assert any("SHA-256" in finding.what and "Remove the file" in finding.remedy for finding in found)
        client.delete_object(Bucket=BUCKET, Key=prefix + name)
    said, more = stored.runs.run(stored.config, tmp_path)
    assert isinstance(said, Done), said
    assert (computed, more) == (stored.blocks, 1)
    tried(stored.check(tmp_path, more, f"object {damage}"))
