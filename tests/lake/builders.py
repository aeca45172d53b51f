"""Small, consistent lakes: rows whose counts and sums fit each other, and strategies for rows of any table."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import PAIR_STATS, TABLES, Column, Table, document_id, token_id
from jacobian_core.corpus.blocks import make_block_id
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest
from jacobian_core.lake.parts import PartWriter
from jacobian_core.lake.publish import BlockWriter, merge_totals, publish_part
from jacobian_core.lake.runs import begin_run, publish_run

RUN = "demo-0123456789ab"
IDENTITY: dict[str, Any] = {"artifact": "a" * 64, "jacobian": {"min_abs": 0.0}}
CONFIG = LakeConfig(root="unused")
SMALL_GROUPS = LakeConfig.model_construct(row_group_rows=3, compression_level=3)
"""Row groups smaller than a user may ask for, so that few rows make several."""


def example_tables(shard: int = 0, number: int = 0, tokens: int = 3, latents: int = 2) -> dict[str, pa.Table]:
    """One document of `tokens` tokens with `latents` active on each side, and every entry stored."""
    rng = np.random.default_rng([shard, number])
    document = document_id(shard, number)
    ids = [token_id(document, position) for position in range(1, tokens + 1)]
    values = rng.normal(size=(tokens, latents * latents)).astype(np.float32)
    absolute = np.abs(values.astype(np.float64))
    pairs = [(out, in_) for out in range(latents) for in_ in range(latents)]
    columns: dict[str, dict[str, Any]] = {
        "tokens": {
            "token_id": ids,
            "document_id": [document] * tokens,
            "position": list(range(1, tokens + 1)),
            "vocab_id": rng.integers(0, 100, tokens),
            "text": [f" t{i}" for i in range(tokens)],
            "in_active": [latents] * tokens,
            "out_active": [latents] * tokens,
            "entries_total": [latents**2] * tokens,
            "entries_stored": [latents**2] * tokens,
            "abs_sum_total": absolute.sum(axis=1),
            "abs_sum_stored": absolute.sum(axis=1),
            "sq_sum_total": (absolute**2).sum(axis=1),
            "abs_max": np.abs(values).max(axis=1, initial=0),
        },
        "documents": {
            "document_id": [document],
            "shard": [f"{shard:02d}.jsonl"],
            "row": [number],
            "source": [None],
            "tokens": [tokens],
            "truncated": [False],
        },
        "latents": {
            "token_id": np.repeat(ids, 2 * latents),
            "side": (["in"] * latents + ["out"] * latents) * tokens,
            "latent": list(range(latents)) * 2 * tokens,
            "activation": rng.uniform(0.1, 3, 2 * latents * tokens),
            "margin": rng.uniform(0, 1, 2 * latents * tokens),
        },
        "jacobian_entries": {
            "token_id": np.repeat(ids, len(pairs)),
            "out_latent": [out for out, _ in pairs] * tokens,
            "in_latent": [in_ for _, in_ in pairs] * tokens,
            "value": values.ravel(),
            "second_derivative": [None] * values.size,
        },
    }
    return {name: table_of(name, data) for name, data in columns.items()}


def table_of(name: str, columns: dict[str, Any]) -> pa.Table:
    """Columns as an Arrow table with the contract's schema."""
    schema = TABLES[name].schema()
    return pa.Table.from_arrays([pa.array(columns[f.name], type=f.type) for f in schema], schema=schema)


def write_block(lake: Lake, number: int, run_id: str = RUN, **shape: int) -> BlockMarker:
    """Compute (here: make up) and publish one block."""
    with BlockWriter(lake, run_id, make_block_id(0, number), CONFIG) as block:
        for name, data in example_tables(0, number, **shape).items():
            block.write(name, data)
        return block.publish({"write": 0.5})


def write_pair_stats(lake: Lake, run_id: str = RUN) -> PartInfo:
    """Publish a run-level part with one pair."""
    row = {"scope": ["active"], "out_latent": [0], "in_latent": [0], "n_coactive": [1], "n_stored": [1]}
    row |= {name: [0.5] for name in ("sum", "sum_abs", "sum_sq", "max_abs")}
    with PartWriter(lake, PAIR_STATS, run_id, "active", CONFIG) as writer:
        writer.write(table_of("pair_stats", row))
        return publish_part(lake, writer.finish())


def manifest_of(lake: Lake, pair_stats: PartInfo, run_id: str = RUN, **changes: Any) -> RunManifest:
    """The manifest of a run over the blocks that are done."""
    blocks = lake.markers(run_id)
    content: dict[str, Any] = {name: {} for name in ("config", "artifact", "model", "versions", "quality", "corpus")}
    content |= {"run_id": run_id, "identity": IDENTITY, "blocks": blocks, "parts": {"pair_stats": [pair_stats]}}
    content |= {"totals": merge_totals(blocks), "seconds": {}, "created_utc": datetime(2025, 1, 1, tzinfo=UTC)}
    return RunManifest(**(content | changes))


def write_run(lake: Lake, blocks: int = 2, run_id: str = RUN) -> RunManifest:
    """A whole run; goes on where an earlier attempt stopped."""
    if begin_run(lake, run_id, IDENTITY, {}) == "done":
        manifest = lake.manifest(run_id)
        assert manifest is not None
        return manifest
    done = set(lake.done_blocks(run_id))
    for number in range(blocks):
        if make_block_id(0, number) not in done:
            write_block(lake, number, run_id)
    manifest = manifest_of(lake, write_pair_stats(lake, run_id), run_id)
    publish_run(lake, manifest)
    return manifest


def snapshot(root: Path) -> dict[str, str]:
    """Every file under a folder with the digest of its bytes."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def temporaries(root: Path) -> list[str]:
    """Names of the temporary files under a folder."""
    return [path.name for path in root.rglob(".tmp-*")]


_RANGES = {"int16": 15, "int32": 31, "int64": 63, "uint32": 32}


def _values(column: Column) -> st.SearchStrategy[Any]:
    """Any valid value of a column."""
    if column.allowed:
        values: st.SearchStrategy[Any] = st.sampled_from(column.allowed)
    elif column.type in _RANGES:
        top = 2 ** _RANGES[column.type]
        bottom = -top if column.type != "uint32" else 0
        values = st.integers(bottom if column.minimum is None else int(column.minimum), top - 1)
    elif column.type in ("float32", "float64"):
        width = 32 if column.type == "float32" else 64
        values = st.floats(min_value=column.minimum, allow_nan=False, allow_infinity=False, width=width)
    elif column.type == "bool":
        values = st.booleans()
    else:
        values = st.text(max_size=8)
    return st.none() | values if column.nullable else values


@st.composite
def rows_of(draw: st.DrawFn, table: Table) -> pa.Table:
    """Any valid rows of a table: unique in the key and sorted by it."""
    row = st.tuples(*(_values(column) for column in table.columns))
    where = [i for name in table.key for i, column in enumerate(table.columns) if column.name == name]

    def key(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in where)

    rows = sorted(draw(st.lists(row, unique_by=key, max_size=6)), key=key)
    return table_of(table.name, {c.name: [values[i] for values in rows] for i, c in enumerate(table.columns)})
