"""How many pairs of `pair_stats` are above thresholds, by each of the means in use: counted as its rows are written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.validate import open_part
from jacobian_core.numerics.left_out import LeftOutCounts
from jacobian_core.numerics.masses import levels
from jacobian_core.pairs.counting import Stages
from jacobian_core.pairs.latent_stats import summed_by_out_latent
from jacobian_core.sql.run_facts import known_run

MEASURES = ("pairs_mean_all_tokens", "pairs_mean_out_active", "pairs_mean_coactive", "pairs_max")
_READERS = 4


@dataclass
class PairsAbove:
    """Counts by measure and threshold, of `tokens` tokens; several threads may add rows of `pair_stats` at once.

    `stages`, and what is `left_out` at each of them, are there once sums were made of entries.
    """

    thresholds: Float64[np.ndarray, "thresholds"]
    tokens: int
    out_active: Int64[np.ndarray, "n_out"]
    stages: Stages | None = None
    left_out: LeftOutCounts | None = None
    counts: dict[str, Int64[np.ndarray, "thresholds"]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, rows: pa.Table) -> None:
        """Count these pairs, none of which was counted before."""
        total, coactive, largest = (rows.column(name).to_numpy() for name in ("sum_abs", "n_coactive", "max_abs"))
        active = self.out_active[rows.column("out_latent").to_numpy()]
        with np.errstate(divide="ignore", invalid="ignore"):  # a mean over no tokens is none, and above nothing
            values = (total / self.tokens, total / active, total / coactive, largest.astype(np.float64))
        for measure, value in zip(MEASURES, values, strict=True):
            level = np.bincount(levels(np.nan_to_num(value, posinf=0), self.thresholds), minlength=self._length)
            with self._lock:
                self.counts[measure] = self.counts.get(measure, 0) + level[:0:-1].cumsum()[::-1]

    def add_stages(self, counts: LeftOutCounts) -> None:
        """Add what was counted at each stage of other pairs."""
        with self._lock:
            if self.left_out is None:
                self.left_out = counts
            else:
                self.left_out.merge(counts)

    @property
    def _length(self) -> int:
        return len(self.thresholds) + 1

    def of(self, measure: str) -> Int64[np.ndarray, "thresholds"]:
        """The counts of a measure."""
        return self.counts.get(measure, np.zeros(len(self.thresholds), np.int64))


def pairs_above(lake: Lake, run_id: str, thresholds: Sequence[float], scopes: Sequence[str]) -> dict[str, PairsAbove]:
    """Counts of nothing for each scope of a run; raises QueryError where there is no such run."""
    state = known_run(lake, run_id)
    counted = tokens_by_out_latent(lake, state.blocks) if state.keeps_latents else summed_by_out_latent(lake, state)
    out_active, tokens = counted, int(state.total("tokens"))
    return {scope: PairsAbove(np.array(thresholds, np.float64), tokens, out_active) for scope in scopes}


def tokens_by_out_latent(lake: Lake, blocks: Sequence[BlockMarker]) -> Int64[np.ndarray, "n_out"]:
    """At how many tokens of these blocks each output latent was active."""
    with ThreadPoolExecutor(_READERS) as pool:
        counted = list(pool.map(lambda block: _out_latents(lake, block), blocks))
    found = np.zeros(max((len(each) for each in counted), default=1), np.int64)
    for each in counted:
        found[: len(each)] += each
    return found


def _out_latents(lake: Lake, block: BlockMarker) -> Int64[np.ndarray, "n_out"]:
    path = lake.root / block.parts["latents"].path
    with open_part(path) as file, files.lake_errors(path, "read the file"):
        rows = file.read(columns=["side", "latent"])
    return np.bincount(rows.column("latent").to_numpy()[pc.equal(rows.column("side"), pa.scalar("out")).to_numpy()])
