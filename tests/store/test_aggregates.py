"""A run in a store that keeps aggregates alone: rows and sums are the store's, for all workers, and gone at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacobian_core import pipeline
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.pairs import levels, merging
from jacobian_core.pairs.levels import list_sources, ready
from jacobian_core.pairs.summed import sums_folder
from tests.stand_ins.s3_server import BUCKET, S3Server
from tests.test_aggregates_run import keeping, run_all

THRESHOLDS = {"min_abs": 0.05}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(levels, "FAN_IN", 2)
    return tmp_path / "cache"


def test_the_same_parts_as_in_a_folder(store: S3Server, tiny: Path, tmp_path: Path, cache: Path) -> None:
    """Also where a worker stops after its first shard, and another, with an empty cache, goes on."""
    local = Lake(tmp_path / "lake")
    run_id = run_all(keeping(tiny, local.root, "aggregates", jacobian=THRESHOLDS)).run_id
    stored = Lake(f"s3://{BUCKET}/summed/lake")
    config = keeping(tiny, stored.root, "aggregates", jacobian=THRESHOLDS)
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    for block in pipeline.stage_blocks(run, run.shards[0], None, None, 5).blocks:
        pipeline.compute_block(run, block.block_id)
        pipeline.gather_pairs(run, block.block_id)
    assert sorted(source.group.level for source in list_sources(sums_folder(stored, run_id))) == [0, 2]
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert run_all(config).run_id == run_id
    manifests = [lake.manifest(run_id) for lake in (local, stored)]
    parts = [manifest.all_parts() for manifest in manifests if manifest is not None]
    assert parts[0] == parts[1]
    assert not [name for name in store.objects("summed/lake/") if name.startswith("_work/")]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_another_worker_is_faster(store: S3Server, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It merged the same group, and removed what this one was about to read: nothing to do, and nothing is lost."""
    lake = Lake(f"s3://{BUCKET}/faster/lake")
    config = keeping(tiny, lake.root, "aggregates")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    for block in pipeline.stage_blocks(run, run.shards[0], None, None, 2).blocks:
        pipeline.compute_block(run, block.block_id)
    folder = sums_folder(lake, run.run_id)
    (chosen,) = ready(list_sources(folder), {})
    assert merging.merge_ready(lake, run.run_id) == 1
    merged = [path.name for path in files.list_folder(folder)]
    monkeypatch.setattr(merging, "_next", lambda *_: chosen)
    assert merging.merge_ready(lake, run.run_id) == 0
    assert [path.name for path in files.list_folder(folder)] == merged
