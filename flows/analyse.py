"""The analysis flow: the text, model and pair of an existing run, with other settings.

It is a run of its own: a finished run does not change. So it has the same idempotence, progress and reports as any run.
"""

from __future__ import annotations

from prefect import flow

from flows.run import jacobian_run
from jacobian_core.lake.paths import lake_path


@flow(name="jacobian-analyse", flow_run_name="{run_id}", persist_result=False)
def analyse(lake: str, run_id: str, settings: list[str]) -> str:
    """Run the request behind `run_id` again with changed settings; returns the new run's id.

    `settings` are `group.key=value` overrides. Raises the JacobianFlowsError of the step that failed.
    """
    from jacobian_core.request.analysis import analysis_config

    return str(jacobian_run(analysis_config(lake_path(lake), run_id, settings)))
