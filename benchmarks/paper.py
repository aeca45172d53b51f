"""Benchmark `paper`: what 100 million and 10 billion tokens would take, from costs measured here at pythia-70m's shape.

Each setting is calibrated as `jacobian plan` does it, by running its first blocks, and extrapolated by the same model
(`request/unit_costs.py`). Nothing here was run at that size. Prices are assumptions, below and in the figures' names.
Checks before publication are left out of the time: above `quality.checks_max_entries` a run has none.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite import Figures, Options, Results

if TYPE_CHECKING:
    from jacobian_core.request.unit_costs import UnitCosts

TOKENS = (100_000_000, 10_000_000_000)
SETTINGS: dict[str, dict[str, object]] = {
    "everything": {},
    "top 32 a token": {"top_entries_per_token": 32},
    "latents": {"keep": "latents"},
    "aggregates": {"keep": "aggregates"},
    "no entries": {"min_abs": 1e30},
}
"""Changes of `jacobian`: of 1024 entries a token all, the 32 largest, sums by pair beside latents, sums alone, and none
(tokens and latents)."""
_CALIBRATED = 24_000
_SHARDS = 30
"""As many as the Pile has."""
_TB, _HOUR, _MONTH_HOURS = 1e12, 3600.0, 720.0


@dataclass(frozen=True)
class Prices:
    """Assumed prices, in any currency: an hour of a machine like this one, a terabyte kept for a month."""

    machine_hour: float = 0.1
    terabyte_month: float = 23.0


def measure(options: Options) -> Results:
    """A section for each setting and number of tokens."""
    del options
    return {
        f"paper {setting} {tokens:.0e}": figures
        for setting, changes in SETTINGS.items()
        for tokens, figures in _on_paper(changes, Prices()).items()
    }


def _in_shards(units: UnitCosts, shards: int) -> UnitCosts:
    """The same costs where the text is in so many shards: sums are merged within each."""
    merging = units.merging
    return units if merging is None else replace(units, merging=replace(merging, shards=shards))


def _on_paper(changes: dict[str, object], prices: Prices) -> dict[int, Figures]:
    from benchmarks.growth import config_of
    from jacobian_core.request.plan import calibrate, unit_costs

    with tempfile.TemporaryDirectory(prefix="jacobian-bench-") as folder:
        config = config_of("pythia-70m", _CALIBRATED, Path(folder))
        config = config.model_copy(update={"jacobian": config.jacobian.model_copy(update=changes)})
        units = unit_costs(config, calibrate(config))
    found = {}
    for tokens in TOKENS:
        cost = units.cost(tokens)
        hours = cost.total_seconds / _HOUR
        found[tokens] = {
            "entries": cost.entries, "pairs": cost.pairs, "terabytes": cost.bytes / _TB, "machine_hours": hours,
            "work_folder_terabytes": cost.work_bytes / _TB, "pair_terabytes": cost.pair_bytes / _TB,
            f"work_folder_terabytes_of_{_SHARDS}_shards": _in_shards(units, _SHARDS).cost(tokens).work_bytes / _TB,
            "bytes_per_token_beside_entries": cost.other_bytes / tokens,
            "machines_for_30_days": hours / _MONTH_HOURS,
            "share_of_time_in_sums": (cost.seconds["sums"] + cost.seconds.get("merges", 0.0)) / cost.total_seconds,
            f"money_at_{prices.machine_hour}_an_hour": hours * prices.machine_hour,
            f"money_a_month_at_{prices.terabyte_month}_a_terabyte": cost.bytes / _TB * prices.terabyte_month,
        }  # fmt: skip
    return found
