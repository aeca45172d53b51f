"""What SQL can know of a run beside its parts: one row a run, read from its manifest or, while it goes on, its request.

The rows are few and small, so views hold them as literals. A fact that a record does not hold is null, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import JsonValue

from jacobian_core.errors import QueryError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest, RunRequest, Totals, parts_by_table
from jacobian_core.lake.publish import merge_totals
from jacobian_core.request.drift import blocks_fvu


@dataclass(frozen=True)
class RunSnapshot:
    """One run at one moment: its finished blocks, its parts by table, and its record."""

    run_id: str
    complete: bool
    blocks: list[BlockMarker]
    parts: dict[str, list[PartInfo]]
    record: RunManifest | RunRequest
    quality: dict[str, JsonValue]

    def total(self, key: str) -> int | float:
        """A block total merged over all finished blocks, as the manifest merges them; 0 where there are none."""
        return self.totals.get(key, 0)

    @cached_property
    def totals(self) -> Totals:
        """Every block total, merged."""
        return merge_totals(self.blocks)

    @property
    def keeps_latents(self) -> bool:
        """Whether its finished blocks have their active latents."""
        return all(block.keeps_latents for block in self.blocks)

    @property
    def thresholded(self) -> bool:
        """Whether entries were dropped."""
        return self.total("entries_stored") != self.total("entries_total")

    def fact(self, section: str, *names: str) -> Any:
        """A nested value of a section of the record, None where any step is missing.

        A request keeps the sections that a manifest has at its top inside its identity.
        """
        value = getattr(self.record, section, None)
        if value is None:
            value = self.record.identity.get(section)
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def run_snapshot(lake: Lake, run_id: str) -> RunSnapshot | None:
    """The run as it is now; None if there is no such run."""
    request = lake.request(run_id)
    quality = _measured_quality(lake, run_id)
    blocks = lake.markers(run_id)
    manifest = lake.manifest(run_id)  # read last: blocks of a run that was published meanwhile are the manifest's
    if manifest is not None:
        return RunSnapshot(run_id, True, manifest.blocks, manifest.all_parts(), manifest, manifest.quality)
    if request is None:
        return None
    return RunSnapshot(run_id, False, blocks, parts_by_table(blocks), request, quality)


def known_run(lake: Lake, run_id: str) -> RunSnapshot:
    """The run as it is now; QueryError if there is no such run."""
    state = run_snapshot(lake, run_id)
    if state is None:
        raise QueryError(f"{lake.root} has no run {run_id}.", "`jacobian runs` lists the runs.")
    return state


def _measured_quality(lake: Lake, run_id: str) -> dict[str, JsonValue]:
    """What the quality gate of a run in progress measured; empty before it did."""
    data = files.read_bytes(lake.work_folder(run_id) / "quality.json")
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Fact:
    """One column of the `runs` view."""

    name: str
    type: str
    unit: str
    description: str
    of: Callable[[RunSnapshot], Any]


def _of(section: str, *names: str) -> Callable[[RunSnapshot], Any]:
    return lambda run: run.fact(section, *names)


def _over_blocks(key: str) -> Callable[[RunSnapshot], Any]:
    return lambda run: blocks_fvu(run.blocks).get(key)


def _total(key: str) -> Callable[[RunSnapshot], Any]:
    return lambda run: run.total(key)


def _quality(key: str) -> Callable[[RunSnapshot], Any]:
    return lambda run: run.quality.get(key)


def _artifact(run: RunSnapshot) -> str | None:
    """The pair's location, or those of its SAEs where they were named apart."""
    whole = run.fact("config", "sae", "location")
    if isinstance(whole, str):
        return whole
    sides = {"transcoder": "transcoder", "in": "input", "out": "output"}
    parts = {side: run.fact("config", "sae", name) for side, name in sides.items()}
    return "; ".join(f"{side} {_place(part)}" for side, part in parts.items() if isinstance(part, dict)) or None


def _place(part: dict[str, Any]) -> str:
    if part.get("release"):
        return f"{part['release']}/{part['id']}"
    return "/".join(str(part[name]) for name in ("location", "subfolder") if part.get(name))


def _skipped(run: RunSnapshot) -> int | None:
    skipped = run.fact("corpus", "skipped")
    return sum(skipped.values()) if isinstance(skipped, dict) else None


def _keep(run: RunSnapshot) -> str:
    keep: str = run.fact("config", "jacobian", "keep") or "entries"
    # Until version 4 of the lake's records 'aggregates' kept active latents.
    return "latents" if keep == "aggregates" and "latents" in run.parts else keep


