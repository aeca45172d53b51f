"""The deployments' file says what is so: its entry points are flows, its parameters theirs, its schedules valid."""

from __future__ import annotations

import copy
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deploy import POOLS, QUEUES, Targets
from jacobian_core.resources import project_path

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load(project_path("deployments/prefect.yaml").read_text(encoding="utf-8"))
BY_NAME = {entry["name"]: entry for entry in CONFIG["deployments"]}


def flow_of(entry: dict[str, Any]) -> Any:
    path, _, name = entry["entrypoint"].partition(":")
    assert (ROOT / path).is_file()
    return getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)


def problems(entry: dict[str, Any]) -> list[str]:
    """What is wrong with one deployment."""
    from prefect import Flow
    from prefect.client.schemas.schedules import CronSchedule

    flow = flow_of(entry)
    found = [] if isinstance(flow, Flow) else ["no flow"]
    known = inspect.signature(flow.fn).parameters
    found += [f"unknown parameter {name}" for name in entry.get("parameters", {}) if name not in known]
    for schedule in entry.get("schedules", []):
        try:
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        except ValueError:
            found.append(f"bad schedule {schedule['cron']}")
    pool = entry["work_pool"]
    if pool["name"] not in (*POOLS, "{{ $JACOBIAN_POOL }}") or pool["work_queue_name"] not in QUEUES:
        found.append("unknown pool or queue")
    return found


@pytest.mark.parametrize("name", BY_NAME)
def test_a_deployment_is_right(name: str) -> None:
    assert problems(BY_NAME[name]) == []
    assert BY_NAME[name]["description"].endswith(".")
    assert "jacobian" in BY_NAME[name]["tags"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parameters": {"shards_at_onec": 1}}, "unknown parameter shards_at_onec"),
        ({"schedules": [{"cron": "61 * * * *", "timezone": "UTC"}]}, "bad schedule 61 * * * *"),
        ({"work_pool": {"name": "tpu", "work_queue_name": "scheduled"}}, "unknown pool or queue"),
    ],
)
def test_a_mistake_is_noticed(change: dict[str, Any], problem: str) -> None:
    assert problems(copy.deepcopy(BY_NAME["ingest"]) | change) == [problem]


def test_the_ingest_is_scheduled_and_never_doubled() -> None:
    ingest = BY_NAME["ingest"]
    assert ingest["schedules"]
    assert (ingest["concurrency_limit"]["limit"], ingest["concurrency_limit"]["collision_strategy"]) == (
        1,
        "CANCEL_NEW",
    )


def test_compact_is_deployed_as_soon_as_there_is_such_a_flow() -> None:
    assert (ROOT / "flows" / "compact.py").is_file() == ("compact" in BY_NAME)


def runbook_problems(text: str) -> list[str]:
    """Deployments, files and commands of the runbook that are not there, and deployments that it leaves out."""
    from flows import cli

    named = set(re.findall(r"^\| `([a-z-]+/[a-z-]+)` \|", text, re.MULTILINE))
    real = {f"{flow_of(entry).name}/{name}" for name, entry in BY_NAME.items()}
    files = re.findall(r"^\| `([\w./-]+\.(?:yaml|json)|Dockerfile|profiles/)` \|", text, re.MULTILINE)
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    used = set(re.findall(r"^jacobian ([a-z-]+)", text, re.MULTILINE)) - {"server"}
    missing = [file for file in files if not (ROOT / "deployments" / file).exists()]
    return sorted((named ^ real) | set(missing) | (used - known))


def test_the_runbook_names_every_deployment_and_nothing_else() -> None:
    text = (ROOT / "deployments" / "README.md").read_text(encoding="utf-8")
    assert runbook_problems(text) == []
    assert runbook_problems(text.replace("`jacobian-ingest/ingest`", "`jacobian-ingest/ingst`")) != []
    assert runbook_problems(text.replace("| `compose.yaml`", "| `composed.yaml`")) == ["composed.yaml"]
    assert runbook_problems(text.replace("jacobian worker --pool gpu  ", "jacobian workers --pool gpu  ")) == [
        "workers"
    ]


def test_every_variable_of_the_file_is_set_by_deploy(tmp_path: Path) -> None:
    text = project_path("deployments/prefect.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{ \$(\w+) \}\}", text)) == set(Targets(tmp_path).environment())
