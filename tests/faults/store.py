"""The harness for a lake in an object store: every attempt's lake is fetched and held against an undisturbed folder."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.sql.warehouse_file import build_warehouse
from tests.faults.child import Done
from tests.faults.compare import visible_problems
from tests.faults.table import Harness, Tried
from tests.stand_ins.s3_server import BUCKET, S3Server


def prefix_of(place: Path) -> str:
    """Where an attempt's lake is in the bucket."""
    return f"faults/{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"


class StoreHarness(Harness):
    """The same faults, in a store; what a run must leave there is what it leaves in a folder."""

    def __init__(self, local: Harness, server: S3Server) -> None:
        self.__dict__.update(local.__dict__)
        self.server = server
        self.runs = copy.copy(local.runs)
        self.runs.environment = {**local.runs.environment, **server.environment, "AWS_MAX_ATTEMPTS": "2"}
        self.runs.lake_of = lambda place: f"s3://{BUCKET}/{prefix_of(place)}"

    def fetch(self, place: Path) -> Path:
        """The lake as it is now, in a folder, with views of its own instead of those over the store."""
        folder = place / "lake"
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in self.server.objects(f"{prefix_of(place)}/").items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def run_again(self, place: Path, computed: int, name: str, **options: Any) -> Tried:
        """As for a folder."""
        assert visible_problems(self.fetch(place), self.lake) == []
        said, more = self.runs.run(self.config, place, **options)
        assert isinstance(said, Done), said
        return self.check(place, computed + more - self.blocks, name)

    def check(self, place: Path, recomputed: int, fault: str) -> Tried:
        """As for a folder; no lock files are left there, and no part of an upload."""
        folder = self.fetch(place)
        assert (folder / "warehouse.duckdb").is_file()
        lake = Lake.open(folder)
        assert list(folder.rglob("*.lock")) == []
        build_warehouse(lake)
        uploads = self.server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        assert uploads == []
        return super().check(place, recomputed, f"{fault} (object store)")


@contextmanager
def in_this_process(server: S3Server, cache: Path) -> Iterator[None]:
    """Use the store from here too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, "JACOBIAN_FLOWS_CACHE": str(cache)}.items():
            patch.setenv(name, value)
        yield
