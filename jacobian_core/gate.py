"""The gate before a run is published: invariants that must hold stop it, drift is written down and warned of.

The checks of `sql/checks` read every row once more (0.7 s a million entries on a core), so a run above
`quality.checks_max_entries` is published unchecked but for its parts' contracts, and its manifest says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from jacobian_core.config import RunConfig
from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import RunManifest
from jacobian_core.lake.publish import total_problems
from jacobian_core.request.drift import KEPT, Drift, blocks_drift, run_drift
from jacobian_core.sql.checks import CheckResult, run_checks
from jacobian_core.sql.run_facts import RunSnapshot
from jacobian_core.sql.warehouse import connect_states

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

_STAYS = (
    "The run stays unpublished, its blocks are kept: look with `jacobian sql`, or set quality.checks_max_entries = 0."
)
_SAMPLE_CHARACTERS = 300


def gated(lake: Lake, manifest: RunManifest, config: RunConfig) -> RunManifest:
    """The manifest with the gate's findings in its `quality`: checks, dead latents and drift.

    Its parts must have their names already; no reader sees them yet. Raises LakeError that names the first check that
    fails, QueryError where the checks can't be run.
    """
    if problems := total_problems(manifest.totals):
        raise LakeError(f"run {manifest.run_id}: {problems[0]}.", _STAYS)
    quality: dict[str, Any] = dict(manifest.quality)
    entries, limit = _rows_to_check(manifest), config.quality.checks_max_entries
    if entries > limit:
        quality["checks"] = {"run": 0, "skipped": f"{entries} entries, quality.checks_max_entries = {limit}"}
    else:
        state = RunSnapshot(
            manifest.run_id, True, manifest.blocks, manifest.all_parts(), manifest, dict(manifest.quality)
        )
        with connect_states(lake, [state], config.lake.duckdb_memory) as connection:
            quality["checks"] = {"run": _refuse_failures(manifest.run_id, run_checks(connection, manifest.run_id))}
            quality |= dead_shares(connection, manifest.run_id)
    manifest = manifest.model_copy(update={"quality": quality})
    found = [*blocks_drift(manifest.blocks, config.quality), *run_drift(lake, manifest, config.quality)]
    for drift in found[:KEPT]:
        log.warning("%s", drift.line())
    return manifest.model_copy(update={"quality": quality | {"drift": _drift_record(found)}})


def _rows_to_check(manifest: RunManifest) -> int:
    """Stored entries; of a run that does not keep them, the rows of what is largest without them."""
    if not any(block.entries_sha256 for block in manifest.blocks):
        return int(manifest.totals.get("entries_stored", 0))
    parts = manifest.all_parts()
    return max(sum(part.rows for part in parts.get(table, [])) for table in ("tokens", "latents", "pair_stats"))


def _drift_record(found: list[Drift]) -> dict[str, Any]:
    return {"found": len(found), "first": [drift.record() for drift in found[:KEPT]]}


def _refuse_failures(run_id: str, results: list[CheckResult]) -> int:
    """How many checks passed; LakeError with the first that did not."""
    for result in results:
        if not result.passed:
            sample = " ".join(str(dict(result.sample[0])).split())[:_SAMPLE_CHARACTERS]
            broken = f"{result.violations} rows break '{result.invariant}', such as {sample}"
            raise LakeError(f"run {run_id}: check {result.name} failed: {broken}.", _STAYS)
    return len(results)


def dead_shares(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, float]:
    """The share of each SAE's latents that were active at no token of the run; {} where the widths are not known."""
    rows = connection.execute(_DEAD, {"run_id": run_id}).fetchall()
    if not rows or None in rows[0] or 0 in rows[0][:2]:
        return {}
    n_in, n_out, in_seen, out_seen = rows[0]
    return {"dead_in_share": 1 - in_seen / n_in, "dead_out_share": 1 - out_seen / n_out}


_DEAD = """
SELECT
    any_value(r.n_in_latents), any_value(r.n_out_latents),
    count(*) FILTER (WHERE a.side = 'in'), count(*) FILTER (WHERE a.side = 'out')
FROM runs AS r LEFT JOIN active_latents AS a USING (run_id)
WHERE r.run_id = $run_id
"""
