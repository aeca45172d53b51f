"""Warns while a run goes on: each finished block against those before it, in the log, in the UI and as an event.

The event `jacobian-flows.drift` is what an automation can act on; the page lists every finding of the run so far.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from prefect.exceptions import PrefectException

from flows import ui
from flows.progress import Meter
from jacobian_core.artifact.redact import redact
from jacobian_core.lake.paths import LakePath, lake_path

if TYPE_CHECKING:
    from jacobian_core.request.drift import Drift, DriftWatch
    from jacobian_core.step_values import RunRef

log = logging.getLogger(__name__)

EVENT = "jacobian-flows.drift"
WARNINGS = 20
"""Findings of one run after which no more are told; the manifest counts them all."""


class BlockWatch:
    """Looks at a run's blocks as they are finished; what it says stops nothing."""

    def __init__(self, run: RunRef, meter: Meter) -> None:
        self._run, self._meter = run, meter
        self._watch: DriftWatch | None = None
        self._found: list[Drift] = []

    def add(self, block_id: str) -> None:
        """Read the block's marker and compare it with those of the blocks before."""
        from jacobian_core.lake.layout import Lake
        from jacobian_core.request.drift import DriftWatch

        marker = Lake(self._run.lake).marker(self._run.run_id, block_id)
        if marker is None:
            return  # another worker has published the run meanwhile
        if self._watch is None:
            self._watch = DriftWatch(self._run.config.quality)
        found = self._watch.add(marker)
        if found and len(self._found) < WARNINGS:  # a lasting change is said, not repeated for ever
            self._found += found
            for drift in found:
                self._meter.note(f"warning: {drift.line()}")
            with _tried():
                leave_warnings(self._run.run_id, self._found)


def leave_warnings(run_id: str, found: list[Drift]) -> None:
    """Leave the findings in the UI, and an event for the last of them."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.events import emit_event

    rows: list[dict[str, Any]] = [drift.record() for drift in found]
    page = f"# Unusual figures of {run_id}\n\n{ui.markdown_table(rows)}"
    create_markdown_artifact(page, key=ui.artifact_key(f"drift {run_id}"), description=f"Drift in {run_id}")
    resource = {"prefect.resource.id": f"jacobian-flows.run.{run_id}", "prefect.resource.name": run_id}
    emit_event(event=EVENT, resource=resource, payload=rows[-1] | {"found": len(rows)})


def leave_recorded(run: RunRef) -> None:
    """Leave in the UI what the gate has found: blocks against the whole run, the run against earlier ones."""
    found = recorded_drift(lake_path(run.lake), run.run_id)
    if found:
        with _tried():
            leave_warnings(run.run_id, found)


@contextmanager
def _tried() -> Iterator[None]:
    """A server that is away must not stop a run for a warning."""
    try:
        yield
    except (OSError, RuntimeError, httpx.HTTPError, PrefectException) as error:
        log.warning("drift could not be shown in the UI: %s", redact(str(error)))


def recorded_drift(lake: LakePath, run_id: str) -> list[Drift]:
    """The first of the findings in the manifest of a finished run."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.request.drift import Drift

    manifest = Lake(lake).manifest(run_id)
    kept: Any = manifest.quality.get("drift") if manifest is not None else None
    return [Drift(**each) for each in kept["first"]] if isinstance(kept, dict) else []
