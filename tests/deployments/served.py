"""A served lake as an engineer leaves it: `jacobian serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jacobian_core.lake.layout import Lake
from tests.deployments.rest import Server, until
from tests.flows.test_cli import environment


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


@dataclass
class Served(Server):
    """`jacobian serve` over a lake; a context manager that ends it."""

    profile: Path
    lake: Path
    cpu_limit: int = 1
    _process: subprocess.Popen[str] | None = None
    _more: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Served:
        log = self.lake.parent / "serve.log"
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command("serve", "--profile", str(self.profile), "--lake", str(self.lake),
                        "--cpu-limit", str(self.cpu_limit)),
                stdout=out, stderr=out, text=True, env=self._environment(), cwd=self.lake.parent,
            )  # fmt: skip
        self._wait_for(log)
        return self

    def _wait_for(self, log: Path) -> None:
        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()
            return "Ctrl-C" in log.read_text()

        until(ready, 240, "server with its workers")
        found = re.search(r"PREFECT_API_URL=(\S+)", log.read_text())
        assert found is not None
        self.api = found[1]

    def _environment(self) -> dict[str, str]:
        return environment(self.lake.parent, PREFECT_WORKER_QUERY_SECONDS="2", OMP_NUM_THREADS="1")

    def __exit__(self, *_: object) -> None:
        for process in [*self._more, self._process]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(90)

    def add_worker(self) -> None:
        """A second worker of the pool, as another machine would run it."""
        out = (self.lake.parent / "worker.log").open("w")
        env = self._environment() | {"PREFECT_API_URL": self.api}
        with out:
            self._more.append(subprocess.Popen(
                command("worker", "--pool", "cpu", "--lake", str(self.lake)), stdout=out, stderr=out, text=True, env=env
            ))  # fmt: skip
        until(lambda: len(self.post("work_pools/cpu/workers/filter", {})) == 2, 120, "second worker")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """Everything that serving has started."""
        return psutil.Process(self.pid).children(recursive=True)

    def engines(self) -> list[int]:
        """The processes of flow runs."""
        return [p.pid for p in self.processes() if "prefect.engine" in " ".join(p.cmdline())]

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGINT)
        return self._process.wait(90)


def shards_of_runs(root: Path) -> list[list[str]]:
    """The shards of each finished run, in the order in which they were finished."""
    lake = Lake(root)
    found = [m for m in map(lake.manifest, lake.runs()) if m is not None] if lake.description_path.is_file() else []
    found.sort(key=lambda manifest: manifest.created_utc)
    corpora: list[Any] = [manifest.identity["corpus"] for manifest in found]
    return [[shard["name"] for shard in corpus["shards"]] for corpus in corpora]


def digests(root: Path, run_id: str) -> dict[str, str]:
    """Every part of a finished run by its path."""
    manifest = Lake.open(root).manifest(run_id)
    assert manifest is not None
    return {part.path: part.sha256 for parts in manifest.all_parts().values() for part in parts}
