"""SIGKILL at random moments of every stage: the same request again leaves the lake of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.table import Harness, Tried

Note = Callable[[Tried], None]
QUICK = {"fetch": 1, "tokenise": 1, "compute": 2, "write": 1, "publish block": 2, "publish run": 2, "report": 1}
LONG = {"fetch": 5, "tokenise": 5, "compute": 6, "write": 6, "publish block": 8, "publish run": 10, "report": 4}
QUICK_AGGREGATES = {"merge": 2, "publish block": 1, "publish run": 1}
LONG_AGGREGATES = {"merge": 12, "publish block": 6, "publish run": 6}
LONG_ALL_INPUTS = {"tokenise": 2, "accumulate": 6, "publish run": 4}


def kill_and_go_on(harness: Harness, folder: Path, stage: str, seed: int) -> Tried:
    """Kill a run at a random moment of a stage, start it again, and compare."""
    place, attempt = harness.kill_in(folder, stage, random.Random(f"{stage} {seed}"))
    return harness.run_again(place, attempt.computing.value, f"SIGKILL in {stage}")


def trials(counts: dict[str, int], first: int = 0) -> list[tuple[str, int]]:
    return [(stage, seed) for stage, count in counts.items() for seed in range(first, first + count)]


@pytest.mark.parametrize(("stage", "seed"), trials(QUICK))
def test_killed_anywhere_and_started_again(
    harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    tried(kill_and_go_on(harness, tmp_path, stage, seed))


def test_killed_while_groups_are_summed(all_inputs_harness: Harness, tmp_path: Path, tried: Note) -> None:
    tried(kill_and_go_on(all_inputs_harness, tmp_path, "accumulate", 0))


@pytest.mark.parametrize(("stage", "seed"), trials(QUICK_AGGREGATES))
def test_aggregates_killed_anywhere(
    aggregates_harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    tried(kill_and_go_on(aggregates_harness, tmp_path, stage, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "seed"), trials(LONG, first=100))
def test_killed_for_long(harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note) -> None:
    tried(kill_and_go_on(harness, tmp_path, stage, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "seed"), trials(LONG_ALL_INPUTS, first=100))
def test_groups_killed_for_long(
    all_inputs_harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    tried(kill_and_go_on(all_inputs_harness, tmp_path, stage, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "seed"), trials(LONG_AGGREGATES, first=100))
def test_aggregates_killed_for_long(
    aggregates_harness: Harness, tmp_path: Path, stage: str, seed: int, tried: Note
) -> None:
    tried(kill_and_go_on(aggregates_harness, tmp_path, stage, seed))
