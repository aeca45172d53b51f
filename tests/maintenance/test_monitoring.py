"""Structured logs, costs and the time split, and wandb with its real client, offline."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import json_log
from flows.progress import Figures
from flows.wandb_log import WandbLog, WandbRun, training_log, wandb_listeners
from jacobian_core.cost import cost_facts
from jacobian_core.errors import ConfigError
from jacobian_core.lake.layout import Lake
from jacobian_core.profiles import load_config
from jacobian_core.training.config import TrainPairConfig
from tests.lake.builders import write_run

ROOT = Path(__file__).parents[2]
FIGURES = Figures(1000, tokens_done=500, tokens_fresh=500, entries=7, bytes=9, blocks=2, seconds=10.0)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_json_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789abcdef")
    stream = io.StringIO()
    logger = logging.Logger("jacobian_core.test")
    logger.addHandler(json_log.JsonHandler(stream))
    logger.warning("two\nlines, %s and \x1b[31m", "canary-0123456789abcdef")
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("failed")
    first, second = lines(stream.getvalue())
    assert (first["level"], first["logger"], first["message"]) == (
        "warning", "jacobian_core.test", "two lines, *** and \x1b[31m"
    )  # fmt: skip
    assert "\x1b" not in stream.getvalue()
    assert second["error"] == "ValueError"
    age = datetime.now(UTC) - datetime.fromisoformat(str(first["time"]))
    assert abs(age.total_seconds()) < 60


def test_progress_has_its_figures_as_numbers_and_keeps_its_rate() -> None:
    stream = io.StringIO()
    listener = json_log.JsonLines(stream, seconds=60)
    listener.note("warning: drift: block 0000-000001")
    for _ in range(5):
        listener.update(FIGURES)
    listener.close(FIGURES)
    warned, progress, end = lines(stream.getvalue())
    assert (warned["level"], warned["message"]) == ("warning", "drift: block 0000-000001")
    assert (progress["event"], end["event"]) == ("progress", "end")
    assert progress["tokens_done"] == 500
    assert progress["tokens_per_second"] == 50.0


def test_the_command_s_error_is_a_json_line_where_that_is_asked_for(tmp_path: Path) -> None:
    env = {**{k: v for k, v in os.environ.items() if k != json_log.ENVIRONMENT}, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", "verify", "--lake", "none"]
    plain, structured = (
        subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        for more in ([], ["--log-json"])
    )
    assert plain.stderr.startswith("error: ")
    (line,) = lines(structured.stderr)
    assert line["level"] == "error"
    assert "no lake here" in str(line["message"])
    assert structured.returncode == plain.returncode == 6


def test_costs_and_the_time_split(tmp_path: Path) -> None:
    manifest = write_run(Lake.create(tmp_path / "lake"), 2)
    assert cost_facts(manifest) == {}  # no seconds, no figures
    timed = manifest.model_copy(update={"seconds": {"write": 6.0, "jacobian": 12.0}})
    facts = cost_facts(timed)
    assert facts["time_split"] == "jacobian 67%, write 33%"
    assert facts["tokens_per_worker_second"] == round(6 / 18, 1)
    assert facts["entries_per_worker_second"] == round(manifest.totals["entries_stored"] / 18)
    assert "cost_per_million_tokens_at_least" not in facts
    priced = timed.model_copy(update={"config": {"compute": {"cost_per_hour": 4.0}}})
    # 18 s are 0.005 h, which cost 0.02 for 6 tokens
    assert cost_facts(priced)["cost_per_million_tokens_at_least"] == pytest.approx(0.02 / 6 * 1e6, rel=1e-6)


def test_the_price_is_no_part_of_a_run_s_identity() -> None:
    from jacobian_core.request.identity import run_identity

    plain = load_config("demo")
    priced = load_config("demo", ["compute.cost_per_hour=3", "quality.drift_ratio=2", "quality.checks_max_entries=1"])
    assert plain != priced
    assert run_identity(plain, {}, {}, []) == run_identity(priced, {}, {}, [])


def test_wandb_is_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JACOBIAN_WANDB", raising=False)
    assert wandb_listeners(load_config("demo")) == ()
    monkeypatch.setenv("JACOBIAN_WANDB", "offline")
    assert len(wandb_listeners(load_config("demo"))) == 1
    monkeypatch.setenv("JACOBIAN_WANDB", "maybe")
    with pytest.raises(ConfigError, match="JACOBIAN_WANDB"):
        wandb_listeners(load_config("demo"))


def test_a_training_s_records_are_asked_for_in_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = {"model": {"name": "m", "layer": 1}, "training_shards": ["a"], "held_out_shards": ["b"], "output": tmp_path}
    config = TrainPairConfig.model_validate(data)
    monkeypatch.delenv("JACOBIAN_WANDB", raising=False)
    assert training_log(config) is None
    monkeypatch.setenv("JACOBIAN_WANDB", "offline")
    assert training_log(config) is not None
    monkeypatch.setenv("JACOBIAN_WANDB", "maybe")
    with pytest.raises(ConfigError, match="JACOBIAN_WANDB"):
        training_log(config)


OFFLINE = """
import sys
from flows.progress import Figures
from flows.wandb_log import wandb_listeners
from jacobian_core.profiles import load_config
(listener,) = wandb_listeners(load_config("demo", (), sys.argv[1]))
for blocks in range(4):
    listener._last = float("-inf")
    listener.update(Figures(1000, tokens_done=100 * blocks, blocks=blocks))
listener.summary({"run_id": "demo-0", "lake": "/home/somebody", "cost_per_million_tokens_at_least": 0.25})
listener.close(Figures(1000, tokens_done=1000, blocks=4))
assert not listener.run.failed
"""


def test_the_real_client_writes_the_figures_offline(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"JACOBIAN_WANDB": "offline", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "lake")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "lake" / "_wandb" / "wandb").glob("offline-run-*/run-*.wandb")
    data = written.read_bytes()
    assert b"tokens_per_second" in data
    assert b"entries_per_second" in data
    assert b"cost_per_million_tokens_at_least" in data
    assert b"/home/somebody" not in data
    assert b"pair_that_is_not_there" not in data


def test_a_client_that_fails_is_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def broken(self: WandbRun) -> None:
        calls.append(time.monotonic())
        raise RuntimeError("no key at https://user:canary@host/?token=canary")

    monkeypatch.setattr(WandbRun, "_begin", broken)
    listener = WandbLog(load_config("demo"), "online")
    with caplog.at_level(logging.WARNING, "flows.wandb_log"):
        for _ in range(3):
            listener.close(FIGURES)
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert "canary" not in caplog.text
