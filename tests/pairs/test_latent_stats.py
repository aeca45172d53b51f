"""`latent_stats` of runs that do not keep their active latents: what those of the others add up to, for any cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.pairs import levels
from jacobian_core.pairs.above import pairs_above
from jacobian_core.pairs.latent_stats import build_latent_stats
from jacobian_core.pairs.levels import list_sources
from jacobian_core.pairs.merging import merge_ready
from jacobian_core.pairs.summed import sums_folder
from jacobian_core.sql.warehouse import connect
from tests.pairs.aggregates import begin, blocks_of, pair_bytes, write_block
from tests.sql.lakes import CONFIG, RANDOM_RUN, Token, random_lake, random_tokens

TOKENS = random_tokens(180, seed=5)
SIZE = 15


def part_bytes(lake: Lake) -> bytes:
    """The part of `latent_stats` that the run would get now."""
    prepared = build_latent_stats(lake, RANDOM_RUN, CONFIG)
    try:
        return prepared.temporary.read_bytes()
    finally:
        prepared.discard()


def rows(content: bytes) -> dict[tuple[str, int], dict[str, Any]]:
    found = pq.read_table(pa.BufferReader(content)).to_pylist()
    assert [(row["side"], row["latent"]) for row in found] == sorted((row["side"], row["latent"]) for row in found)
    return {(row.pop("side"), row.pop("latent")): row for row in found}


def summed(root: Path, size: int, seed: int | None, min_abs: float = 0.0, tokens: list[Token] = TOKENS) -> Lake:
    """Blocks of so many tokens in some order, merged now and then."""
    lake, blocks = begin(root, min_abs), blocks_of(tokens, size, min_abs)
    draw = random.Random(seed)
    for block_id in draw.sample(sorted(blocks), len(blocks)):
        write_block(lake, block_id, blocks[block_id])
        if seed is not None and draw.random() < 0.7:
            merge_ready(lake, RANDOM_RUN)
    return lake


@pytest.mark.parametrize("min_abs", [0.0, 0.02, 1e30])
def test_same_bytes_for_any_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_abs: float) -> None:
    monkeypatch.setattr(levels, "FAN_IN", 2)
    cuts = [(180, None), (15, None), (15, 1), (7, 2)]
    found = [part_bytes(summed(tmp_path / f"{n}", *cut, min_abs)) for n, cut in enumerate(cuts)]
    assert found == [found[0]] * len(cuts)


def test_an_activation_that_differs_gives_other_bytes(tmp_path: Path) -> None:
    place = next(n for n, token in enumerate(TOKENS) if token.inputs)
    token = TOKENS[place]
    latent, value = next(iter(token.inputs.items()))
    inputs = {**token.inputs, latent: value * (1 + 1e-6)}
    changed = [*TOKENS]
    changed[place] = Token(token.row, token.position, token.text, inputs, token.outputs, token.jacobian)
    found = [part_bytes(summed(tmp_path / f"{n}", SIZE, 1, 0.0, each)) for n, each in enumerate((TOKENS, changed))]
    assert found[0] != found[1]


def test_what_the_mart_computes_from_latents(tmp_path: Path) -> None:
    exact = rows(part_bytes(summed(tmp_path / "summed", SIZE, 1)))
    kept = random_lake(tmp_path / "kept", RANDOM_RUN, TOKENS, complete=False)
    with connect(kept) as connection:
        live = connection.execute("SELECT * EXCLUDE (run_id) FROM latent_stats").to_arrow_table().to_pylist()
        viewed = connection.execute(
            "SELECT side, latent, n_tokens, mean_activation * n_tokens, max_activation FROM active_latents"
        ).fetchall()
    assert {(row["side"], row["latent"]) for row in live} == exact.keys()
    for row in live:
        found = exact[row.pop("side"), row.pop("latent")]
        assert found == pytest.approx(row, rel=1e-12)
        assert (found["n_tokens"], found["max_activation"]) == (row["n_tokens"], row["max_activation"])
    for side, latent, n_tokens, activation, largest in viewed:
        assert exact[side, latent]["n_tokens"] == n_tokens
        assert exact[side, latent]["sum_activation"] == pytest.approx(activation, rel=1e-12)
        assert exact[side, latent]["max_activation"] == largest


def test_output_latents_are_counted_for_the_means(tmp_path: Path) -> None:
    """`threshold_counts` needs the tokens at which an output latent is active."""
    lakes = [summed(tmp_path / "summed", SIZE, 1), random_lake(tmp_path / "kept", RANDOM_RUN, TOKENS, complete=False)]
    found = [pairs_above(lake, RANDOM_RUN, [0.1], ["active"])["active"].out_active.tolist() for lake in lakes]
    assert found[0] == found[1]
    assert sum(found[0]) == sum(len(token.outputs) for token in TOKENS)


def test_latents_that_are_kept(tmp_path: Path) -> None:
    """With keep = 'latents' the same pairs, and no sums by latent beside them."""
    lake = begin(tmp_path / "latents", keep="latents")
    for block_id, tables in blocks_of(TOKENS, SIZE).items():
        marker = write_block(lake, block_id, tables, "latents")
        assert marker.keeps == "latents"
        assert marker.parts["latents"].rows == marker.totals["latents"] == tables["latents"].num_rows
    merge_ready(lake, RANDOM_RUN)
    assert {source.group.level for source in list_sources(sums_folder(lake, RANDOM_RUN))} == {0, 1}
    assert pair_bytes(lake) == pair_bytes(summed(tmp_path / "aggregates", SIZE, 1))
    with connect(lake) as connection:
        assert connection.execute("SELECT sum(n_tokens) FROM latent_stats").fetchone() == (
            sum(len(token.inputs) + len(token.outputs) for token in TOKENS),
        )


def test_a_damaged_activation_is_refused(tmp_path: Path) -> None:
    lake, tables = begin(tmp_path), blocks_of(TOKENS, SIZE)["0000-000000"]
    latents = tables["latents"]
    value = pa.array([float("inf")] * latents.num_rows, pa.float32())
    at = latents.schema.get_field_index("activation")
    broken = latents.set_column(at, latents.schema.field(at), value)
    with pytest.raises(LakeError, match=r"active latents of block 0000-000000.* is not finite"):
        write_block(lake, "0000-000000", {**tables, "latents": broken})
    assert list_sources(sums_folder(lake, RANDOM_RUN)) == []


def test_totals_say_how_many_there_were(tmp_path: Path) -> None:
    """Without a part of `latents` they are counted by token."""
    blocks = blocks_of(TOKENS, SIZE)
    lake = begin(tmp_path)
    for block_id, tables in blocks.items():
        marker = write_block(lake, block_id, tables)
        assert "latents" not in marker.parts
        assert marker.keeps == "aggregates"
        assert marker.totals["latents"] == tables["latents"].num_rows
