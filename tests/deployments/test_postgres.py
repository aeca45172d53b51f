"""Many workers over a server whose database is PostgreSQL, as the runbook sets it up: the bytes of one process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from tests.deployments.postgres import PASSWORD, Postgres, postgres_server, programs
from tests.deployments.rest import Server, until
from tests.deployments.served import command, digests
from tests.flows.test_cli import environment
from tests.tiny import run_pipeline, tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="no PostgreSQL server is installed (initdb, postgres)"),
]


@pytest.fixture
def database() -> Iterator[Postgres]:
    folder = programs()
    assert folder is not None
    with postgres_server(folder) as running:
        yield running


@contextmanager
def started(arguments: list[str], log: Path, **env: str) -> Iterator[None]:
    """A process of the deployment, ended by Ctrl-C."""
    with log.open("w") as out:
        process = subprocess.Popen(
            arguments, stdout=out, stderr=out, cwd=log.parent, env=environment(log.parent, OMP_NUM_THREADS="1", **env)
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)


@pytest.fixture
def server(database: Postgres, work: Path) -> Iterator[Server]:
    """`prefect server start` over the database; workers are told its address, and nothing of the database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    own = {"PREFECT_HOME": str(work / "server"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with started(start, work / "server.log", **own, **database.settings()):
        found = Server(api=f"http://127.0.0.1:{port}/api")
        until(lambda: healthy(found), 180, "answer of the Prefect server")
        yield found


def healthy(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.api}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_two_workers_over_postgres_give_the_bytes_of_one_process(
    server: Server, database: Postgres, work: Path
) -> None:
    deploy = command("deploy", "--profile", str(work / "tiny.toml"), "--lake", str(work / "lake"))
    api = {"PREFECT_API_URL": server.api, "PREFECT_HOME": str(work / "client")}
    done = subprocess.run(deploy, capture_output=True, text=True, cwd=work, env=environment(work, **api), check=False)
    assert done.returncode == 0, done.stderr
    config = tiny_config(work, work / "lake", corpus={"block_tokens": 100})
    run = server.start("spread", config=config.model_dump(mode="json"), workers=2, blocks_at_once=4)
    with ExitStack() as workers:
        for name, limit in (("one", "2"), ("two", "1")):  # the first takes the flow run that hands out, so both compute
            arguments = command("worker", "--pool", "cpu", "--limit", limit, "--lake", str(work / "lake"))
            workers.enter_context(started(arguments, work / f"{name}.log", PREFECT_WORKER_QUERY_SECONDS="2", **api))
            until(lambda: server.flow_run(run)["state"]["type"] != "SCHEDULED", 180, "worker that takes the flow run")
        state = server.ended(run, 400)
    assert state["type"] == "COMPLETED", state
    shares = server.post("flow_runs/filter", {"flows": {"name": {"any_": ["jacobian-blocks"]}}})
    assert len(shares) > 2
    assert len({share["labels"]["prefect.worker.name"] for share in shares}) == 2
    kept = database.rows("SELECT state_type::text, count(*)::int FROM flow_run WHERE start_time IS NOT NULL GROUP BY 1")
    assert kept == [("COMPLETED", len(shares) + 1)]
    assert not (work / "server" / "prefect.db").exists()
    (run_id,) = Lake.open(work / "lake").runs()
    serial = run_pipeline(tiny_config(work, work / "serial", corpus={"block_tokens": 100}))
    assert serial.run_id == run_id
    assert digests(work / "lake", run_id) == digests(work / "serial", run_id)
    told = [path for path in work.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert told == []
