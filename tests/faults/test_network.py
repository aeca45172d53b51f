"""The network to the artifact goes half-way through a file: nothing is kept, and the run begins when it is back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.artifact.conftest import CANARY
from tests.faults.compare import leftovers
from tests.faults.conftest import Configure
from tests.faults.table import Harness, Tried, failure
from tests.stand_ins.hub_server import ModelRepository
from tests.stand_ins.wandb_server import serve_wandb

Note = Callable[[Tried], None]
ALWAYS = 1000


def test_the_hub_breaks_off(harness: Harness, hub: ModelRepository, tmp_path: Path, tried: Note) -> None:
    hub.cut_bodies = ALWAYS
    try:
        said, none = harness.runs.run(harness.config, tmp_path)
    finally:
        hub.cut_bodies = 0
    assert failure(said).kind == "ArtifactError"
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "lake").exists()
    tried(harness.run_again(tmp_path, none, "network to the artifact gone half-way (hub)"))


@pytest.mark.slow  # how a fetch fails is tested with the artifacts; here it costs another client's start
def test_wandb_breaks_off(harness: Harness, configure: Configure, mini: Path, tmp_path: Path, tried: Note) -> None:
    location = "ent/proj/pair"
    files = {path.name: path.read_bytes() for path in (mini / "hub").iterdir()}
    wandb = harness.configured(configure(sae={"source": "wandb", "location": f"{location}:v4"}))
    with serve_wandb(location, {"v4": files}, cut_bodies=ALWAYS, api_key=CANARY) as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": CANARY}
        said, none = harness.runs.run(wandb.config, tmp_path, environment=environment)
        assert failure(said).kind == "ArtifactError"
        assert CANARY not in failure(said).message
        assert leftovers(tmp_path) == []
        server.cut_bodies = 0
        name = "network to the artifact gone half-way (wandb)"
        tried(wandb.run_again(tmp_path, none, name, environment=environment))
