"""A store for the session, and a run in miniature in it and in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from tests.stand_ins.s3_server import BUCKET, S3Server
from tests.tiny import run_pipeline, tiny_config


@pytest.fixture
def lake(store: S3Server, request: pytest.FixtureRequest) -> Lake:
    """A new lake in the store."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.nodeid.rpartition("/")[2])
    return Lake.create(f"s3://{BUCKET}/{name}")


@dataclass(frozen=True)
class Both:
    """The same run in a folder and in a store."""

    run_id: str
    local: Path
    stored: str
    cache: Path

    @property
    def prefix(self) -> str:
        """Of the store's keys."""
        return self.stored.removeprefix(f"s3://{BUCKET}/") + "/"


@pytest.fixture(scope="session")
def both(s3: S3Server, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Second derivatives and interventions too, in several blocks."""
    root = tmp_path_factory.mktemp("both")
    found = Both("", root / "lake", f"s3://{BUCKET}/shared/lake", root / "cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "JACOBIAN_FLOWS_CACHE": str(found.cache)}.items():
            patch.setenv(name, value)
        asked = {"jacobian": {"derivatives": "second"}, "interventions": {"kinds": ["ablate"], "token_share": 0.2}}
        runs = [
            run_pipeline(tiny_config(tiny, place, **asked, corpus={"max_tokens": 900}))  # type: ignore[arg-type]
            for place in (found.local, found.stored)
        ]
    assert runs[0].run_id == runs[1].run_id
    assert "AWS_ENDPOINT_URL" not in os.environ
    return Both(runs[0].run_id, found.local, found.stored, found.cache)
