"""Where tasks run is chosen by the environment, and changes no byte of the lake."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from flows import runners
from jacobian_core.errors import ConfigError
from tests.deployments.served import digests
from tests.flows.test_cli import environment
from tests.tiny import run_pipeline, tiny_config

RUN = """
import sys
from pathlib import Path
from jacobian_core.config import RunConfig
from flows.run import jacobian_run
print(jacobian_run(RunConfig.model_validate_json(Path(sys.argv[1]).read_text())))
"""


def test_threads_are_the_default_and_a_block_is_written_while_one_computes_and_one_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JACOBIAN_TASK_RUNNER", raising=False)
    assert type(runners.task_runner()).__name__ == "ThreadPoolTaskRunner"
    assert runners.in_flight() == 3
    assert isinstance(runners.on_device(), contextlib.nullcontext)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("JACOBIAN_TASK_RUNNER", "dask", "Use `threads` or `ray`."),
        ("JACOBIAN_RAY_DEVICES", "two", "JACOBIAN_RAY_DEVICES = 'two' is refused"),
    ],
)
def test_a_mistake_in_the_environment_is_said(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JACOBIAN_TASK_RUNNER", "ray")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says):
        runners.in_flight()


def test_ray_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JACOBIAN_TASK_RUNNER", "ray")
    monkeypatch.setenv("JACOBIAN_RAY_DEVICES", "3")
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    assert runners.in_flight() == 4
    with pytest.raises(ConfigError, match=r"jacobian-flows\[ray\]"):
        runners.task_runner()


@pytest.mark.slow
def test_two_ray_workers_give_the_bytes_of_one_process(tiny: Path, tmp_path: Path, prefect_api: str) -> None:
    pytest.importorskip("prefect_ray")
    config = tiny_config(tiny, tmp_path / "lake", corpus={"block_tokens": 150})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    wanted = {"JACOBIAN_TASK_RUNNER": "ray", "JACOBIAN_RAY_DEVICES": "2", "JACOBIAN_RAY_GPUS": "0"}
    wanted["RAY_DEDUP_LOGS"] = "0"  # or lines of one worker stand for those of both
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "config.json")],
        env=environment(tmp_path, PREFECT_API_URL=prefect_api, OMP_NUM_THREADS="1", **wanted),
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    run_id = ran.stdout.split()[-1]
    assert run_pipeline(tiny_config(tiny, tmp_path / "serial", corpus={"block_tokens": 150})).run_id == run_id
    assert digests(tmp_path / "lake", run_id) == digests(tmp_path / "serial", run_id)
    computing = {
        line.split("pid=")[1].split(")")[0] for line in ran.stderr.splitlines() if "pid=" in line and "compute" in line
    }
    assert len(computing) == 2, [line for line in ran.stderr.splitlines() if "pid=" in line]
