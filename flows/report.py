"""The report flow: what a run says, written into the lake and left in the UI, again whenever it is asked for."""

from __future__ import annotations

from prefect import flow

from flows.results import choose_run, publish_reports
from jacobian_core.lake.paths import lake_path


@flow(name="jacobian-report", flow_run_name="report {run_id}", persist_result=False)
def report(lake: str, run_id: str | None = None) -> list[str]:
    """Write the reports of a run (its id or the beginning of it; without one, the newest) and return their files.

    Raises LakeError where there is no such run and QueryError where a report can't be made.
    """
    place = lake_path(lake)
    return publish_reports(place, choose_run(place, run_id))
