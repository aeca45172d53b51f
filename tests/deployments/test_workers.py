"""Workers of one machine: each GPU seen by exactly one, started again when they end, none left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows.workers import Supervisor, WorkerSpec, visible_devices, workers_of

# A worker with a child in a session of its own, as a flow run's process is; the child ignores SIGTERM.
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PARENT = (
    "import pathlib, subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], start_new_session=True)\n"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
    "time.sleep(600)"
)


@dataclass(frozen=True)
class Stand(WorkerSpec):
    """A process that only waits, and writes down its child's id."""

    file: str = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", PARENT, self.file]


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def written(path: Path) -> int | None:
    text = path.read_text() if path.is_file() else ""
    return int(text) if text else None


def test_each_gpu_has_a_worker_of_its_own_that_takes_one_flow_run() -> None:
    *gpus, cpu = workers_of(["0", "3"], "node")
    assert [(spec.pool, spec.name, spec.limit) for spec in gpus] == [("gpu", "node-gpu-0", 1), ("gpu", "node-gpu-3", 1)]
    assert [spec.environment()["CUDA_VISIBLE_DEVICES"] for spec in [*gpus, cpu]] == ["0", "3", ""]
    assert cpu.pool == "cpu"
    assert [spec.pool for spec in workers_of([], "node")] == ["cpu"]


def test_without_a_gpu_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in workers_of([], "node")[0].environment()


def test_the_command_is_prefect_s_and_takes_pool_name_and_limit() -> None:
    command = WorkerSpec("gpu", "node-gpu-0", 1, "0").command()
    assert command[1:5] == ["-m", "prefect", "worker", "start"]
    assert [command[command.index(o) + 1] for o in ("--pool", "--name", "--limit")] == ["gpu", "node-gpu-0", "1"]


@pytest.mark.parametrize(("set_to", "found"), [("0,1", ["0", "1"]), ("", []), (" GPU-a , ", ["GPU-a"])])
def test_visible_devices_are_those_that_the_environment_allows(
    set_to: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", set_to)
    assert visible_devices() == found


def test_a_machine_without_the_driver_s_tool_has_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    assert visible_devices() == ["0", "1"]


def test_stopping_ends_a_worker_and_what_it_started_in_sessions_of_their_own(tmp_path: Path) -> None:
    spec = Stand("cpu", "one", 1, file=str(tmp_path / "child"))
    with Supervisor([spec], tmp_path, lambda _: None) as workers:
        until(lambda: written(tmp_path / "child"))
        child, parent = written(tmp_path / "child"), workers.pids()["one"]
        assert child is not None
        assert psutil.pid_exists(child)
    assert not psutil.pid_exists(parent)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_died_is_started_again_after_a_while(tmp_path: Path) -> None:
    told: list[str] = []
    spec = Stand("cpu", "one", 1, file=str(tmp_path / "child"))
    with Supervisor([spec], tmp_path, told.append, restart_seconds=0.3) as workers:
        until(lambda: written(tmp_path / "child"))
        first, orphan = workers.pids()["one"], written(tmp_path / "child")
        assert orphan is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
        workers.check()
        assert workers.pids() == {}
        workers.check()
        assert workers.pids() == {}
        time.sleep(0.35)
        workers.check()
        assert workers.pids()["one"] != first
        os.kill(orphan, signal.SIGKILL)
    assert told == [f"worker one ended (-9), see {tmp_path / 'worker-one.log'}; it is started again"]
