"""The maintenance flow and the drift warnings on a real Prefect server, and the commands in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.drift import BlockWatch, recorded_drift
from flows.progress import Meter
from jacobian_core.config import QualityConfig
from jacobian_core.contracts import BLOCK_TABLES
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, to_json
from jacobian_core.lake.publish import merge_totals
from jacobian_core.lake.runs import begin_run
from tests.lake.builders import IDENTITY, RUN, write_run
from tests.maintenance.rows import seen
from tests.maintenance.test_gate import EVEN, block

ROOT = Path(__file__).parents[2]


def jacobian(*arguments: str, code: int = 0) -> Any:
    command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_the_commands_compact_export_and_prune(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    write_run(lake, 3)
    write_run(lake, 1, "demo-00000000000c")
    expected, at = seen(lake), ["--lake", str(lake.root)]
    found, tables = jacobian("compact", *at, "--grace", "0"), len(BLOCK_TABLES)
    assert [(each["run_id"], each["parts_before"], each["parts_after"]) for each in found["runs"]] == [
        ("demo-00000000000c", tables, tables), (RUN, 3 * tables, tables)
    ]  # fmt: skip
    assert found["swept"]["removed"] == 3 * tables
    assert seen(lake) == expected
    assert jacobian("export", RUN, str(tmp_path / "out"), *at)["run_id"] == RUN
    assert jacobian("prune", *at, "--keep", "1")["dry_run"] is True
    assert len(lake.runs()) == 2
    gone = jacobian("prune", *at, "--run", RUN, "--no-dry-run", "--grace", "0")
    assert gone["runs"] == [RUN]
    assert lake.runs() == ["demo-00000000000c"]
    assert "needs --keep or --run" in jacobian("prune", *at, code=2)
    assert [each["run_id"] for each in jacobian("runs", "--lake", str(tmp_path / "out"))] == [RUN]


def test_the_flow_compacts_every_finished_run(prefect_api: str, tmp_path: Path) -> None:
    from flows.compact import compact

    lake = Lake.create(tmp_path / "lake")
    write_run(lake, 3)
    begin_run(lake, "demo-00000000000d", IDENTITY, {})
    expected = seen(lake)
    assert compact(str(lake.root)) == 1
    assert seen(lake) == expected
    assert compact(str(lake.root)) == 0


def test_a_run_that_can_t_be_compacted_does_not_keep_back_the_others(prefect_api: str, tmp_path: Path) -> None:
    from flows.compact import compact
    from jacobian_core.errors import LakeError

    lake = Lake.create(tmp_path / "lake")
    write_run(lake, 2, "demo-00000000000a")
    write_run(lake, 2)
    (lake.root / lake.run_files("demo-00000000000a").parts["latents"][0].path).unlink()
    with pytest.raises(LakeError, match="not what the run's manifest says"):
        compact(str(lake.root))
    assert len(lake.run_files(RUN).parts["tokens"]) == 1
    assert len(lake.run_files("demo-00000000000a").parts["tokens"]) == 2


def watched(lake: Lake, markers: list[BlockMarker]) -> list[str]:
    """What is told while blocks with these totals are finished."""
    told: list[str] = []
    ear = SimpleNamespace(note=told.append, update=lambda _: None, close=lambda _: None)
    config = SimpleNamespace(quality=QualityConfig(drift_blocks=5))
    run: Any = SimpleNamespace(run_id=RUN, lake=str(lake.root), config=config)
    watch = BlockWatch(run, Meter(ear))
    for marker in markers:
        path = lake.marker_path(RUN, marker.block_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_json(marker))
        watch.add(marker.block_id)
    return told


def test_a_block_that_differs_is_warned_of_in_the_ui(prefect_api: str, tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client

    @flow(persist_result=False)
    def watching(name: str, more: int) -> list[str]:
        return watched(Lake.create(tmp_path / name), [*EVEN, *[block(30, latents=2400)][:more]])

    assert watching("even", 0) == []
    told = watching("odd", 1)
    assert [line.split(":")[:2] for line in told] == [["warning", " drift"]]
    with get_client(sync_client=True) as client:
        page = next(a for a in client.read_artifacts() if a.key == f"drift-{RUN}")
    assert "0000-000030" in str(page.data)


def test_what_the_gate_recorded_is_found_again(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    manifest = write_run(lake, 1)
    assert recorded_drift(lake.root, RUN) == []
    drift = {"found": 1, "first": [{"where": "run", "measure": "mean_abs", "value": 2.0, "usual": 1.0}]}
    lake.manifest_path(RUN).write_bytes(to_json(manifest.model_copy(update={"quality": {"drift": drift}})))
    assert [each.line() for each in recorded_drift(lake.root, RUN)] == [
        "drift: the run: mean abs is 2, in runs before 1"
    ]
    assert merge_totals(manifest.blocks) == manifest.totals
