"""Scope 'all_inputs' of a run against the notebook's averaging cell: full Jacobians by autograd, summed densely.

Tolerance: float32 against float64 autograd, 1e-5 of the largest sum.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jacobian_core import pipeline
from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.lake.layout import Lake
from jacobian_core.numerics import reference
from tests.test_main_job import Truth, rows_of_run
from tests.tiny import LAYER, run_pipeline, tiny_config

TOKENS = 160


def averaging_cell(config: RunConfig, run_id: str) -> torch.Tensor:
    """The notebook's `summed_abs_jacobians` over the run's tokens."""
    truth = Truth(config, LAYER)
    total = torch.zeros(80, 96, dtype=torch.float64)
    rows = rows_of_run(config, run_id, "SELECT document_id, vocab_id FROM tokens ORDER BY token_id")
    documents: dict[object, list[int]] = {}
    for document, vocab in rows:
        documents.setdefault(document, [0]).append(vocab)  # type: ignore[arg-type]
    for ids in documents.values():
        for x in truth.mlp_inputs(ids)[1:]:
            s = truth.sae_in.encode(x[None])[0].detach()
            function = reference.sandwich_at_reconstruction(truth.sae_in, truth.mlp, truth.sae_out)
            total += reference.jacobian(function, s).abs()
    return total


def all_inputs_config(tiny: Path, lake: Path, **groups: dict[str, object]) -> RunConfig:
    settings: dict[str, dict[str, object]] = {
        "jacobian": {"scope": "all_inputs"},
        "corpus": {"max_tokens": TOKENS, "block_tokens": 40},
        "all_inputs": {"group_blocks": 2},
    }
    config: RunConfig = tiny_config(tiny, lake, **{**settings, **groups})
    return config


COUNTED_AGAIN = """
SELECT
    t.pairs_mean_all_tokens, t.pairs_mean_out_active, t.pairs_max,
    count(*) FILTER (WHERE p.mean_abs_all_tokens > t.threshold),
    count(*) FILTER (WHERE p.mean_abs_out_active > t.threshold),
    count(*) FILTER (WHERE p.max_abs > t.threshold)
FROM threshold_counts AS t INNER JOIN pair_means AS p ON t.scope = p.scope
WHERE t.scope = 'all_inputs' GROUP BY ALL
"""


def test_equal_to_the_averaging_cell(tiny: Path, tmp_path: Path) -> None:
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    config = all_inputs_config(tiny, tmp_path / "lake")
    run = run_pipeline(config)
    expected = averaging_cell(config, run.run_id)
    found = torch.zeros_like(expected)
    stored = rows_of_run(
        config, run.run_id, "SELECT out_latent, in_latent, sum_abs FROM pair_stats WHERE scope = 'all_inputs'"
    )
    for out, in_, sum_abs in stored:
        found[out, in_] = sum_abs  # type: ignore[index]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max()))
    with connect(Lake.open(tmp_path / "lake"), [run.run_id]) as connection:
        report = run_report(
            connection, "threshold_fractions", {"run_id": run.run_id, "scope": "all_inputs"}
        ).to_pylist()
        counted = connection.execute(COUNTED_AGAIN).fetchall()
    assert len(counted) == len(config.marts.thresholds)
    assert all(row[:3] == row[3:] for row in counted)
    for row in report:
        share = float((expected / TOKENS > row["threshold"]).double().mean())
        assert row["share_mean_all_tokens"] == pytest.approx(share, abs=2 / expected.numel())
    assert (
        report[0]["share_mean_all_tokens"]
        > 5
        * rows_of_run(config, run.run_id, "SELECT count(*) FROM pair_stats WHERE scope = 'active'")[0][0]
        / expected.numel()
        / 10
    )  # type: ignore[operator]


def test_an_interrupted_run_makes_the_same_sums(tiny: Path, tmp_path: Path) -> None:
    """Stopped after some groups, with another's file lost: the same part, byte for byte, as an undisturbed run."""
    undisturbed = run_pipeline(all_inputs_config(tiny, tmp_path / "one"))
    config = all_inputs_config(tiny, tmp_path / "two")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    for shard in run.shards[:1]:
        batch = pipeline.stage_blocks(run, shard, None, run.tokens_wanted, 3)
        for block in batch.blocks:
            pipeline.compute_block(run, block.block_id)
    groups = pipeline.open_groups(run)
    pipeline.accumulate_group(run, groups[0])
    run_pipeline(config)
    digests = [
        {part.path: part.sha256 for part in Lake(tmp_path / lake).manifest(undisturbed.run_id).parts["pair_stats"]}
        for lake in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2


def test_memory_is_refused_before_the_run_begins(tiny: Path, tmp_path: Path) -> None:
    wide = {"max_memory_bytes": 1 << 20}
    config = all_inputs_config(tiny, tmp_path / "lake", all_inputs=wide)
    run_pipeline(config)  # 80 x 96 pairs fit in a MiB
    monster = config.model_copy(update={"all_inputs": config.all_inputs.model_copy(update={"group_blocks": 100_000})})
    with pytest.raises(ConfigError, match="group_blocks"):
        pipeline.resolve_run(monster, pipeline.fetch_artifact(monster))
