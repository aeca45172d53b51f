"""A PostgreSQL server of one test's own, from the machine's programs: loopback, a password, a folder that goes."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deployments.rest import until

PASSWORD = "canary-of-the-database"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, from the PATH or where Debian keeps them; None where there are none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "postgres").is_file()), None)


@dataclass(frozen=True)
class Postgres:
    """A running server with an empty database `prefect`."""

    port: int

    def settings(self) -> dict[str, str]:
        """What Prefect's server must be told, as the runbook and the compose file tell it."""
        return {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.port),
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_NAME": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
        }

    def rows(self, query: str, database: str = "prefect") -> list[tuple[Any, ...]]:
        """The rows of a statement, over a connection of its own."""
        import asyncio

        import asyncpg

        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=self.port, user="prefect", password=PASSWORD, database=database
            )
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def answers(self) -> bool:
        try:
            return bool(self.rows("SELECT 1", "postgres"))
        except OSError:
            return False
        except Exception as error:  # the server answers, and says that it is still starting
            return "starting up" not in str(error)


@contextmanager
def postgres_server(folder: Path) -> Iterator[Postgres]:
    """Run the server until the end of the block; as another user where this one is root, whom it refuses."""
    with tempfile.TemporaryDirectory(prefix="jacobian-pg-") as temporary:
        home, user = Path(temporary), _user()
        (home / "password").write_text(PASSWORD)
        if user is not None:
            os.chown(home, user.pw_uid, user.pw_gid)
            os.chown(home / "password", user.pw_uid, user.pw_gid)
        someone: dict[str, Any] = (
            {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        )
        initdb = [str(folder / "initdb"), "-D", str(home / "data"), "-U", "prefect", "-A", "scram-sha-256"]
        subprocess.run(
            [*initdb, "-E", "UTF8", "--locale", "C", "--no-sync", "--pwfile", str(home / "password")],
            check=True, capture_output=True, text=True, cwd=home, **someone,
        )  # fmt: skip
        server = Postgres(_free_port())
        options = ["-p", str(server.port), "-k", str(home), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                [str(folder / "postgres"), "-D", str(home / "data"), *options],
                stdout=log, stderr=log, cwd=home, **someone,
            )  # fmt: skip
        try:
            until(server.answers, 60, "answer of PostgreSQL")
            server.rows("CREATE DATABASE prefect", "postgres")
            yield server
        finally:
            process.terminate()
            process.wait(60)


def _user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
