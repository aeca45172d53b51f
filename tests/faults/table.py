"""What a fault cost: every trial is compared with the undisturbed lake, and the trials make a table."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacobian_core.config import RunConfig
from jacobian_core.lake.layout import Lake
from tests.faults.attempts import Attempt, Runs
from tests.faults.child import Done, Failed
from tests.faults.compare import difference, leftovers, visible_problems

TABLE_FILE = "JACOBIAN_FAULT_TABLE"
"""Environment variable: a file to write the table into, as markdown."""
_LATE_KILLS = 8


@dataclass(frozen=True)
class Tried:
    """One line of the table, or a part of one: lines of the same fault are added up."""

    fault: str
    times: int
    recomputed: int
    lost: int
    doubled: int

    def as_json(self) -> str:
        """For pytest's report."""
        return json.dumps(asdict(self))


class Harness:
    """Starts runs of one configuration and holds them against the undisturbed lake."""

    def __init__(self, runs: Runs, config: RunConfig, folder: Path) -> None:
        self.runs, self.config, self.place = runs, config, folder
        said, self.computed = runs.run(config, folder)
        assert isinstance(said, Done), said
        assert said.state == "new"
        self.run_id = said.run_id
        self.entered = said.entered
        """Each entry into a stage of an undisturbed run, with the seconds until another began."""
        self.blocks = len(Lake.open(self.lake).markers(self.run_id))
        assert self.computed == self.blocks >= 4

    @property
    def lake(self) -> Path:
        """The undisturbed lake."""
        return self.place / "lake"

    def moment(self, stage: str, draw: random.Random) -> tuple[tuple[str, int], float]:
        """A random moment of a stage: which entry into it, and how many seconds after that."""
        lengths = [seconds for name, seconds in self.entered if name == stage]
        entry = draw.choices(range(len(lengths)), weights=lengths)[0]
        return (stage, entry), draw.uniform(0, lengths[entry])

    def configured(self, config: RunConfig) -> Harness:
        """The same undisturbed lake, for a configuration that should give it too."""
        other = copy.copy(self)
        other.config = config
        return other

    def start_until(self, place: Path, stage: str, draw: random.Random, early: float = 1.0, **options: Any) -> Attempt:
        """Start a run and come back at a random moment of the stage, or in the first `early` part of it."""
        trap, seconds = self.moment(stage, draw)
        attempt = self.runs.start(self.config, place, trap=trap, **options)
        assert attempt.wait_for_trap()
        time.sleep(seconds * early)
        return attempt

    def kill_in(self, folder: Path, stage: str, draw: random.Random) -> tuple[Path, Attempt]:
        """Kill a run at a random moment of a stage; returns its place. On a busy machine the kill may come too late:
        then another run is killed, earlier.
        """
        for number in range(_LATE_KILLS):
            place = folder / str(number)
            attempt = self.start_until(place, stage, draw, early=0.5**number)
            if attempt.kill() == stage:
                return place, attempt
        raise AssertionError(f"{_LATE_KILLS} kills came too late for {stage}")

    def run_again(self, place: Path, computed: int, name: str, **options: Any) -> Tried:
        """Start the same request again and compare; `computed` blocks were begun before."""
        seen = visible_problems(place / "lake", self.lake)
        assert seen == []
        said, more = self.runs.run(self.config, place, **options)
        assert isinstance(said, Done), said
        return self.check(place, computed + more - self.blocks, name)

    def check(self, place: Path, recomputed: int, fault: str) -> Tried:
        """Compare a place with the undisturbed one; `recomputed` blocks were computed more than once."""
        found = difference(place / "lake", self.lake)
        tried = Tried(fault, 1, recomputed, found.rows_lost, found.rows_doubled)
        assert not found.problems, f"{tried}: {found.problems}"
        assert leftovers(place) == []
        return tried


def failure(said: Done | Failed) -> Failed:
    """The failure that the run must have ended with."""
    assert isinstance(said, Failed), said
    assert "unexpected" not in said.kind, said.message
    return said


def summary(lines: Sequence[Tried]) -> str:
    """The lines as a markdown table, faults in the order of their first trial, and their sum."""
    faults = list(dict.fromkeys(line.fault for line in lines))
    rows = [_added(fault, [line for line in lines if line.fault == fault]) for fault in faults]
    head = ["fault", "times tried", "blocks recomputed", "rows lost", "rows doubled"]
    cells = [head, *(_cells(row) for row in rows), _cells(_added("all", lines))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in cells
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [aligned[0], rule, *aligned[1:]])


def _added(fault: str, lines: Sequence[Tried]) -> Tried:
    sums = [sum(getattr(line, name) for line in lines) for name in ("times", "recomputed", "lost", "doubled")]
    return Tried(fault, *sums)


def _cells(line: Tried) -> list[str]:
    return [line.fault, str(line.times), str(line.recomputed), str(line.lost), str(line.doubled)]
