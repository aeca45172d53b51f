"""A wall clock that jumps by hours and years, in both directions, while a run goes on and between its attempts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.faults import jumping_clock
from tests.faults.table import Harness, Tried

Note = Callable[[Tried], None]
_YEAR = 365 * 86400.0


def jumps(harness: Harness, place: Path, seed: int) -> Tried:
    """Killed under a jumping clock, its files dated anywhere in ten years, and started again under another."""
    draw = random.Random(f"clock {seed}")
    stage = draw.choice(("compute", "write", "publish block", "publish run"))
    attempt = harness.start_until(place, stage, draw, fault=partial(jumping_clock, seed))
    attempt.kill()
    for path in place.rglob("*"):
        when = path.stat().st_mtime + draw.uniform(-5, 5) * _YEAR
        os.utime(path, (when, when))
    return harness.run_again(place, attempt.computing.value, "clock jumps", fault=partial(jumping_clock, seed + 1))


def test_a_clock_that_jumps(harness: Harness, tmp_path: Path, tried: Note) -> None:
    tried(jumps(harness, tmp_path, 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 108))
def test_a_clock_that_jumps_for_long(harness: Harness, tmp_path: Path, seed: int, tried: Note) -> None:
    tried(jumps(harness, tmp_path, seed))
