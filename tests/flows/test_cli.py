"""The command as users meet it, in processes of its own: help, one-line errors, exit codes, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows import cli, output
from flows.server import ServerState
from jacobian_core.lake.layout import Lake

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["run"], ["sweep"], ["analyse"], ["plan"], ["serve"], ["worker"], ["deploy"], ["status"],
    ["report"], ["sql"], ["verify"], ["runs"], ["config"], ["train-pair"],
    ["server", "start"], ["server", "stop"], ["server", "status"], ["profiles", "list"], ["profiles", "show"],
]  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "JACOBIAN_", "XDG_"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}


def jacobian(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=cwd, env=dict(env or environment(cwd)), capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_help_lists_every_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    found = jacobian("--help", cwd=tmp_path)
    assert found.returncode == 0
    assert all(command[0] in found.stdout for command in COMMANDS)
    assert "..." not in found.stdout.partition("Commands:")[2], "a command's first line is cut at 80 columns"
    script = (
        "import sys, runpy; sys.argv=['jacobian', '--help']\n"
        "try: runpy.run_module('flows.cli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'duckdb', 'pyarrow', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert ended.stderr.strip() == "[]"


def test_every_command_has_an_example_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert cli.app([*command, "--help"], standalone_mode=False) == 0
        shown = capsys.readouterr().out
        assert f"Example: jacobian {' '.join(command)}" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["run", "--nonsense"], 2, "No such option: --nonsense"),
        (["run", "--profile", "dmo"], 2, "there is no profile 'dmo'. Did you mean 'demo'?"),
        (["run", "--set", "corpus.max_token=1"], 2, "Did you mean 'corpus.max_tokens'?"),
        (["config", "--profile", "x/y.toml"], 2, "there is no profile file 'x/y.toml'"),
        (["runs"], 6, "no lake here"),
        (["report"], 6, "no lake here"),
        (["sql", "SELECT 1"], 6, "no lake here"),
        (["verify"], 6, "no lake here"),
        (["run", "--lake", "full"], 6, "not a lake"),
        (["train-pair", "none.toml"], 2, "none.toml can't be read"),
        (["server", "start", "--port", "99999"], 2, "--port"),
    ],
)
def test_a_wrong_command_is_one_line_and_a_code(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something.txt").touch()
    found = jacobian(*arguments, cwd=tmp_path)
    assert found.returncode == code
    assert found.stderr.startswith("error: ")
    assert len(found.stderr.splitlines()) == 1
    assert says in found.stderr
    assert found.stdout == ""
    assert not (tmp_path / "full/_prefect").exists()


def test_an_unexpected_failure_leaves_its_traceback_in_a_file(tmp_path: Path) -> None:
    script = "import flows.cli, flows.cli_config as c\nc.config_of = lambda *a: 1 / 0\nflows.cli.main()"
    command = [sys.executable, "-c", script, "config"]
    found = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith("error: unexpected ZeroDivisionError")
    logs = list((tmp_path / ".local/state/jacobian-flows").glob("error-*.log"))
    assert len(logs) == 1
    assert str(logs[0]) in found.stderr
    assert "Traceback" in logs[0].read_text()
    debug = subprocess.run(
        [*command, "--debug"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert "Traceback" in debug.stderr


def test_config_and_profiles_show_what_is_meant(tmp_path: Path) -> None:
    shown = jacobian("config", "--json", "--set", "corpus.max_tokens=7", "--lake", "here", cwd=tmp_path)
    config = json.loads(shown.stdout)
    assert config["corpus"]["max_tokens"] == 7
    assert config["lake"]["root"] == str(tmp_path / "here")
    schema = json.loads(jacobian("config", "--schema", cwd=tmp_path).stdout)
    assert "CorpusConfig" in schema["$defs"]
    listed = json.loads(jacobian("profiles", "list", "--json", cwd=tmp_path).stdout)
    assert "demo" in [row["profile"] for row in listed]
    copy = tmp_path / "mine.toml"
    copy.write_text(jacobian("profiles", "show", "pythia-70m", cwd=tmp_path).stdout)
    assert jacobian("config", "--profile", "mine.toml", cwd=tmp_path).returncode == 0


def test_server_commands_find_the_running_server(server: ServerState, server_lake: Path, tmp_path: Path) -> None:
    shown = jacobian("server", "start", "--lake", str(server_lake), "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["ui"] == server.ui
    status = jacobian("server", "status", "--lake", str(server_lake), cwd=tmp_path)
    assert server.ui in status.stdout
    assert jacobian("server", "status", cwd=tmp_path).stdout == "not running\n"
    assert json.loads(jacobian("server", "stop", "--json", cwd=tmp_path).stdout) == {"stopped": False}


def start_run(root: Path, lake: Path, seconds: float, failing: str = "") -> subprocess.Popen[str]:
    root.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.fake_cli", str(root), str(seconds), failing, "--",
         "run", "--lake", str(lake)],
        cwd=ROOT, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_blocks(root: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(list(root.glob("done-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    number: signal.Signals, code: int, server: ServerState, server_lake: Path, tmp_path: Path
) -> None:
    with start_run(tmp_path / "fake", server_lake, 0.3) as process:
        wait_for_blocks(tmp_path / "fake", 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1] == "stopped; the lake is consistent. To continue, run the same command again."
    assert "Traceback" not in err + out
    done = len(list((tmp_path / "fake").glob("done-*")))
    assert 2 <= done < 12
    with start_run(tmp_path / "fake", server_lake, 0.0) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "demo-0123456789ab\n"
    assert "(continued)" in err
    assert err.splitlines()[-1].startswith(f"Prefect UI: {server.ui} (stop it: jacobian server stop --lake ")


def test_a_failed_run_is_one_line_and_the_error_s_code(server: ServerState, server_lake: Path, tmp_path: Path) -> None:
    with start_run(tmp_path / "fake", server_lake, 0.0, "0000-000003") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert err.splitlines()[-1] == "error: block 0000-000003 is broken. Mend it."
    assert "Traceback" not in err


def test_an_empty_lake_has_no_runs(tmp_path: Path) -> None:
    Lake.create(tmp_path / "lake")
    assert jacobian("runs", cwd=tmp_path).stdout.startswith("Runs: none")
    assert json.loads(jacobian("runs", "--json", cwd=tmp_path).stdout) == []
    assert "no run here yet" in jacobian("report", cwd=tmp_path).stderr


def test_json_has_no_nan() -> None:
    assert output.plain({"a": (float("nan"), 1.5), "b": {"c": float("inf")}}) == {"a": [None, 1.5], "b": {"c": None}}
