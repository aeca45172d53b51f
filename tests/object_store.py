"""The session's object store, and the environment in which this process uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stand_ins.s3_server import S3Server, serve_s3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """The server. Nothing of it is in this process' environment; see `store`."""
    with serve_s3() as server:
        yield server


@pytest.fixture
def store(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with an environment in which this process uses it, and with a cache of its own."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    return s3
