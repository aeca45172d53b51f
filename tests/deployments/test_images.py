"""Image, compose file and Kubernetes template, as far as they can be checked without a Docker daemon or a cluster."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from flows.deploy import Targets

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (DEPLOYMENTS / "Dockerfile").read_text(encoding="utf-8")
JOB: dict[str, Any] = json.loads((DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text(encoding="utf-8"))


def steps(instruction: str) -> list[str]:
    text = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{instruction} ")]


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    for step in steps("COPY"):
        *sources, _ = step.split()
        assert [s for s in sources if not (ROOT / s).exists() or s in ignored] == []
    assert {"lake", "tests"} <= ignored


def test_the_image_has_what_the_deployments_need_and_does_not_run_as_root() -> None:
    copied = {source for step in steps("COPY") for source in step.split()[:-1]}
    assert {"flows", "jacobian_core", "sql", "deployments", "demo", "pyproject.toml", "constraints.txt"} <= copied
    assert steps("USER") == ["1000"]  # by number: a cluster that wants no root can't look up names
    assert [step for step in steps("RUN") if "useradd --uid 1000 " in step]
    assert JOB["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000
    assert "pip install -c constraints.txt -e '.[s3]'" in steps("RUN")


@pytest.mark.parametrize(("variant", "code", "says"), [
    ("cpu", 0, "pip install --index-url INDEX torch=="),
    ("cuda", 0, "pip install -c constraints.txt torch"),
    ("tpu", 1, "VARIANT is cpu or cuda, not 'tpu'"),
])  # fmt: skip
def test_the_variant_chooses_pytorch_s_wheels(variant: str, code: int, says: str) -> None:
    (script,) = [step for step in steps("RUN") if "VARIANT" in step]
    found = subprocess.run(
        ["sh", "-c", f'pip() {{ echo pip "$@"; }}\n{script}'],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "VARIANT": variant, "TORCH_CPU_INDEX": "INDEX"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == code
    assert says in found.stdout + found.stderr


def compose_problems(compose: dict[str, Any]) -> list[str]:
    """What is wrong with the compose file: references into nothing, open ports, secrets."""
    services, found = compose["services"], []
    for name, service in services.items():
        found += [f"{name}: no service {each}" for each in service.get("depends_on", {}) if each not in services]
        mounts = [mount.split(":")[0] for mount in service.get("volumes", [])]
        found += [f"{name}: no volume {each}" for each in mounts if each not in compose["volumes"]]
        found += [f"{name}: open port" for port in service.get("ports", []) if not port.startswith("127.0.0.1:")]
        values = {k: str(v) for k, v in service.get("environment", {}).items() if "PASSWORD" in k}
        found += [f"{name}: secret in the file" for v in values.values() if not v.startswith("${POSTGRES_PASSWORD:?")]
        build = service.get("build")
        if build and not (DEPLOYMENTS / build["context"] / build["dockerfile"]).is_file():
            found.append(f"{name}: no Dockerfile")
    return found


def test_the_compose_file_hangs_together() -> None:
    assert compose_problems(COMPOSE) == []
    assert COMPOSE["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


@pytest.mark.parametrize(
    ("service", "change", "problem"),
    [
        ("server", {"ports": ["4200:4200"]}, "server: open port"),
        ("server", {"environment": {"PREFECT_SERVER_DATABASE_PASSWORD": "x"}}, "server: secret in the file"),
        ("deploy", {"depends_on": {"sever": {}}}, "deploy: no service sever"),
        ("deploy", {"volumes": ["lakes:/lake"]}, "deploy: no volume lakes"),
    ],
)
def test_a_mistake_in_the_compose_file_is_noticed(service: str, change: dict[str, Any], problem: str) -> None:
    changed = copy.deepcopy(COMPOSE)
    changed["services"][service].update(change)
    assert compose_problems(changed) == [problem]


@pytest.mark.parametrize(
    "service", [n for n, s in COMPOSE["services"].items() if s.get("command", [""])[0] == "jacobian"]
)
def test_the_services_commands_are_commands_with_such_options(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *options = COMPOSE["services"][service]["command"]
    cli.app([command, "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert [option for option in options if option.startswith("--") and option not in shown] == []


def test_the_server_s_settings_are_prefect_s() -> None:
    from prefect.settings import Settings

    known = json.dumps(Settings.model_json_schema())
    for name in COMPOSE["services"]["server"]["environment"]:
        assert name in known


def resolved(**values: Any) -> dict[str, Any]:
    """The job of a flow run, with the template's defaults and these values, as Prefect fills it in."""
    from prefect.utilities.templating import apply_values

    properties = JOB["variables"]["properties"]
    defaults = {name: spec["default"] for name, spec in properties.items() if "default" in spec}
    filled: Any = apply_values(JOB["job_configuration"], {**defaults, **values})
    return dict(filled)


def test_the_job_template_passes_prefect_s_own_check_and_names_no_unknown_variable() -> None:
    from prefect.server.schemas.actions import validate_base_job_template

    assert validate_base_job_template(JOB) == JOB
    broken = copy.deepcopy(JOB)
    del broken["variables"]["properties"]["gpus"]
    with pytest.raises(ValueError, match="gpus"):
        validate_base_job_template(broken)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(JOB["job_configuration"])))
    assert used == set(JOB["variables"]["properties"])


def test_a_job_asks_for_gpus_mounts_lake_and_cache_and_is_not_tried_twice() -> None:
    spec = resolved(name="demo", command="run", gpus=2)["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {m["mountPath"]: m["name"] for m in container["volumeMounts"]} == {
        "/lake": "lake", "/cache": "cache", "/dev/shm": "shm",
    }  # fmt: skip
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert "{{" not in json.dumps(resolved(name="demo", command="run", cluster_config={}, job_watch_timeout_seconds=9))


def test_the_job_is_one_that_kubernetes_knows() -> None:
    """Against the API's own schemas; of command and environment Prefect's worker makes lists."""
    worker_makes = {"command": ["prefect", "flow-run", "execute"], "env": [{"name": "A", "value": "b"}]}
    validate = pytest.importorskip("kubernetes_validate")
    for gpus in (0, 1):
        job = resolved(name="demo", gpus=gpus, **worker_makes)["job_manifest"]
        assert validate.validate(job, "1.32", strict=True) == "1.32"
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(validate.ValidationError, match="volumeMount"):
        validate.validate(job, "1.32", strict=True)


def test_a_kubernetes_pool_takes_the_template_and_the_worker_understands_it() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    fields = set(worker.KubernetesWorkerJobConfiguration.model_fields)
    assert set(JOB["job_configuration"]) <= fields


def test_the_server_takes_a_pool_with_the_template(prefect_api: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="k8s", type="kubernetes", base_job_template=JOB), overwrite=True)
        assert client.read_work_pool("k8s").base_job_template == JOB
        client.delete_work_pool("k8s")


def test_deployments_resolve_where_the_image_has_the_project(tmp_path: Path) -> None:
    assert steps("WORKDIR") == ["/app"]
    assert Targets(tmp_path).environment()["PROJECT_ROOT"] == str(ROOT)
