"""A lake with interventions whose effects follow a known law, and whose text tries to break out of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jacobian_core.contracts import document_id, token_id
from jacobian_core.lake.layout import Lake
from tests.sql.lakes import config_of, finish, rows_table, write_blocks

HOSTILE = "<script>alert('x')</script>\"&amp;\u202e\x07\n"
RUNS = ("jsae-00000000000a", "control-00000000000b")
WIDTH = 8
"""Latents of a token: enough for densities, few enough to be quick. The manifest says 8 in and 6 out."""
DOCUMENTS, TOKENS = 12, 20
_WORDS = [" the", " derivative", " of", " a", " latent", " is", " zero", ",", " and", " yet", " it", " moves", ".\n"]


def hostile_lake(root: Path, runs: tuple[str, ...] = RUNS, interventions: bool = True) -> Lake:
    """Finished runs; the first has smaller derivatives. About 1 in 3 tokens of the first document is hostile."""
    lake = Lake.create(root)
    for number, run_id in enumerate(runs):
        config = config_of(name=run_id.rpartition("-")[0])
        config["jacobian"] = {**config["jacobian"], "derivatives": "second"}
        draw = np.random.default_rng(number)
        blocks = [_block(draw, row, 0.3 + 0.6 * number, interventions) for row in range(DOCUMENTS)]
        write_blocks(lake, run_id, blocks, config)
        finish(lake, run_id, config)
    return lake


def _block(draw: np.random.Generator, row: int, size: float, interventions: bool) -> dict[str, pa.Table]:
    rows: dict[str, list[tuple[Any, ...]]] = {
        "tokens": [], "documents": [], "latents": [],
        "jacobian_entries": [], "interventions": [], "function_shapes": [],
    }  # fmt: skip
    document = document_id(0, row)
    rows["documents"].append((document, "00.jsonl", row, "Made <up>", TOKENS, False))
    for position in range(1, TOKENS + 1):
        token = token_id(document, position)
        inputs, outputs = np.sort(draw.choice(8, 5, replace=False)), np.sort(draw.choice(6, 4, replace=False))
        s, t = draw.gamma(2.0, 1.0, 5).astype(np.float32), draw.gamma(2.0, 0.6, 4).astype(np.float32)
        J = (size * draw.standard_normal((4, 5)) * 10 ** draw.uniform(-5, 0, (4, 5))).astype(np.float32)
        K = (J * draw.standard_normal((4, 5)) * 0.3).astype(np.float32)
        text = HOSTILE if row == 0 and position % 3 == 0 else str(draw.choice(_WORDS))
        magnitude = np.abs(J.astype(np.float64))
        total = float(np.sum(magnitude))
        squares = float(np.sum(magnitude**2))
        largest = float(magnitude.max())
        rows["tokens"].append((token, document, position, 7, text, 5, 4, 20, 20, total, total, squares, largest))
        rows["latents"] += [(token, "in", int(n), a, 0.1) for n, a in zip(inputs, s, strict=True)]
        rows["latents"] += [(token, "out", int(n), a, 0.1) for n, a in zip(outputs, t, strict=True)]
        for o in range(4):
            for i in range(5):
                place = (token, int(outputs[o]), int(inputs[i]))
                rows["jacobian_entries"].append((*place, J[o, i], K[o, i]))
                if interventions and (o + i) % 2 == 0:
                    rows["interventions"].append(
                        (*place, "ablate", *_effect(draw, s[i], t[o], float(J[o, i]), float(K[o, i])), 2.0)
                    )
                if interventions and (o + i) % 4 == 0:
                    shape = str(draw.choice(["linear", "jumprelu", "other"], p=[0.7, 0.2, 0.1]))
                    flat = "other" if shape == "linear" else shape
                    rows["function_shapes"].append(
                        (*place, J[o, i], s[i], max(5, s[i] + 1), 100, 0.5, 0.1, 0.2, shape, flat, 4.0)
                    )
    return {name: rows_table(name, found) for name, found in rows.items()}


def _effect(draw: np.random.Generator, s: float, t: float, J: float, K: float) -> tuple[Any, ...]:
    """An ablation that does what both derivatives say, and loses the selection 1 time in 25."""
    change = -J * s + 0.5 * K * s * s
    left = bool(draw.random() < 0.04 or t + change <= 0)
    return float(s), 0.0, J, K, float(t), 0.0 if left else float(t + change), change, left
