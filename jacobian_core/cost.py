"""What a run took: how the time of its workers divides, and what a million tokens cost.

Seconds are those that the block markers and the aggregation record, added over workers. Staging, loading and waiting
are not in them, so a cost is a lower bound.
"""

from __future__ import annotations

from jacobian_core.lake.manifest import RunManifest

_HOUR = 3600
_SHOWN = 0.005
"""Of the time: what is less, and would read 0%, is left out."""
_MILLION = 1_000_000


def cost_facts(manifest: RunManifest) -> dict[str, object]:
    """Seconds of the run's workers, how they divide by stage, tokens and entries a second; cost where a price is set.

    `cost_per_million_tokens_at_least` is in the currency of `compute.cost_per_hour`. {} where there are no tokens or no
    seconds.
    """
    seconds, tokens = sum(manifest.seconds.values()), int(manifest.totals.get("tokens", 0))
    if not seconds or not tokens:
        return {}
    longest = sorted(manifest.seconds.items(), key=lambda item: -item[1])
    facts: dict[str, object] = {
        "worker_seconds": round(seconds, 2),
        "time_split": ", ".join(f"{stage} {took / seconds:.0%}" for stage, took in longest if took >= _SHOWN * seconds),
        "tokens_per_worker_second": round(tokens / seconds, 1),
        "entries_per_worker_second": round(int(manifest.totals.get("entries_stored", 0)) / seconds),
    }
    compute = manifest.config.get("compute")
    price = compute.get("cost_per_hour") if isinstance(compute, dict) else None
    if isinstance(price, (int, float)):
        facts["cost_per_million_tokens_at_least"] = round(price * seconds / _HOUR / tokens * _MILLION, 6)
    return facts
