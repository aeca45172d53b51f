"""The main job against the notebook's own definition: sae_lens SAEs, the Hugging Face MLP, float64 autograd.

Tolerance: float32 entries are compared at 1e-5 of the largest |J| of their token (see `numerics/test_jacobian.py`).
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from jacobian_core.config import RunConfig
from jacobian_core.lake.layout import Lake
from jacobian_core.numerics import reference
from tests.tiny import LAYER, run_pipeline, tiny_config

EVALUATE_AT = ["reconstruction", "activation"]


class Truth:
    """The model's own modules in float64, and the activations they give for one document."""

    def __init__(self, config: RunConfig, layer: int) -> None:
        from transformers import AutoModelForCausalLM

        from jacobian_core.artifact.sae_pair import load_sae_pair
        from jacobian_core.pipeline import fetch_artifact

        self.module = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float64)
        self.mlp = self.module.gpt_neox.layers[layer].mlp.requires_grad_(False)
        pair = load_sae_pair(Path(fetch_artifact(config).folder))
        self.sae_in, self.sae_out = pair.input.double(), pair.output.double()

    @torch.no_grad()
    def mlp_inputs(self, vocab_ids: list[int]) -> torch.Tensor:
        """What enters the MLP at each position of one row, by a hook on the module."""
        seen: list[torch.Tensor] = []
        handle = self.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self.module(torch.tensor([vocab_ids]))
        handle.remove()
        return seen[0][0]

    def entries(self, x: torch.Tensor, evaluate_at: str) -> tuple[list[int], list[int], torch.Tensor]:
        """Active output latents, active input latents and J between them at one token, by autograd."""
        s = self.sae_in.encode(x[None])[0].detach()
        if evaluate_at == "reconstruction":
            sandwich = reference.sandwich_at_reconstruction(self.sae_in, self.mlp, self.sae_out)
        else:
            sandwich = reference.sandwich_at_activation(self.sae_in, self.mlp, self.sae_out, x)
        out, in_, J = reference.active_entries(sandwich, s)
        return out.tolist(), in_.tolist(), J


def rows_of_run(config: RunConfig, run_id: str, sql: str) -> list[tuple[object, ...]]:
    from jacobian_core.sql.warehouse import connect

    with connect(Lake.open(Path(config.lake.root)), [run_id]) as connection:
        return connection.execute(sql).fetchall()


def compare_tokens(config: RunConfig, run_id: str, truth: Truth, tokens: int) -> int:
    """Assert that the stored entries of random tokens are autograd's, support included; returns their number."""
    rows = rows_of_run(config, run_id, "SELECT token_id, document_id, position, vocab_id FROM tokens ORDER BY token_id")
    chosen = random.Random(11).sample(rows, tokens)
    entries = 0
    for token_id, document, position, _ in chosen:
        ids = [0] + [r[3] for r in rows if r[1] == document and r[2] <= position]
        assert len(ids) == position + 1
        x = truth.mlp_inputs(ids)[position]
        out, in_, J = truth.entries(x, config.jacobian.evaluate_at)
        found = rows_of_run(
            config, run_id,
            f"SELECT out_latent, in_latent, value FROM jacobian_entries WHERE token_id = {token_id} ORDER BY 1, 2",
        )  # fmt: skip
        assert [(i, j) for i, j, _ in found] == [(i, j) for i in out for j in in_]
        values = torch.tensor([v for *_, v in found], dtype=torch.float64)
        scale = float(J.abs().max()) if J.numel() else 1.0
        torch.testing.assert_close(values, J.flatten(), rtol=0, atol=1e-5 * scale)
        entries += len(found)
    return entries


@pytest.mark.parametrize("evaluate_at", EVALUATE_AT)
def test_stored_entries_equal_the_notebooks_sandwich(tiny: Path, tmp_path: Path, evaluate_at: str) -> None:
    config = tiny_config(tiny, tmp_path / "lake", jacobian={"evaluate_at": evaluate_at})
    run = run_pipeline(config)
    truth = Truth(config, LAYER)
    assert compare_tokens(config, run.run_id, truth, 20) > 200
    other = config.model_copy(
        update={
            "jacobian": config.jacobian.model_copy(update={"evaluate_at": EVALUATE_AT[evaluate_at == EVALUATE_AT[0]]})
        }
    )
    with pytest.raises(AssertionError):
        compare_tokens(other, run.run_id, truth, 20)


