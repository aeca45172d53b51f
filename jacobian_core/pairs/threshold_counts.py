"""The part of `threshold_counts` of a run: one file of a thousand rows, made when its pairs have been summed.

A run that does not keep entries has counts of all its tokens, and none by stage or batch: its sums say nothing of when
an entry came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import THRESHOLD_COUNTS
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.numerics.left_out import LeftOutCounts
from jacobian_core.numerics.stretches import BATCHES, PARTS, Stretches
from jacobian_core.pairs.above import MEASURES, PairsAbove
from jacobian_core.work.tables import make_table

RUN_BLOCK = "run"
"""Block id of the part."""
_NONE = -1
_Row = dict[str, Any]


def build_threshold_counts(
    lake: Lake, run_id: str, config: LakeConfig, above: Mapping[str, PairsAbove]
) -> PreparedPart:
    """Write what was counted while `pair_stats` was made; `above` has it by scope, 'active' for one.

    Raises LakeError where the part can't be written.
    """
    rows = [row for scope in above for row in _whole(scope, above[scope])]
    active = above["active"]
    if active.stages is not None:
        counts = active.left_out or active.stages.counts()
        for row, entries in zip([row for row in rows if row["scope"] == "active"], counts.entries, strict=True):
            row["entries"] = int(entries)
        rows += _stages(counts, active.stages.stretches, active.thresholds)
    rows.sort(key=lambda row: [row[name] for name in THRESHOLD_COUNTS.key])
    with PartWriter(lake, THRESHOLD_COUNTS, run_id, RUN_BLOCK, config) as writer:
        writer.write(make_table(THRESHOLD_COUNTS, _columns(rows)))
        return writer.finish()


def _whole(scope: str, above: PairsAbove) -> Iterator[_Row]:
    """The rows of all tokens, nothing left out."""
    for number, threshold in enumerate(above.thresholds):
        counts = {measure: int(above.of(measure)[number]) for measure in MEASURES}
        if scope != "active":
            counts.pop("pairs_mean_coactive")
        yield {**_key(scope, 1, _NONE, threshold), "tokens": above.tokens, **counts}


def _stages(counts: LeftOutCounts, stretches: Stretches, thresholds: Iterable[float]) -> Iterator[_Row]:
    """The rows of the stages, and of each batch left out; not those of `_whole`."""
    for stage, part in enumerate(PARTS):
        tokens = stretches.tokens[stage]
        for left_out in [_NONE] * (part > 1) + [batch for batch in range(BATCHES) if tokens[batch]]:
            seen = int(tokens.sum()) - (int(tokens[left_out]) if left_out != _NONE else 0)
            for number, threshold in enumerate(thresholds):
                found = (counts.mean[stage, left_out, number], counts.largest[stage, left_out, number])
                named = dict(zip(("pairs_mean_all_tokens", "pairs_max"), map(int, found), strict=True))
                yield {**_key("active", part, left_out, threshold), "tokens": seen, **named}


def _key(scope: str, part: int, left_out: int, threshold: float) -> _Row:
    return {"scope": scope, "part": part, "left_out": left_out, "threshold": float(threshold), "batches": BATCHES}


def _columns(rows: Sequence[_Row]) -> dict[str, Any]:
    return {
        field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in THRESHOLD_COUNTS.schema()
    }
