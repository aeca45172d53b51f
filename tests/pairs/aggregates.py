"""Small runs that keep aggregates alone, written by the real writers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from jacobian_core.contracts import Keep, block_tables
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.publish import BlockWriter
from jacobian_core.lake.runs import begin_run
from jacobian_core.pairs.build import build_pair_stats
from jacobian_core.pairs.summed import BlockEntries
from tests.sql.lakes import CONFIG, IDENTITY, RANDOM_RUN, Token, config_of, tables_of


def begin(root: Path, min_abs: float = 0.0, keep: Keep = "aggregates") -> Lake:
    """A run that was begun, without blocks."""
    lake, config = Lake.create(root), config_of(min_abs, name="random")
    config["jacobian"]["keep"] = keep
    begin_run(lake, RANDOM_RUN, IDENTITY, config)
    return lake


def write_block(lake: Lake, block_id: str, tables: dict[str, pa.Table], keep: Keep = "aggregates") -> BlockMarker:
    """Publish a block whose entries are summed and not kept."""
    entries, kept = BlockEntries(block_id, keep), block_tables(keep)
    with BlockWriter(lake, RANDOM_RUN, block_id, CONFIG, kept) as writer:
        for name, table in tables.items():
            entries.add(name, table)
            if name in kept:
                writer.write(name, table)
        writer.finish()
        return writer.publish({}, summed=entries.finish(lake, RANDOM_RUN))


def blocks_of(tokens: Sequence[Token], size: int, min_abs: float = 0.0) -> dict[str, dict[str, pa.Table]]:
    """The tables of blocks of so many tokens each, by block id."""
    starts = range(0, len(tokens), size)
    return {f"0000-{n:06d}": tables_of(list(tokens[s : s + size]), min_abs) for n, s in enumerate(starts)}


def pair_bytes(lake: Lake) -> bytes:
    """The part of `pair_stats` that the run would get now."""
    prepared = build_pair_stats(lake, RANDOM_RUN, CONFIG)
    try:
        return prepared.temporary.read_bytes()
    finally:
        prepared.discard()
