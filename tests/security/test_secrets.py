"""A canary key in the environment shows up nowhere: not in logs, artifacts, manifests, messages or tracebacks."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from flows.output import write_error_log
from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.config import SaeConfig
from jacobian_core.errors import ArtifactError
from jacobian_core.lake.layout import Lake
from tests.artifact.conftest import CANARY
from tests.flows.test_cli import environment
from tests.stand_ins.wandb_server import serve_wandb


def files_with(needle: bytes, folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_run_leaves_no_secret_anywhere(ran: subprocess.CompletedProcess[str], work: Path, lake: Lake) -> None:
    """In the lake, in the server's database and log, in caches and state, and in what it printed."""
    assert files_with(CANARY.encode(), work) == []
    assert CANARY not in ran.stdout + ran.stderr
    database = lake.root / "_prefect" / "prefect.db"
    assert files_with(lake.runs()[0].encode(), database.parent) != []  # the search does find what is there


@pytest.mark.parametrize("how", ["refused", "cut"])
def test_a_failing_fetch_says_no_secret(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    behaviour = {"refused": {"api_key": "b" * 40}, "cut": {"cut_bodies": 9}}
    files = {"cfg.json": b"{}", "sae_weights.safetensors": b"x" * 100}
    with serve_wandb("ent/proj/pair", {"v4": files}, **behaviour[how]) as server:
        monkeypatch.setenv("WANDB_API_KEY", CANARY)
        monkeypatch.setenv(
            "WANDB_BASE_URL", server.url.replace("//", f"//me:{CANARY}@") if how == "cut" else server.url
        )
        with pytest.raises(ArtifactError) as raised:
            fetch_artifact(SaeConfig(source="wandb", location="ent/proj/pair:v4"), tmp_path / "cache")
    told = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert CANARY not in told
    assert files_with(CANARY.encode(), tmp_path) == []


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_failure_says_no_secret(tmp_path: Path, debug: bool) -> None:
    """Whatever a library puts into its message: what is printed and the traceback's file are searched."""
    key = "__import__('os').environ['WANDB_API_KEY']"
    script = f"""
import flows.cli, flows.cli_config as c
def fail(*_):
    raise ValueError("GET https://me:" + {key} + "@host/x?sig=" + {key} + " refused key " + {key})
c.config_of = fail
flows.cli.main()
"""
    command = [sys.executable, "-c", script, "config", *(["--debug"] if debug else [])]
    env = environment(tmp_path, WANDB_API_KEY=CANARY)
    found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == 1
    assert "ValueError" in found.stderr
    assert ("Traceback" in found.stderr) == debug
    assert CANARY not in found.stdout + found.stderr
    assert len(list(tmp_path.rglob("error-*.log"))) == 1
    assert files_with(CANARY.encode(), tmp_path) == []


def test_the_error_log_keeps_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    try:
        raise ValueError("one\ntwo")
    except ValueError as error:
        path = write_error_log(error)
    assert path is not None
    assert path.read_text().endswith("ValueError: one\ntwo\n")
    assert "    raise ValueError" in path.read_text()
