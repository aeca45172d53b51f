"""Small lakes for the SQL tests: written by the real writers, from rows that a reader can check by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jacobian_core.config import LakeConfig, MartsConfig
from jacobian_core.contracts import TABLES, document_id, token_id
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo, RunManifest
from jacobian_core.lake.publish import BlockWriter, merge_totals, publish_part
from jacobian_core.lake.runs import begin_run, publish_run
from jacobian_core.pairs.above import pairs_above
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.pairs.threshold_counts import build_threshold_counts

CONFIG = LakeConfig(duckdb_memory="1GB")
N_IN, N_OUT = 8, 6
HAND_RUN = "hand-000000000001"
RANDOM_RUN = "random-000000000001"


@dataclass
class Token:
    """A token: activations by latent, and J by (out, in); pairs that are not in `jacobian` are 0."""

    row: int
    position: int
    text: str
    inputs: dict[int, float]
    outputs: dict[int, float]
    jacobian: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def token_id(self) -> int:
        return token_id(document_id(0, self.row), self.position)

    def values(self) -> dict[tuple[int, int], np.float32]:
        """Every J of the active block, in the order of the contract."""
        pairs = [(o, i) for o in sorted(self.outputs) for i in sorted(self.inputs)]
        return {pair: np.float32(self.jacobian.get(pair, 0.0)) for pair in pairs}


# J of three tokens, small enough to check every report by hand. All values are exact in binary.
#   token 'a': out 1, 2 x in 0, 3    token ' b': out 1 x in 3    token 'c' (second document): out 1 x in 0, 3
HAND = [
    Token(0, 1, "a", {0: 2.0, 3: 1.0}, {1: 4.0, 2: 1.0}, {(1, 0): 0.5, (1, 3): -0.25, (2, 0): 0.0, (2, 3): 2.0}),
    Token(0, 2, " b", {3: 3.0}, {1: 2.0}, {(1, 3): 0.75}),
    Token(2, 1, "c", {0: 1.0, 3: 1.0}, {1: 1.0}, {(1, 0): -1.5, (1, 3): 0.0}),
]


def tables_of(tokens: list[Token], min_abs: float = 0.0, second: bool = False) -> dict[str, pa.Table]:
    """The four tables of a block of tokens; entries with |J| < min_abs are dropped."""
    rows: dict[str, list[tuple[Any, ...]]] = {"tokens": [], "documents": [], "latents": [], "jacobian_entries": []}
    for row in sorted({t.row for t in tokens}):
        last = max(t.position for t in tokens if t.row == row)
        rows["documents"].append((document_id(0, row), "00.jsonl", row, "Made up", last, False))
    for t in tokens:
        every = t.values()
        kept = {pair: v for pair, v in every.items() if abs(v) >= min_abs}
        sizes = [abs(float(v)) for v in every.values()]
        rows["tokens"].append(
            (
                t.token_id, document_id(0, t.row), t.position, 7, t.text, len(t.inputs), len(t.outputs), len(every),
                len(kept), math.fsum(sizes), math.fsum(abs(float(v)) for v in kept.values()),
                math.fsum(s * s for s in sizes), max(sizes, default=0.0),
            )
        )  # fmt: skip
        for side, latents in (("in", t.inputs), ("out", t.outputs)):
            rows["latents"] += [(t.token_id, side, n, a, a / 2) for n, a in sorted(latents.items())]
        rows["jacobian_entries"] += [(t.token_id, o, i, v, v / 4 if second else None) for (o, i), v in kept.items()]
    return {name: rows_table(name, found) for name, found in rows.items()}


def rows_table(table: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = TABLES[table].schema()
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


IDENTITY: dict[str, Any] = {
    "artifact": {"n_in_latents": N_IN, "n_out_latents": N_OUT},
    "model": {"layer": 3},
}


QUALITY: dict[str, Any] = {"fvu_in": 0.125, "fvu_out": 0.25}


def config_of(min_abs: float = 0.0, top: int | None = None, name: str = "hand") -> dict[str, Any]:
    jacobian = {"scope": "active", "evaluate_at": "reconstruction", "derivatives": "first", "min_abs": min_abs}
    model = {"name": "toy", "weights": "model", "mlp_input": "hook_in"}
    sae = {"source": "folder", "location": "pairs/toy"}
    return {"name": name, "jacobian": {**jacobian, "top_entries_per_token": top}, "model": model, "sae": sae}


def write_blocks(lake: Lake, run_id: str, blocks: list[dict[str, pa.Table]], config: dict[str, Any]) -> None:
    """A run in progress whose blocks are done."""
    begin_run(lake, run_id, IDENTITY, config)
    (lake.work_folder(run_id) / "quality.json").write_text(json.dumps(QUALITY))
    for number, tables in enumerate(blocks):
        with BlockWriter(lake, run_id, f"0000-{number:06d}", CONFIG) as writer:
            for name, table in tables.items():
                writer.write(name, table)
            writer.publish({"compute": 1.0})


def marts(lake: Lake, run_id: str, thresholds: Sequence[float] = MartsConfig().thresholds) -> dict[str, list[PartInfo]]:
    """Publish what is made of a run's entries at its end; without thresholds, `pair_stats` alone."""
    above = pairs_above(lake, run_id, thresholds, ["active"])
    parts = {"pair_stats": [publish_part(lake, build_pair_stats(lake, run_id, CONFIG, above=above["active"]))]}
    if thresholds:
        parts["threshold_counts"] = [publish_part(lake, build_threshold_counts(lake, run_id, CONFIG, above))]
    return parts


