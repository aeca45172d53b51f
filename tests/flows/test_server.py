"""The local server: started once, found again, stopped; never mistaken for another process."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import prefect_api, server
from flows.prefect_api import configured_api, use_server
from flows.server import HOST, ServerState, server_home, server_status, start_server, stop_server
from jacobian_core.errors import ServerError


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that is no server."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as process:
        yield process
        process.kill()


def record(lake: Path, pid: int, created: float, port: int) -> None:
    home = server_home(lake)
    home.mkdir(parents=True)
    (home / "server.json").write_text(ServerState(pid=pid, created=created, port=port).model_dump_json())


def created_of(pid: int) -> float:
    found = server._process_created(pid)
    assert found is not None
    return found


def test_a_running_server_is_found_and_not_started_again(server: ServerState, server_lake: Path) -> None:
    assert start_server(server_lake) == server
    assert start_server(server_lake, server.port) == server
    assert server_status(server_lake) == server


def test_it_listens_on_the_loopback_interface_and_keeps_its_records_in_the_lake(
    server: ServerState, server_lake: Path
) -> None:
    with urllib.request.urlopen(f"{server.api}/admin/settings") as answer:
        settings = json.load(answer)
    assert Path(settings["home"]) == server_home(server_lake)
    assert settings["server"]["analytics_enabled"] is False
    assert (server_home(server_lake) / "prefect.db").is_file()
    with urllib.request.urlopen(f"{server.ui}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == server.api
    import psutil

    listening = {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {HOST}


def test_a_server_elsewhere_is_refused_while_it_runs(server: ServerState, server_lake: Path) -> None:
    with pytest.raises(ServerError, match=f"already runs on port {server.port}") as caught:
        start_server(server_lake, server.port + 1)
    assert "jacobian server stop" in caught.value.remedy


def test_a_second_lake_gets_another_port_and_stopping_it_leaves_the_first(server: ServerState, tmp_path: Path) -> None:
    lake = tmp_path / "second"
    other = start_server(lake)
    try:
        assert other.port != server.port
        assert prefect_api.answers(other.api)
        assert stop_server(lake) == other
        assert server_status(lake) is None
        assert not prefect_api.answers(other.api)
        assert stop_server(lake) is None
        assert prefect_api.answers(server.api)
    finally:
        stop_server(lake)


def test_a_record_of_a_dead_process_is_no_server(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    record(tmp_path, ended.pid, 0.0, 4200)
    assert server_status(tmp_path) is None
    assert stop_server(tmp_path) is None


def test_a_process_that_got_the_id_later_is_not_stopped(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, sleeper.pid, created_of(sleeper.pid) - 3600, 4200)
    assert stop_server(tmp_path) is None
    assert sleeper.poll() is None


def test_the_recorded_process_is_stopped(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, sleeper.pid, created_of(sleeper.pid), 4200)
    assert stop_server(tmp_path) is not None
    assert sleeper.wait(timeout=10) != 0


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_a_damaged_record_is_no_server(tmp_path: Path, content: str) -> None:
    server_home(tmp_path).mkdir()
    (server_home(tmp_path) / "server.json").write_text(content)
    assert server_status(tmp_path) is None


def test_a_taken_port_is_avoided_or_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is taken"):
            server._free_port(port)
    assert server._free_port(port) == port


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nsleep 0.3\necho the database is broken\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(fake))
    with pytest.raises(ServerError, match="the database is broken"):
        start_server(tmp_path / "lake")
    assert not (server_home(tmp_path / "lake") / "server.json").exists()


def test_a_server_that_never_answers_is_stopped_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(fake))
    monkeypatch.setattr(server, "_START_SECONDS", 1.0)
    with pytest.raises(ServerError, match="did not answer within 1 s"):
        start_server(tmp_path / "lake")
    assert server._process_created(int((tmp_path / "pid").read_text())) is None


def test_a_lake_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="can't be written"):
        start_server(tmp_path / "file")


@pytest.mark.usefixtures("no_prefect_settings")
def test_an_api_that_the_user_set_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_api() is None
    (tmp_path / ".prefect").mkdir()
    profiles = tmp_path / ".prefect/profiles.toml"
    profiles.write_text('active = "a"\n[profiles.a]\n[profiles.b]\nPREFECT_API_URL = "http://b/api"\n')
    assert configured_api() is None
    monkeypatch.setenv("PREFECT_PROFILE", "b")
    assert configured_api() == "http://b/api"
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://c/api"\n')
    assert configured_api() == "http://c/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://d/api")
    assert configured_api() == "http://d/api"


@pytest.mark.usefixtures("no_prefect_settings")
def test_the_user_s_api_is_used_and_no_server_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer((HOST, 0), Api) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        url = f"http://{HOST}:{api.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setattr(prefect_api.os, "environ", dict(os.environ))
        assert use_server(tmp_path) == (url, None)
        api.shutdown()
    assert not server_home(tmp_path).exists()


@pytest.mark.usefixtures("no_prefect_settings")
def test_an_api_that_does_not_answer_is_named_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:canary@{HOST}:9/api?key=canary")
    with pytest.raises(ServerError, match=f"http://{HOST}:9/api does not answer") as caught:
        use_server(tmp_path)
    assert "canary" not in str(caught.value)


def test_a_server_that_is_not_ours_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Another process answers on the port: the health check alone would be content."""
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        created = server._process_created(os.getpid())
        assert created is not None
        mine = server.ServerState(pid=os.getpid(), created=created, port=other.getsockname()[1])
        assert server._listens(mine)
        assert not server._listens(mine.model_copy(update={"port": 1}))
        parent = server._process_created(os.getppid()) or created
        assert not server._listens(mine.model_copy(update={"pid": 1, "created": parent}))
