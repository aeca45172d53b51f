"""The maintenance flow: merge the small parts of finished runs, and remove what nobody reads any more.

It may run beside everything else; a run that can't be compacted fails the flow at its end, after the others.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger

from flows import ui
from flows.maintenance import compact_lake, sweep
from jacobian_core.lake.paths import lake_path


@flow(name="jacobian-compact", flow_run_name="compact", persist_result=False)
def compact(lake: str = "lake", run_id: str | None = None, grace_seconds: float | None = None) -> Any:
    """Compact a run (without one, every finished run of the lake), then sweep what earlier ones left.

    Files that were merged stay for `grace_seconds` (default: an hour), since a reader may have listed them. Raises the
    LakeError of the first run that can't be compacted.
    """
    from prefect.states import Completed

    log = get_run_logger()
    done, failures = compact_lake(lake_path(lake), run_id)
    for failure in failures:
        log.error("%s", failure)
    if done:
        ui.leave_table(f"compaction of {lake_path(lake).name}", "compaction", [asdict(each) for each in done])
    if failures:
        raise failures[0]  # and nothing is swept: in a damaged lake, old files may be wanted
    swept = sweep(lake_path(lake), grace_seconds)
    merged = sum(each.done for each in done)
    text = (
        f"{merged} of {len(done)} runs merged; {swept.removed} old files removed, {swept.waiting} wait for their time"
    )
    log.info(text)
    return Completed(message=text, data=merged)
