"""The end of a run: its pairs aggregated, its manifest written, the warehouse refreshed.

Several workers may come to the end of the same run. The first one's manifest stands; the others find it, at whatever
moment it appears, and report the same run as finished instead of failing on what the first one cleared away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jacobian_core.errors import LakeError, QueryError
from jacobian_core.gate import gated
from jacobian_core.lake import files, publish, runs
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest
from jacobian_core.lake.parts import PreparedPart
from jacobian_core.pairs.sorting import forget_rows
from jacobian_core.sql.warehouse_file import build_warehouse

if TYPE_CHECKING:
    from jacobian_core.step_values import RunRef

_VERSIONED = ("jacobian-flows", "torch", "transformer-lens", "transformers", "sae-lens", "pyarrow", "duckdb", "numpy")


def finish_run(run: RunRef, skipped: Mapping[str, int]) -> RunManifest:
    """Publish the run, unless another worker did; returns the manifest that stands. See `pipeline.publish_run`."""
    lake = Lake(run.lake)
    manifest = lake.manifest(run.run_id) or _published(lake, run, skipped)
    runs.publish_run(lake, manifest)  # for a run that another one published, only clears what this worker left
    forget_rows(lake, run.run_id)
    build_warehouse(lake)
    return manifest


def _published(lake: Lake, run: RunRef, skipped: Mapping[str, int]) -> RunManifest:
    """The run's manifest, its pairs aggregated and published; another worker's where that appears meanwhile."""
    started = time.perf_counter()
    try:
        request, quality = lake.request(run.run_id), _quality(lake, run.run_id)
        if request is None:
            raise LakeError(f"{lake.root}: run {run.run_id} was not begun.", "Start it with `jacobian run`.")
        prepared = _aggregated(lake, run)
    except (LakeError, QueryError):
        manifest = lake.manifest(run.run_id)
        if manifest is None:
            raise
        return manifest
    parts: dict[str, list[PartInfo]] = {}
    for part in prepared:
        parts.setdefault(part.table, []).append(publish.publish_part(lake, part))
    blocks, identity = lake.markers(run.run_id), request.identity
    manifest = RunManifest(
        run_id=run.run_id,
        identity=identity,
        config=run.config.model_dump(mode="json"),
        artifact={**_section(identity, "artifact"), "locator": run.artifact.locator},
        model={**_section(identity, "model"), "name": run.config.model.name},
        versions={name: version(name) for name in _VERSIONED},
        quality=quality,
        corpus={**_section(identity, "corpus"), "skipped": dict(skipped)},
        blocks=blocks,
        parts=parts,
        totals=publish.merge_totals(blocks),
        seconds={**_merge_seconds(blocks), "aggregate": time.perf_counter() - started},
        created_utc=datetime.now(UTC),
    )
    return gated(lake, manifest, run.config)


def _aggregated(lake: Lake, run: RunRef) -> list[PreparedPart]:
    """The parts of `pair_stats`, `latent_stats` and `threshold_counts`, written and not yet published."""
    from jacobian_core.pairs.above import pairs_above
    from jacobian_core.pairs.build import build_pair_stats
    from jacobian_core.pairs.threshold_counts import build_threshold_counts

    config, scopes = run.config, ("active", "all_inputs")[: 1 + (run.config.jacobian.scope == "all_inputs")]
    above = pairs_above(lake, run.run_id, config.marts.thresholds, scopes) if config.marts.thresholds else {}
    prepared: list[PreparedPart] = []
    try:
        prepared.append(build_pair_stats(lake, run.run_id, config.lake, above=above.get("active")))
        if config.jacobian.scope == "all_inputs":
            from jacobian_core.work.groups import prepare_pair_stats

            prepared.append(prepare_pair_stats(run, above.get("all_inputs")))
        if not config.jacobian.keeps_latents:
            from jacobian_core.pairs.latent_stats import build_latent_stats

            prepared.append(build_latent_stats(lake, run.run_id, config.lake))
        if above:
            prepared.append(build_threshold_counts(lake, run.run_id, config.lake, above))
    except BaseException:
        publish.discard(prepared)
        raise
    return prepared


def _section(identity: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = identity.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _merge_seconds(blocks: Sequence[BlockMarker]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for block in blocks:
        for stage, seconds in block.seconds.items():
            merged[stage] = merged.get(stage, 0.0) + seconds
    return merged


def _quality(lake: Lake, run_id: str) -> dict[str, Any]:
    content = files.read_bytes(lake.work_folder(run_id) / "quality.json")
    found: dict[str, Any] = json.loads(content) if content is not None else {}
    return found
