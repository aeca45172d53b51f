"""The report flow: what a run says, written into the lake and left in the UI, again whenever it is asked for."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.results import choose_run, publish_reports


@flow(name="jacobian-report", flow_run_name="report {run_id}", persist_result=False)
def report(lake: str, run_id: str | None = None) -> list[str]:
    """Write the reports of a run (its id or the beginning of it; without one, the newest) and return their files.

    Raises LakeError where there is no such run and QueryError where a report can't be made.
    """
    return publish_reports(Path(lake), choose_run(Path(lake), run_id))
