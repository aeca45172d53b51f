"""Two workers on the same blocks, and one that sleeps while another does its work: the lake has each block once."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.child import Done, Failed
from tests.faults.faults import impatient
from tests.faults.table import Harness, Tried

Note = Callable[[Tried], None]


def test_two_workers_on_the_same_blocks(harness: Harness, tmp_path: Path, tried: Note) -> None:
    _two_workers(harness, tmp_path, tried)


def test_two_workers_that_merge_the_same_groups(aggregates_harness: Harness, tmp_path: Path, tried: Note) -> None:
    _two_workers(aggregates_harness, tmp_path, tried)


def _two_workers(harness: Harness, tmp_path: Path, tried: Note) -> None:
    both = [harness.runs.start(harness.config, tmp_path) for _ in range(2)]
    for worker in both:
        said = worker.end()
        assert isinstance(said, Done), said
    computed = sum(worker.computing.value for worker in both)
    assert computed > harness.blocks  # they did meet
    tried(harness.check(tmp_path, computed - harness.blocks, "two workers on the same blocks"))


def sleeps_and_wakes(harness: Harness, place: Path, stage: str, seed: int) -> Tried:
    """A worker stops at a random moment of a stage, another does the run, the first one wakes."""
    sleeper = harness.start_until(place, stage, random.Random(f"asleep in {stage} {seed}"))
    sleeper.pause()
    other, more = harness.runs.run(harness.config, place, fault=partial(impatient, 1.0))
    sleeper.resume()
    woken = sleeper.end()
    assert isinstance(woken, Done), woken
    if isinstance(other, Failed):  # it held the lock in its sleep
        assert "another process has held this lock" in other.message
        other, again = harness.runs.run(harness.config, place)
        more += again
    assert isinstance(other, Done), other
    recomputed = sleeper.computing.value + more - harness.blocks
    return harness.check(place, recomputed, f"worker paused in {stage}, wakes when all is done")


@pytest.mark.parametrize("stage", ["tokenise", "compute", "publish run"])
def test_a_worker_that_wakes_when_another_has_done_its_work(
    harness: Harness, tmp_path: Path, stage: str, tried: Note
) -> None:
    tried(sleeps_and_wakes(harness, tmp_path, stage, 0))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenise", "compute", "write", "publish block", "publish run"])
@pytest.mark.parametrize("seed", range(100, 105))
def test_a_worker_that_wakes_for_long(harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note) -> None:
    tried(sleeps_and_wakes(harness, tmp_path, stage, seed))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenise", "accumulate", "publish run"])
@pytest.mark.parametrize("seed", range(100, 103))
def test_a_summing_worker_that_wakes(
    all_inputs_harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    tried(sleeps_and_wakes(all_inputs_harness, tmp_path, stage, seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 104))
def test_two_workers_for_long(
    harness: Harness, all_inputs_harness: Harness, tmp_path: Path, seed: int, tried: Note
) -> None:
    test_two_workers_on_the_same_blocks((harness, all_inputs_harness)[seed % 2], tmp_path, tried)