def finish(lake: Lake, run_id: str, config: dict[str, Any], parts: dict[str, list[PartInfo]] | None = None) -> None:
    """Publish a run; by default with its marts."""
    if parts is None:
        parts = marts(lake, run_id)
    blocks = lake.markers(run_id)
    manifest = RunManifest(
        run_id=run_id, identity=IDENTITY, config=config, artifact=IDENTITY["artifact"], model=IDENTITY["model"],
        versions={}, quality=QUALITY, corpus={"skipped": {"broken": 2, "empty": 1}}, blocks=blocks,
        parts=parts, totals=merge_totals(blocks), seconds={}, created_utc=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )  # fmt: skip
    publish_run(lake, manifest)


def hand_lake(root: Path, run_id: str = HAND_RUN, min_abs: float = 0.0, complete: bool = True) -> Lake:
    """The run of `HAND`, in two blocks."""
    lake = Lake.create(root)
    config = config_of(min_abs)
    write_blocks(lake, run_id, [tables_of(HAND[:2], min_abs), tables_of(HAND[2:], min_abs)], config)
    if complete:
        finish(lake, run_id, config)
    return lake


def random_tokens(count: int, seed: int, n_in: int = N_IN, n_out: int = N_OUT, scale: float = 3.0) -> list[Token]:
    """Tokens with 0 to 3 active latents a side and values over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    tokens = []
    for n in range(count):
        sides = [rng.choice(width, rng.integers(0, 4), replace=False).tolist() for width in (n_in, n_out)]
        inputs, outputs = ({int(k): float(rng.random() + 0.1) for k in side} for side in sides)
        sizes = np.exp(scale * rng.standard_normal(len(inputs) * len(outputs)) - 4) * rng.choice([-1, 1])
        pairs = [(o, i) for o in outputs for i in inputs]
        jacobian = dict(zip(pairs, sizes.tolist(), strict=True))
        tokens.append(Token(n // 5, 1 + n % 5, f"t{n}", inputs, outputs, jacobian))
    return tokens


def random_lake(root: Path, run_id: str, tokens: list[Token], min_abs: float = 0.0, complete: bool = True) -> Lake:
    lake = Lake.create(root)
    config = config_of(min_abs, name="random")
    write_blocks(lake, run_id, [tables_of(tokens[n : n + 25], min_abs) for n in range(0, len(tokens), 25)], config)
    if complete:
        finish(lake, run_id, config)
    return lake
