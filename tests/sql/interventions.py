"""Interventions and function shapes for the lakes of the SQL tests: made by hand, or at random but in agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jacobian_core.lake.layout import Lake
from tests.sql.lakes import HAND, HAND_RUN, RANDOM_RUN, Token, config_of, finish, rows_table, tables_of, write_blocks

A, B, C = (token.token_id for token in HAND)

# token, out, in, kind, in_before, in_after, J, J'', out_before, out_after, pre_change, left_selection, weight
HAND_INTERVENTIONS: list[tuple[Any, ...]] = [
    (A, 1, 0, "ablate", 2, 0, 0.5, 0.125, 4, 3.25, -0.75, False, 1),  # effect -0.75, predicted -1 and -0.75
    (A, 1, 0, "unit", 2, 1, 0.5, 0.125, 4, 3.5625, -0.4375, False, 1),
    (A, 2, 0, "ablate", 2, 0, 0, 0, 1, 0, -0.25, True, 3),  # effect -1, predicted 0
    (B, 1, 3, "ablate", 3, 0, 0.75, 0.1875, 2, 0, -2.5, True, 2),  # effect -2, predicted -2.25 and -1.40625
    (C, 1, 3, "ablate", 1, 0, 0, 0, 1, 1, 0, False, 1),  # effect 0, predicted 0
]

# token, out, in, J, in_before, in_max, points, out_range, linear_residual, jumprelu_residual, shape, scale-free, weight
HAND_SHAPES: list[tuple[Any, ...]] = [
    (A, 1, 0, 0.5, 2, 5, 100, 2, 0.015625, 2, "other", "linear", 1),
    (A, 2, 0, 0, 2, 5, 100, 1, 0.5, 0, "jumprelu", "jumprelu", 2),
    (C, 1, 3, 0, 1, 5, 100, 0.0078125, 0.00390625, 0.0078125, "linear", "other", 1),
]


def hand_causal_lake(root: Path) -> Lake:
    """The run of `HAND` with the rows above, in two blocks."""
    lake = Lake.create(root)
    blocks = []
    for tokens in (HAND[:2], HAND[2:]):
        ids = {token.token_id for token in tokens}
        tables = tables_of(tokens)
        tables["interventions"] = rows_table("interventions", [r for r in HAND_INTERVENTIONS if r[0] in ids])
        tables["function_shapes"] = rows_table("function_shapes", [r for r in HAND_SHAPES if r[0] in ids])
        blocks.append(tables)
    write_blocks(lake, HAND_RUN, blocks, config_of())
    finish(lake, HAND_RUN, config_of())
    return lake


def random_effects(tokens: list[Token], seed: int) -> list[tuple[Any, ...]]:
    """An ablation and a unit step of every pair: second order and noise, one in eight leaves; weights 1 to 9."""
    rng = np.random.default_rng(seed)
    rows = []
    for token in tokens:
        for (out, in_), value in token.values().items():
            before, t = np.float32(token.inputs[in_]), np.float32(token.outputs[out])
            weight = float(rng.integers(1, 10))
            for kind, after in (("ablate", np.float32(0)), ("unit", before - np.float32(1))):
                step = float(after) - float(before)
                change = np.float32(float(value) * step + float(value) / 8 * step**2 + rng.normal() / 50)
                left = bool(rng.random() < 1 / 8) or t + change <= 0
                t_after = np.float32(0) if left else t + change
                rows.append((token.token_id, out, in_, kind, before, after, value, value / 4, t, t_after, change, left,
                             weight))  # fmt: skip
    return rows


def random_causal_lake(root: Path, tokens: list[Token], run_id: str = RANDOM_RUN) -> tuple[Lake, pa.Table]:
    """A finished run of the tokens with second derivatives J / 4 and `random_effects`; also these, as a table."""
    lake = Lake.create(root)
    rows = random_effects(tokens, seed=1)
    blocks = []
    for start in range(0, len(tokens), 50):
        part = tokens[start : start + 50]
        ids = {token.token_id for token in part}
        tables = tables_of(part, second=True)
        tables["interventions"] = rows_table("interventions", [row for row in rows if row[0] in ids])
        blocks.append(tables)
    write_blocks(lake, run_id, blocks, config_of(name="random"))
    finish(lake, run_id, config_of(name="random"))
    return lake, rows_table("interventions", rows)
