"""The runs of a lake, one line each: what `jacobian runs` and `jacobian status` show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jacobian_core.lake.layout import Lake
from jacobian_core.sql.run_facts import run_snapshot


@dataclass(frozen=True)
class RunInfo:
    """One line of `jacobian runs`."""

    run_id: str
    state: Literal["complete", "in progress"]
    tokens: int
    entries_stored: int
    bytes: int
    blocks: int
    created_utc: str | None


def list_runs(lake: Lake) -> list[RunInfo]:
    """Every run of a lake, finished or in progress."""
    infos = []
    for run_id in lake.runs():
        run = run_snapshot(lake, run_id)
        if run is None:
            continue
        size = sum(part.bytes for parts in run.parts.values() for part in parts)
        created = getattr(run.record, "created_utc", None)
        infos.append(
            RunInfo(
                run_id=run_id,
                state="complete" if run.complete else "in progress",
                tokens=int(run.total("tokens")),
                entries_stored=int(run.total("entries_stored")),
                bytes=size,
                blocks=len(run.blocks),
                created_utc=created.isoformat(timespec="seconds") if created else None,
            )
        )
    return infos
