"""The commands over a lake in a store, as users meet them: what they do, what they say, and what they never say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.server import ServerState
from tests.flows.test_cli import environment, jacobian
from tests.flows.test_main_command import PROFILE
from tests.security.test_secrets import files_with
from tests.stand_ins.s3_server import BUCKET, S3Server
from tests.tiny import make_corpus, make_model, make_pair

LAKE = f"s3://{BUCKET}/command"
CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0000",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+access+key+of+forty+chars",
    "AWS_SESSION_TOKEN": "canary-session-token-of-the-tests",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: model, pair, corpus and a profile."""
    root = tmp_path_factory.mktemp("user")
    make_corpus(root / "corpus", documents=16)
    make_model(root / "model", root / "corpus")
    make_pair(root / "pair")
    (root / "tiny.toml").write_text(PROFILE)
    return root


@pytest.fixture(scope="module")
def env(work: Path, s3: S3Server, server: ServerState) -> dict[str, str]:
    """Credentials that must show up nowhere, and the shared Prefect server."""
    own = {"PREFECT_API_URL": server.api, "JACOBIAN_FLOWS_CACHE": str(work / "cache"), "AWS_MAX_ATTEMPTS": "1"}
    return environment(work, **{**s3.environment, **CANARIES, **own})


@pytest.fixture(scope="module")
def ran(work: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return jacobian("run", "--profile", "tiny.toml", "--lake", LAKE, cwd=work, env=env)


def test_a_run_and_what_it_says(ran: subprocess.CompletedProcess[str], work: Path, s3: S3Server) -> None:
    assert ran.returncode == 0, ran.stderr
    assert f"lake: {LAKE}" in ran.stdout
    names = s3.objects("command/")
    assert sum(name.startswith("runs/") for name in names) == 1
    assert any(name.endswith("/report.html") for name in names)
    assert [name for name in names if name.startswith(("_work", "_prefect", ".tmp-"))] == []
    assert [path for path in (work / "cache").rglob("*") if path.is_file()] == []
    assert not (work / "s3:").exists()


def test_sql_over_it(ran: subprocess.CompletedProcess[str], work: Path, env: Mapping[str, str]) -> None:
    query = "SELECT count(*) AS n, (SELECT tokens FROM runs) AS tokens FROM tokens"
    found = jacobian("sql", query, "--lake", LAKE, "--json", cwd=work, env=env)
    assert found.returncode == 0, found.stderr
    (row,) = json.loads(found.stdout)
    assert row["n"] == row["tokens"] > 100


def test_nothing_says_the_credentials(
    ran: subprocess.CompletedProcess[str], work: Path, s3: S3Server, server_lake: Path
) -> None:
    """Not the lake (its warehouse included), nor the cache, the Prefect server's records, or the terminal."""
    everything = b"".join(s3.objects("command/").values())
    for name, canary in CANARIES.items():
        assert canary.encode() not in everything, name
        assert canary not in ran.stdout + ran.stderr
        assert files_with(canary.encode(), work) == []
        assert files_with(canary.encode(), server_lake) == []
    run_id = next(iter(s3.objects("command/runs/"))).removesuffix(".json")
    assert run_id.encode() in everything  # the search does find what is there
    assert files_with(run_id.encode(), server_lake) != []


@pytest.mark.parametrize("debug", [False, True])
def test_a_failure_says_no_credentials(
    work: Path, s3: S3Server, env: Mapping[str, str], tmp_path: Path, debug: bool
) -> None:
    """Rights that lack: one line, and in the traceback, which holds the client's own words, nothing either."""
    with s3.being("denies"):
        found = jacobian("runs", "--lake", LAKE, *(["--debug"] if debug else []), cwd=work, env=env)
    assert found.returncode == 6
    assert "access was denied" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1 or debug
    assert all(canary not in found.stdout + found.stderr for canary in CANARIES.values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SESSION_TOKEN": None}, "no credentials"),
    ],
)
def test_what_lacks_is_one_line(work: Path, env: Mapping[str, str], changed: dict[str, str | None], said: str) -> None:
    given = {k: v for k, v in {**env, **changed}.items() if v is not None}
    found = jacobian("sql", "SELECT 1", "--lake", LAKE, cwd=work, env=given)
    assert found.returncode == 6
    assert said in found.stderr
    assert found.stderr.startswith("error: s3://") or f"{LAKE}/lake.json" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_without_the_extra(work: Path, env: Mapping[str, str]) -> None:
    script = "import sys; sys.modules['s3fs'] = None; import flows.cli; flows.cli.main()"
    command = [sys.executable, "-c", script, "runs", "--lake", LAKE]
    found = subprocess.run(command, cwd=work, env=dict(env), capture_output=True, text=True)
    assert found.returncode == 6
    assert "pip install 'jacobian-flows[s3]'" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_every_other_command(
    ran: subprocess.CompletedProcess[str], work: Path, env: Mapping[str, str], s3: S3Server
) -> None:
    for arguments in (
        ["runs", "--json"], ["verify"], ["report", "sparsity"], ["report", "--html"], ["status"],
        ["analyse", "--set", "interventions.token_share=0.1"], ["compact"], ["verify"], ["prune", "--keep", "1"],
    ):  # fmt: skip
        found = jacobian(*arguments, "--lake", LAKE, cwd=work, env=env)
        assert found.returncode == 0, (arguments, found.stderr)


@pytest.mark.slow
def test_pruned_and_made_again_and_exported(
    ran: subprocess.CompletedProcess[str], work: Path, env: Mapping[str, str], s3: S3Server
) -> None:
    pruned = jacobian("prune", "--keep", "0", "--no-dry-run", "--grace", "0", "--lake", LAKE, cwd=work, env=env)
    assert pruned.returncode == 0, pruned.stderr
    assert s3.objects("command/runs/").keys() <= {n for n in s3.objects("command/runs/") if n.startswith(".removed-")}
    again = jacobian("run", "--profile", "tiny.toml", "--lake", LAKE, cwd=work, env=env)
    assert again.returncode == 0, again.stderr
    exported = jacobian("export", "command", "out", "--lake", LAKE, cwd=work, env=env)
    assert exported.returncode == 0, exported.stderr
    assert jacobian("verify", "--lake", "out", cwd=work, env=env).returncode == 0


@pytest.mark.slow
def test_with_a_server_of_its_own(work: Path, env: Mapping[str, str], s3: S3Server) -> None:
    """Its state is this machine's: in the cache, and not in the store."""
    own = {k: v for k, v in env.items() if k != "PREFECT_API_URL"} | {"JACOBIAN_WANDB": "offline"}
    lake = f"s3://{BUCKET}/own-server"
    found = jacobian("run", "--profile", "tiny.toml", "--lake", lake, "--stop-server", cwd=work, env=own)
    assert found.returncode == 0, found.stderr
    (home,) = (work / "cache" / "lakes").glob("own-server-*")
    assert {"_prefect", "_wandb"} <= {path.name for path in home.iterdir()}
    assert [name for name in s3.objects("own-server/") if name.startswith("_")] == []
    assert all(files_with(canary.encode(), home) == [] for canary in CANARIES.values())
