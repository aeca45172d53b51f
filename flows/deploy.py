"""Make a Prefect server ready for this project: pools, queues, the crash automation, and `deployments/prefect.yaml`.

Everything is created only where it is missing, so that limits and priorities that someone set in the UI stay; the
deployments themselves are replaced by what the file says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from jacobian_core.errors import ServerError
from jacobian_core.lake.paths import LakePath, absolute

POOLS = ("cpu", "gpu")
QUEUES = {"interactive": 1, "scheduled": 2}
"""Queues of every pool with their priorities: what someone waits for goes before what the clock asks for."""
SILENCE_SECONDS = 400
"""Seconds without a sign of life after which a flow run counts as crashed; Prefect's runs give one every 180 s."""
CRASH_AUTOMATION = "jacobian: mark killed runs as crashed"
CRASH_REMEDY = (
    "The lake is whole; start the same request again and it computes only what lacks (the ingest schedule does so by "
    "itself)."
)
CRASH_MESSAGE = f"No sign of life: the process or its machine is gone. {CRASH_REMEDY}"
_FILE = "deployments/prefect.yaml"
_SAID_CHARACTERS = 600


@dataclass(frozen=True)
class Targets:
    """What the deployments are about: the lake, the profile that is ingested, and the pool that computes."""

    lake: LakePath
    profile: str = "demo"
    pool: str = "cpu"

    def environment(self) -> dict[str, str]:
        """The variables of `deployments/prefect.yaml`."""
        return {
            "PROJECT_ROOT": str(flows_root()),
            "JACOBIAN_LAKE": str(absolute(self.lake)),
            "JACOBIAN_PROFILE": self.profile,
            "JACOBIAN_POOL": self.pool,
        }


def flows_root() -> Path:
    """The folder that the deployments' entry points are relative to: the checkout, or where the wheel is installed."""
    return Path(__file__).resolve().parent.parent


def deploy(targets: Targets) -> list[str]:
    """Prepare the configured server and apply the deployments; returns their names as `flow/deployment`.

    Raises ServerError with the end of Prefect's output where it refuses.
    """
    create_pools()
    create_crash_automation()
    apply_file(targets)
    return deployment_names()


def create_pools() -> None:
    """The work pools and their queues, where they are missing."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        for pool in POOLS:
            template = ProcessWorker.get_default_base_job_template()
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
            for queue, priority in QUEUES.items():
                try:
                    client.create_work_queue(name=queue, priority=priority, work_pool_name=pool)
                except ObjectAlreadyExists:
                    continue


def create_crash_automation(silence: timedelta = timedelta(seconds=SILENCE_SECONDS)) -> None:
    """The rule that marks flow runs as crashed whose signs of life have stopped, where it is missing.

    A worker marks a run as crashed when the run's process dies; this is for what takes the worker along, and for runs
    without one.
    """
    from prefect.client.orchestration import get_client

    automation = crash_automation(silence)
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(automation)


def crash_automation(silence: timedelta) -> Any:
    """The rule itself: after a sign of life, another one or an end is expected within `silence`."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    beat = "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Cancelled", "Crashed")
    trigger = EventTrigger(
        after={beat},
        expect={beat, *(f"prefect.flow-run.{end}" for end in ends)},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=silence,
    )
    return AutomationCore(
        name=CRASH_AUTOMATION,
        description="A flow run whose process was killed would stay 'Running' for ever.",
        trigger=trigger,
        actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=CRASH_MESSAGE, force=False)],
    )


def apply_file(targets: Targets) -> None:
    """Apply `deployments/prefect.yaml` from the project's root; ServerError with Prefect's words where it refuses."""
    from jacobian_core.resources import project_path

    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
    done = subprocess.run(
        [*command, str(project_path(_FILE))],
        cwd=flows_root(),
        env=os.environ | targets.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " ".join((done.stderr + done.stdout).split())[-_SAID_CHARACTERS:]
        raise ServerError(f"{_FILE} was not deployed: {said}.", "Check the server with `jacobian status`.")


def deployment_names() -> list[str]:
    """Every deployment of the server as `flow/deployment`, sorted."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        return sorted(f"{flows[found.flow_id]}/{found.name}" for found in client.read_deployments())
