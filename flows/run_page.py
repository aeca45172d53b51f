"""A run's page in the Prefect UI: the answer, the run in figures, its reports, and where it is from.

Whoever opens it while something is wrong looks for the figures first, so these stand above the reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows import ui
from flows.progress import short
from flows.results import ANSWER, answer_of, run_facts
from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    import pyarrow as pa

    from jacobian_core.lake.manifest import RunManifest

_ANSWER_THRESHOLDS = (0.0, 1e-3, 1e-2)
_NO_PRICE = "not known: set compute.cost_per_hour"


def run_page(lake: LakePath, run_id: str, tables: Mapping[str, pa.Table]) -> str:
    """The page in markdown; `tables` are the reports that the run ended with."""
    from jacobian_core.lake.layout import Lake

    manifest = Lake.open(lake).manifest(run_id)
    facts = run_facts(lake, run_id)
    figures = {"In figures": _rows(_figures(facts, manifest))}
    reports = dict(_for_page(name, table) for name, table in tables.items() if name != ANSWER)
    sources = {"Where it is from": _rows(_sources(facts, manifest))}
    return ui.run_page(f"Run {run_id}", _answer(tables), figures | reports | sources)


def _rows(facts: Mapping[str, object]) -> list[dict[str, object]]:
    return [{"": name, "value": value} for name, value in facts.items()]


def _figures(facts: Mapping[str, Any], manifest: RunManifest | None) -> dict[str, object]:
    """What the run has, took and cost."""
    summed = manifest is not None and any(block.entries_sha256 for block in manifest.blocks)
    shown: dict[str, object] = {
        "tokens": facts["tokens"],
        "entries, summed by pair and not kept" if summed else "stored entries": facts["entries_stored"],
        "size": short(facts["bytes"], "B"),
        "tokens a second of one worker": facts.get("tokens_per_worker_second"),
        "entries a second of one worker": facts.get("entries_per_worker_second"),
        "seconds of all workers": facts.get("worker_seconds"),
        "of these": facts.get("time_split"),
        "cost of a million tokens, at least": facts.get("cost_per_million_tokens_at_least", _NO_PRICE),
    }
    return shown | (_quality(manifest) if manifest is not None else {})


def _quality(manifest: RunManifest) -> dict[str, object]:
    from jacobian_core.request.drift import blocks_fvu

    quality: dict[str, Any] = dict(manifest.quality)
    blocks = blocks_fvu(manifest.blocks)
    skipped: Any = manifest.corpus.get("skipped")
    checks, drift = quality.get("checks") or {}, quality.get("drift") or {}
    shown: dict[str, object] = {}
    for side, name in (("in", "input"), ("out", "output")):
        said = f"{ui.figure(quality.get(f'fvu_{side}'))} at the start"
        if f"block_fvu_{side}" in blocks:  # blocks may be too short for it, or older than it
            middle, worst = blocks[f"block_fvu_{side}"], blocks[f"block_fvu_{side}_max"]
            said += f", {middle:.3g} in the median block, {worst:.3g} in the worst"
        shown[f"FVU of the {name} SAE"] = said
        if f"dead_{side}_share" in quality:
            shown[f"{name} latents never active"] = f"{quality[f'dead_{side}_share']:.1%}"
    return shown | {
        "documents and lines skipped": sum(skipped.values()) if isinstance(skipped, dict) else None,
        "checks that hold": checks.get("skipped", checks.get("run")),
        "unusual figures (drift)": drift.get("found"),
    }


def _sources(facts: Mapping[str, object], manifest: RunManifest | None) -> dict[str, object]:
    places = {name: facts[name] for name in ("run_id", "lake", "reports", "report_page")}
    if manifest is None:
        return places
    return places | {
        "pair": manifest.artifact.get("locator"),
        "pair's digest": manifest.artifact.get("digest"),
        "model": manifest.model.get("name"),
        "layer": manifest.model.get("layer"),
        **{f"version: {name}": version for name, version in manifest.versions.items()},
    }


def _for_page(name: str, table: pa.Table) -> tuple[str, list[dict[str, Any]]]:
    """A report as heading and formatted rows, without the columns that are the same in every row."""
    from jacobian_core.sql.render import format_value
    from jacobian_core.sql.reports import report_info

    info, rows = report_info(name), table.to_pylist()
    kept = [c for c in info.columns if len(rows) < 2 or len({row[c.name] for row in rows}) > 1]
    shown = [
        {
            c.name.replace("_", " "): format_value(
                row[c.name], c.unit == "share", not c.name.endswith(("_id", "_latent"))
            )
            for c in kept
        }
        for row in rows
    ]
    return f"{name}: {info.purpose}", shown


def _answer(tables: Mapping[str, pa.Table]) -> str:
    """The run's answers, in sentences."""
    return "\n\n".join(text for text in (answer_of(tables), _shares(tables["threshold_fractions"])) if text)


def _shares(threshold_fractions: pa.Table) -> str:
    """How many pairs have a large Jacobian, in a sentence."""
    rows = [row for row in threshold_fractions.to_pylist() if row["threshold"] in _ANSWER_THRESHOLDS]
    if not rows or not rows[0]["pairs_total"]:
        return ""
    largest = ", ".join(f"{row['share_max']:.3%} above {row['threshold']:g}" for row in rows)
    means = ", ".join(f"{row['share_mean_all_tokens']:.3%} above {row['threshold']:g}" for row in rows)
    return (
        f"Of all {rows[0]['pairs_total']:,} pairs of an input and an output latent, the largest |J| of a pair is: "
        f"{largest}. Its mean over all tokens is: {means}."
    )