def dense_sums(config: RunConfig, run_id: str, n_out: int, n_in: int) -> dict[str, np.ndarray]:
    """The notebook's dense accumulation over the run's tokens, from the stored entries, one matrix a statistic."""
    sums = {name: np.zeros((n_out, n_in)) for name in ("n", "sum", "sum_abs", "sum_sq", "max_abs")}
    for _, i, j, value in rows_of_run(
        config, run_id, "SELECT token_id, out_latent, in_latent, value FROM jacobian_entries"
    ):
        sums["n"][i, j] += 1
        sums["sum"][i, j] += value
        sums["sum_abs"][i, j] += abs(value)
        sums["sum_sq"][i, j] += value * value
        sums["max_abs"][i, j] = max(sums["max_abs"][i, j], abs(value))
    return sums


def test_sql_aggregates_equal_a_dense_accumulation(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path / "lake")
    run = run_pipeline(config)
    dense = dense_sums(config, run.run_id, 80, 96)
    columns = "out_latent, in_latent, n_coactive, sum, sum_abs, sum_sq, max_abs"
    found = rows_of_run(config, run.run_id, f"SELECT {columns} FROM pair_stats WHERE scope = 'active'")
    assert len(found) == int((dense["n"] > 0).sum())
    for i, j, *stats in found:
        expected = [dense[name][i, j] for name in ("n", "sum", "sum_abs", "sum_sq", "max_abs")]
        np.testing.assert_allclose(stats, expected, rtol=1e-12, atol=1e-14)
    check_thresholds(config, run.run_id, dense)
    dense["sum_abs"][dense["sum_abs"].nonzero()[0][0]] = 0
    with pytest.raises(AssertionError):
        check_thresholds(config, run.run_id, dense)


def check_thresholds(config: RunConfig, run_id: str, dense: dict[str, np.ndarray]) -> None:
    """`threshold_fractions` against the notebook's cell on the dense matrices."""
    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    with connect(Lake.open(Path(config.lake.root)), [run_id]) as connection:
        tokens = connection.execute("SELECT count(*) FROM tokens").fetchone()[0]
        rows = run_report(connection, "threshold_fractions", {"run_id": run_id}).to_pylist()
    mean = dense["sum_abs"] / tokens
    checked = 0
    for row in rows:
        if row["scope"] != "active":
            continue
        above = int((mean > row["threshold"]).sum())
        assert row["pairs_mean_all_tokens"] == above
        assert row["share_mean_all_tokens"] == pytest.approx(above / mean.size, rel=1e-12)
        assert row["pairs_max"] == int((dense["max_abs"] > row["threshold"]).sum())
        checked += 1
    assert checked >= 8


def test_the_same_request_is_the_same_run(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path / "lake", corpus={"max_tokens": 700})
    first = run_pipeline(config)
    before = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "lake").rglob("part-*"))}
    assert run_pipeline(config).state == "done"
    assert {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "lake").rglob("part-*"))} == before
    elsewhere = tiny_config(tiny, tmp_path / "other", corpus={"max_tokens": 700}, compute={"threads": 1})
    second = run_pipeline(elsewhere)
    assert second.run_id == first.run_id
    digests = [
        {part.path: part.sha256 for parts in Lake(lake).manifest(first.run_id).all_parts().values() for part in parts}
        for lake in (tmp_path / "lake", tmp_path / "other")
    ]
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "lake/runs" / f"{first.run_id}.json").read_text())["totals"]["tokens"] == 700


@pytest.mark.parametrize(
    "change",
    [
        {"jacobian": {"min_abs": 0.01}},
        {"jacobian": {"evaluate_at": "activation"}},
        {"corpus": {"packing": "concatenated"}},
        {"corpus": {"max_tokens": 701}},
        {"model": {"mlp_input": "normalized"}},
        {"model": {"weights": "randomised"}},
        {"compute": {"chunk_tokens": 64}},
    ],
)
def test_what_changes_the_data_changes_the_run(
    tiny: Path, tmp_path: Path, change: dict[str, dict[str, object]]
) -> None:
    from jacobian_core import pipeline

    def run_id(**groups: dict[str, object]) -> str:
        config = tiny_config(tiny, tmp_path / "lake", **groups)
        return pipeline.resolve_run(config, pipeline.fetch_artifact(config)).run_id

    assert run_id(**change) != run_id()