def _created(run: RunSnapshot) -> str | None:
    return run.record.created_utc.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(run.record, RunManifest) else None


RUN_FACTS: tuple[Fact, ...] = (
    Fact("run_id", "VARCHAR", "", "the run", lambda run: run.run_id),
    Fact("name", "VARCHAR", "", "its configuration's name", _of("config", "name")),
    Fact("complete", "BOOLEAN", "", "false: it goes on, these are its blocks so far", lambda run: run.complete),
    Fact("created_utc", "TIMESTAMP", "UTC", "when it was finished; null: not yet", _created),
    Fact("model", "VARCHAR", "", "the language model", _of("config", "model", "name")),
    Fact("layer", "INTEGER", "", "block of the model whose MLP is analysed", _of("model", "layer")),
    Fact("weights", "VARCHAR", "", "'model', 'artifact' or 'randomised'", _of("config", "model", "weights")),
    Fact("mlp_input", "VARCHAR", "", "'hook_in' or 'normalized'", _of("config", "model", "mlp_input")),
    Fact("artifact", "VARCHAR", "", "where the SAE pair is from", _artifact),
    Fact("n_in_latents", "BIGINT", "latents", "width of the input SAE", _of("artifact", "n_in_latents")),
    Fact("n_out_latents", "BIGINT", "latents", "width of the output SAE", _of("artifact", "n_out_latents")),
    Fact("fvu_in", "DOUBLE", "", "share of variance the input SAE leaves unexplained", _quality("fvu_in")),
    Fact("fvu_out", "DOUBLE", "", "share of variance the output SAE leaves unexplained", _quality("fvu_out")),
    Fact("block_fvu_in", "DOUBLE", "", "median over blocks of the input SAE's FVU", _over_blocks("block_fvu_in")),
    Fact("block_fvu_out", "DOUBLE", "", "median over blocks of the output SAE's FVU", _over_blocks("block_fvu_out")),
    Fact("block_fvu_in_max", "DOUBLE", "", "largest input FVU of a block", _over_blocks("block_fvu_in_max")),
    Fact("block_fvu_out_max", "DOUBLE", "", "largest output FVU of a block", _over_blocks("block_fvu_out_max")),
    Fact("evaluate_at", "VARCHAR", "", "'reconstruction' or 'activation'", _of("config", "jacobian", "evaluate_at")),
    Fact("scope", "VARCHAR", "", "'active' or 'all_inputs'", _of("config", "jacobian", "scope")),
    Fact("keep", "VARCHAR", "", "'entries'; 'latents': entries were summed by pair and not kept; 'aggregates': nor "
         "were active latents", _keep),
    Fact("derivatives", "VARCHAR", "", "'first' or 'second'", _of("config", "jacobian", "derivatives")),
    Fact("min_abs", "DOUBLE", "", "entries with |J| below this were dropped", _of("config", "jacobian", "min_abs")),
    Fact(
        "top_entries_per_token", "BIGINT", "entries", "at most this many entries a token were kept; null: all",
        _of("config", "jacobian", "top_entries_per_token"),
    ),
    Fact("thresholded", "BOOLEAN", "", "true if entries were dropped", lambda run: run.thresholded),
    Fact("blocks", "BIGINT", "blocks", "finished blocks", lambda run: len(run.blocks)),
    Fact("documents", "BIGINT", "documents", "documents with at least one analysed token", _total("documents")),
    Fact("skipped_documents", "BIGINT", "documents", "lines and documents skipped; null: not known yet", _skipped),
    Fact("tokens", "BIGINT", "tokens", "analysed tokens", _total("tokens")),
    Fact("latents", "BIGINT", "rows", "active latents of all tokens: rows of `latents`, if kept", _total("latents")),
    Fact("entries_total", "BIGINT", "entries", "entries before thresholds", _total("entries_total")),
    Fact("entries_stored", "BIGINT", "entries", "entries that pass the thresholds", _total("entries_stored")),
    Fact("abs_sum_total", "DOUBLE", "", "sum of |J| before thresholds", _total("abs_sum_total")),
    Fact("abs_sum_stored", "DOUBLE", "", "sum of |J| of the entries that pass", _total("abs_sum_stored")),
    Fact("sq_sum_total", "DOUBLE", "", "sum of J^2 before thresholds", _total("sq_sum_total")),
    Fact(
        "bytes", "BIGINT", "bytes", "size of the run's parts",
        lambda run: sum(part.bytes for parts in run.parts.values() for part in parts),
    ),
)  # fmt: skip
