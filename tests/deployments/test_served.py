"""What an engineer leaves running: a real server, real process workers, a schedule that fires, processes that die."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from tests.deployments.rest import until
from tests.deployments.served import Served, digests, shards_of_runs
from tests.tiny import run_pipeline, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture
def served(work: Path) -> Iterator[Served]:
    with Served(work / "tiny.toml", work / "lake") as found:
        yield found


def test_a_day_of_the_schedule_in_minutes_does_each_shard_once(served: Served, work: Path) -> None:
    served.every("ingest", 15)
    until(lambda: len(shards_of_runs(work / "lake")) == 2, 300, "second run")
    until(lambda: any("nothing new" in f["state"]["message"] for f in served.firings()), 120, "idle firing")
    shutil.copy(work / "corpus" / "00.jsonl.zst", work / "corpus" / "02.jsonl.zst")
    until(lambda: len(shards_of_runs(work / "lake")) == 3, 180, "third run")
    assert shards_of_runs(work / "lake") == [["00.jsonl.zst"], ["01.jsonl.zst"], ["02.jsonl.zst"]]
    firings = served.firings()
    assert {firing["state"]["type"] for firing in firings} == {"COMPLETED"}
    assert all(firing["auto_scheduled"] for firing in firings)
    assert verify_lake(Lake.open(work / "lake")) == []


def test_a_killed_flow_run_is_marked_crashed_and_the_next_firing_finishes_its_work(served: Served, work: Path) -> None:
    run = served.start("ingest")
    until(lambda: list((work / "lake" / "_work").glob("*/done/*.json")), 240, "finished block")
    for pid in served.engines():
        os.kill(pid, signal.SIGKILL)
    state = served.ended(run, 60)
    assert (state["type"], "SIGKILL" in state["message"]) == ("CRASHED", True)
    until(lambda: "start the same request again" in served.flow_run(run)["state"]["message"], 60, "word of what to do")
    body = {"flows": {"name": {"any_": ["jacobian-run"]}}}
    until(lambda: served.post("flow_runs/filter", body)[0]["state"]["type"] == "CRASHED", 30, "crash of the subflow")
    assert shards_of_runs(work / "lake") == []
    assert served.ended(served.start("ingest"))["type"] == "COMPLETED"
    assert shards_of_runs(work / "lake") == [["00.jsonl.zst"]]
    assert verify_lake(Lake.open(work / "lake")) == []


def test_ctrl_c_ends_server_workers_and_flow_runs(served: Served, work: Path) -> None:
    served.start("ingest")
    until(served.engines, 120, "process of a flow run")
    started = served.processes()
    assert len(started) >= 3
    assert served.stop() == 0
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert (alive, len(gone)) == ([], len(started))
    assert not (work / "lake" / "_prefect" / "server.json").exists()


def test_two_workers_give_the_bytes_of_one_process(work: Path) -> None:
    with Served(work / "tiny.toml", work / "lake", cpu_limit=2) as served:  # one flow run hands out, one computes
        config = tiny_config(work, work / "lake", corpus={"block_tokens": 100})
        run = served.start("spread", config=config.model_dump(mode="json"), workers=2, blocks_at_once=3)
        until(lambda: served.flow_run(run)["state"]["type"] != "SCHEDULED", 120, "worker that takes the flow run")
        served.add_worker()  # so that each of the two has one slot for computing
        assert served.ended(run, 400)["type"] == "COMPLETED"
        shares = served.post("flow_runs/filter", {"flows": {"name": {"any_": ["jacobian-blocks"]}}})
    assert {share["state"]["type"] for share in shares} == {"COMPLETED"}
    workers = {share["labels"]["prefect.worker.name"] for share in shares}
    assert (len(shares) > 2, len(workers)) == (True, 2)
    (run_id,) = Lake.open(work / "lake").runs()
    serial = run_pipeline(tiny_config(work, work / "serial", corpus={"block_tokens": 100}))
    assert serial.run_id == run_id
    assert digests(work / "lake", run_id) == digests(work / "serial", run_id)
    other = run_pipeline(tiny_config(work, work / "other", corpus={"block_tokens": 150})).run_id
    assert set(digests(work / "other", other).values()) != set(digests(work / "lake", run_id).values())
