"""A whole run without Prefect, and marks that say in which of its stages it is: seen from outside, live."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from jacobian_core.config import RunConfig

STAGES = ("fetch", "tokenise", "compute", "accumulate", "write", "publish block", "publish run", "report", "merge")
"""What a run does, as far as faults tell it apart; `write` and `publish` lie inside of others."""
_BATCH_BLOCKS = 3

_WHERE = (
    ("jacobian_core.pipeline.fetch_artifact", "fetch"),
    ("jacobian_core.pipeline.stage_blocks", "tokenise"),
    ("jacobian_core.work.worker.compute_and_publish", "compute"),
    ("jacobian_core.work.groups.accumulate_group", "accumulate"),
    ("jacobian_core.pairs.merging.merge_group", "merge"),
    ("jacobian_core.lake.publish.BlockWriter.write", "write"),
    ("jacobian_core.lake.publish.BlockWriter.publish", "write"),
    ("jacobian_core.lake.publish.publish_block", "publish block"),
    ("jacobian_core.pipeline.publish_run", "publish run"),
    ("flows.results.run_reports", "report"),
    ("flows.results.write_reports", "report"),
)


@dataclass(frozen=True)
class Done:
    """What a run that came to its end says of itself."""

    run_id: str
    state: str
    entered: list[tuple[str, float]] = field(default_factory=list)
    """Each entry into a stage in order, with the seconds until it ended or another began inside of it."""


@dataclass
class Marks:
    """Where the run is: `now` holds the stage's index (-1: in none), `computing` counts begun computations of blocks.

    Both are shared memory. `at_entry` is called when the stage `trap[0]` is entered for the `trap[1]`-th time (from 0).
    """

    now: Any
    computing: Any
    trap: tuple[str, int] | None = None
    at_entry: Callable[[], None] = lambda: None
    entered: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._times: Counter[str] = Counter()
        self._open: tuple[int, float] | None = None

    def around(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, marked as a stage."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self._inside(stage):
                if function.__name__ == "compute_and_publish":
                    self.computing.value += 1
                return function(*arguments, **options)

        return call

    @contextmanager
    def _inside(self, stage: str) -> Iterator[None]:
        before, self.now.value = self.now.value, STAGES.index(stage)
        self._close()
        self._open = (len(self.entered), time.perf_counter())
        self.entered.append((stage, 0.0))
        if self.trap == (stage, self._times[stage]):
            self.at_entry()
        self._times[stage] += 1
        try:
            yield
        finally:
            self._close()
            self.now.value = before

    def _close(self) -> None:
        """The stage that is open ends, or another begins inside of it: its seconds are those till now."""
        if self._open is not None:
            place, began = self._open
            self.entered[place] = (self.entered[place][0], time.perf_counter() - began)
            self._open = None


@contextmanager
def marked(marks: Marks) -> Iterator[None]:
    """Runs inside this context keep the marks up to date."""
    with ExitStack() as stack:
        for path, stage in _WHERE:
            owner, _, name = path.rpartition(".")
            original = resolve_name(path)
            stack.enter_context(patch.object(resolve_name(owner), name, marks.around(original, stage)))
        yield


def whole_run(config: RunConfig) -> Done:
    """Every step of the main flow, in its order, in this thread, up to the written reports."""
    from flows import results
    from jacobian_core import pipeline
    from jacobian_core.lake.paths import lake_path

    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    if run.state != "done":
        pipeline.check_quality(run)
        skipped = _compute_all(run)
        for group in pipeline.open_groups(run):
            pipeline.accumulate_group(run, group)
        pipeline.publish_run(run, skipped)
    lake = lake_path(run.lake)
    offered = results.reports_of(lake, run.run_id)
    names = [name for name in results.RUN_REPORTS if name in offered]
    results.write_reports(lake, run.run_id, results.run_reports(lake, run.run_id, names))
    return Done(run.run_id, run.state)


def _compute_all(run: Any) -> dict[str, int]:
    from jacobian_core import pipeline

    skipped: Counter[str] = Counter()
    for shard in run.shards:
        cursor, more = None, True
        while more:
            batch = pipeline.stage_blocks(run, shard, cursor, None, _BATCH_BLOCKS)
            skipped.update(batch.skipped)
            for block in batch.blocks:
                fresh = pipeline.compute_block(run, block.block_id).fresh
                if fresh and run.config.jacobian.keep == "aggregates":
                    pipeline.gather_pairs(run, block.block_id)
            cursor = batch.next_cursor
            more = cursor is not None
    return dict(skipped)


def flow_run(config: RunConfig) -> Done:
    """The main flow, on the Prefect server that the environment names."""
    from flows.run import jacobian_run

    return Done(str(jacobian_run(config)), "flow")
