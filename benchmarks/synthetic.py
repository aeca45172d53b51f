"""A run of made-up entries at pythia-70m's widths, written by the real part writer: what SQL and sums are measured on.

Each token has 32 of 16384 latents on each side, drawn without replacement with weights that fall as 1 / (rank + 10):
a few latents are active at most tokens and most are rare, as in trained SAEs. |J| is log-normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import JsonValue

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import POSITION_BITS, TABLES, document_id, token_id
from jacobian_core.corpus.blocks import make_block_id
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import BlockWriter
from jacobian_core.lake.runs import begin_run
from jacobian_core.work.tables import make_table

LATENTS, ACTIVE = 16384, 32
BLOCK_TOKENS, DOCUMENT_TOKENS = 4096, 512
ENTRIES_PER_TOKEN = ACTIVE * ACTIVE
RUN = "synthetic-000000000001"
_OFFSET, _DRAWS, _SPREAD, _CENTRE = 10, 128, 1.5, -6.0


@dataclass(frozen=True)
class _Draw:
    """Active latents of a block's tokens, ascending, and their J."""

    inputs: np.ndarray
    outputs: np.ndarray
    value: np.ndarray


def write_run(folder: Path, blocks: int) -> Lake:
    """A run in progress of so many blocks, all of them finished."""
    lake = Lake.create(folder)
    identity: dict[str, JsonValue] = {
        "artifact": {"n_in_latents": LATENTS, "n_out_latents": LATENTS},
        "model": {"layer": 3},
    }
    begin_run(lake, RUN, identity, {"name": "synthetic", "jacobian": {"scope": "active", "min_abs": 0.0}})
    rng = np.random.default_rng(0)
    for number in range(blocks):
        _write_block(lake, number, _draw(rng))
    return lake


def _draw(rng: np.random.Generator) -> _Draw:
    size = np.exp(_SPREAD * rng.standard_normal((BLOCK_TOKENS, ENTRIES_PER_TOKEN), np.float32) + _CENTRE)
    sign = rng.integers(0, 2, size.shape, np.int8) * 2 - 1
    return _Draw(_active(rng), _active(rng), (size * sign).astype(np.float32))


def _active(rng: np.random.Generator) -> np.ndarray:
    """Distinct latents of each token, ascending: the first `ACTIVE` different ones of many draws."""
    shares = np.cumsum(1.0 / (np.arange(LATENTS) + _OFFSET))
    drawn = np.searchsorted(shares, rng.random((BLOCK_TOKENS, _DRAWS)) * shares[-1])
    order = np.argsort(drawn, axis=1, kind="stable")
    ranked = np.take_along_axis(drawn, order, 1)
    again = np.concatenate([np.zeros((BLOCK_TOKENS, 1), bool), ranked[:, 1:] == ranked[:, :-1]], axis=1)
    first = np.argsort(np.where(again, _DRAWS, order), axis=1, kind="stable")[:, :ACTIVE]
    assert not np.take_along_axis(again, first, 1).any()
    return np.sort(np.take_along_axis(ranked, first, 1), axis=1)


def _write_block(lake: Lake, number: int, draw: _Draw) -> None:
    documents = BLOCK_TOKENS // DOCUMENT_TOKENS
    ids = np.array(
        [token_id(document_id(0, number * documents + n // DOCUMENT_TOKENS), 1 + n % DOCUMENT_TOKENS)
         for n in range(BLOCK_TOKENS)]
    )  # fmt: skip
    tables = _tables(ids, draw)
    rows = np.unique(ids >> POSITION_BITS)
    tables["documents"] = make_table(
        TABLES["documents"],
        {"document_id": rows, "shard": pa.repeat("00", documents), "row": rows, "source": None,
         "tokens": np.full(documents, DOCUMENT_TOKENS), "truncated": np.zeros(documents, bool)},
    )  # fmt: skip
    with BlockWriter(lake, RUN, make_block_id(0, number), LakeConfig(root=str(lake.root))) as writer:
        for name, table in tables.items():
            writer.write(name, table)
        writer.publish({})


def _tables(ids: np.ndarray, draw: _Draw) -> dict[str, pa.Table]:
    size = np.abs(draw.value).astype(np.float64)
    n, per = len(ids), np.full(len(ids), ACTIVE)
    both = np.concatenate([draw.inputs, draw.outputs], axis=1).ravel()
    tokens = {
        "token_id": ids, "document_id": ids >> POSITION_BITS, "position": ids & ((1 << POSITION_BITS) - 1),
        "vocab_id": per, "text": pa.repeat("x", n), "in_active": per, "out_active": per,
        "entries_total": per * ACTIVE, "entries_stored": per * ACTIVE, "abs_sum_total": size.sum(1),
        "abs_sum_stored": size.sum(1), "sq_sum_total": np.square(size).sum(1), "abs_max": np.abs(draw.value).max(1),
    }  # fmt: skip
    latents = {
        "token_id": np.repeat(ids, 2 * ACTIVE), "latent": both, "activation": np.ones(both.size),
        "side": pa.DictionaryArray.from_arrays(np.tile(np.repeat([0, 1], ACTIVE), n).astype(np.int8), ["in", "out"]),
        "margin": np.ones(both.size),
    }  # fmt: skip
    entries = {
        "token_id": np.repeat(ids, ENTRIES_PER_TOKEN), "out_latent": np.repeat(draw.outputs.ravel(), ACTIVE),
        "in_latent": np.tile(draw.inputs[:, None, :], (1, ACTIVE, 1)).ravel(), "value": draw.value.ravel(),
        "second_derivative": None,
    }  # fmt: skip
    found = {"tokens": tokens, "latents": latents, "jacobian_entries": entries}
    return {name: make_table(TABLES[name], columns) for name, columns in found.items()}
