"""Has something changed that no contract forbids? A block against its run, and a run against those before it.

A broken tokenizer, a shard of another language or a wrong checkpoint give valid rows; what they shift is the figures
here. Drift is a warning, never a refusal: text is uneven, and a limit that stops a month's work must not hang on it. So
limits are wide (robust deviations from the median, with a floor), and everything found is kept in the run's manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from jacobian_core.config import QualityConfig
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, RunManifest, Totals

Measures = dict[str, float]

FLOOR = 0.05
"""Share of the median that counts as no deviation at all, however even the other blocks are."""
KEPT = 20
"""Warnings that a manifest keeps; it says how many there were."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
_DOCUMENT_SPREAD = 4.0
"""How much wider the limit for tokens per document is: a block can be one long document or a hundred short ones."""


@dataclass(frozen=True)
class Drift:
    """One figure that is far from what it was; `where` is a block id, or 'run'."""

    where: str
    measure: str
    value: float
    usual: float

    def line(self) -> str:
        """The finding in words."""
        subject = "the run" if self.where == "run" else f"block {self.where}"
        before = "in runs before" if self.where == "run" else "usually in this run"
        return f"drift: {subject}: {self.measure.replace('_', ' ')} is {self.value:.4g}, {before} {self.usual:.4g}"

    def record(self) -> dict[str, Any]:
        """The finding as the manifest keeps it."""
        return {"where": self.where, "measure": self.measure, "value": self.value, "usual": self.usual}


FVU_MEASURES = ("fvu_in", "fvu_out")
"""Figures of a marker's `quality` that a block is judged by."""


def block_measures(block: BlockMarker) -> Measures:
    """FVU of both SAEs, mean |J|, active latents per token, tokens per document; none where there is nothing."""
    return total_measures(block.totals) | {k: block.quality[k] for k in FVU_MEASURES if k in block.quality}


def total_measures(totals: Totals) -> Measures:
    """Mean |J|, active latents per token, tokens per document, of a block or a run; none where there is nothing."""
    measures = {
        "mean_abs": _ratio(totals, "abs_sum_total", "entries_total"),
        "active_latents_per_token": _ratio(totals, "latents", "tokens"),
        "tokens_per_document": _ratio(totals, "tokens", "documents"),
    }
    return {name: value for name, value in measures.items() if value is not None}


def _ratio(totals: Totals, above: str, below: str) -> float | None:
    divisor = totals.get(below, 0)
    return float(totals.get(above, 0)) / divisor if divisor else None


@dataclass
class DriftWatch:
    """Compares each block with those that this process has seen before it; cheap enough to ask after every block."""

    limits: QualityConfig
    _seen: dict[str, list[float]] = field(default_factory=dict)

    def add(self, block: BlockMarker) -> list[Drift]:
        """What is unusual in this block; nothing before `quality.drift_blocks` blocks were seen."""
        found = []
        for name, value in block_measures(block).items():
            before = self._seen.setdefault(name, [])
            if len(before) >= self.limits.drift_blocks and _is_far(name, value, before, self.limits):
                found.append(Drift(block.block_id, name, value, median(before)))
            before.append(value)
        return found


def blocks_drift(blocks: Sequence[BlockMarker], limits: QualityConfig) -> list[Drift]:
    """The blocks that are far from the median of all; the same whoever computed them, in whatever order."""
    measured = {block.block_id: block_measures(block) for block in blocks}
    found = []
    for name in sorted({name for measures in measured.values() for name in measures}):
        values = [measures[name] for measures in measured.values() if name in measures]
        if len(values) < limits.drift_blocks:
            continue
        for block_id, measures in measured.items():
            if name in measures and _is_far(name, measures[name], values, limits):
                found.append(Drift(block_id, name, measures[name], median(values)))
    return sorted(found, key=lambda drift: (drift.where, drift.measure))


def _is_far(name: str, value: float, others: Sequence[float], limits: QualityConfig) -> bool:
    if limits.drift_deviations is None:
        return False
    middle = median(others)
    deviation = max(_NORMAL * median(abs(other - middle) for other in others), FLOOR * abs(middle))
    wider = _DOCUMENT_SPREAD if name == "tokens_per_document" else 1.0
    return abs(value - middle) > limits.drift_deviations * wider * deviation


def blocks_fvu(blocks: Sequence[BlockMarker]) -> Measures:
    """Median and largest FVU of a run's blocks, by side; nothing of blocks that did not measure it."""
    measures: Measures = {}
    for name in FVU_MEASURES:
        if values := [block.quality[name] for block in blocks if name in block.quality]:
            measures |= {f"block_{name}": median(values), f"block_{name}_max": max(values)}
    return measures


def run_measures(manifest: RunManifest) -> Measures:
    """What runs are compared by: totals, FVU at the start and over the blocks, the share of latents that never fired.

    The largest FVU of a block is left out: the more blocks, the larger it is.
    """
    names = ("fvu_in", "fvu_out", "dead_in_share", "dead_out_share")
    quality: Mapping[str, Any] = manifest.quality
    known = {name: float(quality[name]) for name in names if isinstance(quality.get(name), (int, float))}
    over_blocks = {name: value for name, value in blocks_fvu(manifest.blocks).items() if not name.endswith("_max")}
    return total_measures(manifest.totals) | known | over_blocks


def run_drift(lake: Lake, manifest: RunManifest, limits: QualityConfig) -> list[Drift]:
    """What is unusual in a run, compared with the median of earlier finished runs of the same pair, model and settings.

    A figure is unusual that differs by more than the factor `quality.drift_ratio` and by more than 0.01.
    """
    before = [run_measures(other) for other in _comparable(lake, manifest)]
    found = []
    for name, value in run_measures(manifest).items():
        earlier = [measures[name] for measures in before if name in measures]
        if limits.drift_ratio is None or not earlier:
            continue
        usual = median(earlier)
        low, high = sorted((abs(value), abs(usual)))
        if high > limits.drift_ratio * low and (name == "mean_abs" or high - low > _SMALLEST):
            found.append(Drift("run", name, value, usual))
    return found


_SMALLEST = 0.01


def _comparable(lake: Lake, manifest: RunManifest) -> list[RunManifest]:
    """Earlier finished runs that differ in nothing but their text."""
    sections = ("artifact", "model", "jacobian")
    wanted = [manifest.identity.get(section) for section in sections]
    found = [lake.manifest(run_id) for run_id in lake.runs() if run_id != manifest.run_id]
    return [other for other in found if other and [other.identity.get(section) for section in sections] == wanted]
