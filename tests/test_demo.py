"""The embedded default: its files, and the main job on it against autograd through the real modules.

Tolerance: as in `test_main_job.py`, 1e-5 of the largest |J| of a token.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from jacobian_core.config import RunConfig
from jacobian_core.lake.layout import Lake
from jacobian_core.numerics import reference
from jacobian_core.profiles import load_config
from jacobian_core.resources import project_path
from tests.test_experiments import effect_by_modules
from tests.test_main_job import EVALUATE_AT, Truth, check_thresholds, compare_tokens, dense_sums, rows_of_run
from tests.tiny import run_pipeline

DEMO_LAYER, WIDTH, K = 2, 1024, 16
PROFILES = ["demo", "demo-control", "demo-random"]


def small(profile: str, lake: Path, *settings: str) -> RunConfig:
    return load_config(profile, ["corpus.max_tokens=700", "corpus.block_tokens=500", *settings], str(lake))


def test_the_files_are_small_and_hold_no_pickle() -> None:
    files = [path for path in project_path("demo").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".zst", ".py", ".md", ".txt"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_pair_explains_its_model(profile: str, tmp_path: Path) -> None:
    from jacobian_core import pipeline

    config = small(profile, tmp_path / "lake")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    found = pipeline.check_quality(run)
    assert found.fvu_in < 0.2
    assert found.fvu_out < 0.25
    assert found.mlp_error < 1e-5


@pytest.mark.parametrize("evaluate_at", EVALUATE_AT)
def test_twenty_tokens_equal_the_notebooks_sandwich(tmp_path: Path, evaluate_at: str) -> None:
    config = small("demo", tmp_path / "lake", f"jacobian.evaluate_at={evaluate_at}", "interventions.kinds=[]")
    run = run_pipeline(config)
    truth = Truth(config, DEMO_LAYER)
    assert compare_tokens(config, run.run_id, truth, 20) == 20 * K * K


def test_sql_equals_a_dense_accumulation(tmp_path: Path) -> None:
    config = small("demo", tmp_path / "lake")
    run = run_pipeline(config)
    dense = dense_sums(config, run.run_id, WIDTH, WIDTH)
    found = rows_of_run(config, run.run_id, "SELECT out_latent, in_latent, sum_abs, max_abs FROM pair_stats")
    assert len(found) == int((dense["n"] > 0).sum())
    for out, in_, sum_abs, max_abs in found:
        np.testing.assert_allclose([sum_abs, max_abs], [dense[s][out, in_] for s in ("sum_abs", "max_abs")], rtol=1e-9)
    check_thresholds(config, run.run_id, dense)


def test_second_derivatives_and_interventions(tmp_path: Path) -> None:
    """Both against float64 autograd and the edited code through the real modules."""
    config = small("demo", tmp_path / "lake", "corpus.max_tokens=200")
    run = run_pipeline(config)
    truth = Truth(config, DEMO_LAYER)
    vocab = rows_of_run(config, run.run_id, "SELECT token_id, document_id, position, vocab_id FROM tokens ORDER BY 1")
    rows = rows_of_run(
        config, run.run_id,
        "SELECT token_id, out_latent, in_latent, in_after, out_after, second_derivative "
        "FROM interventions ORDER BY ALL",
    )  # fmt: skip
    for token_id, out, in_, after, out_after, second in random.Random(2).sample(rows, 40):
        document, position = next((r[1], r[2]) for r in vocab if r[0] == token_id)
        ids = [0, *[r[3] for r in vocab if r[1] == document and r[2] <= position]]  # type: ignore[operator]
        x = truth.mlp_inputs(ids)[position]
        before, expected = effect_by_modules(config, truth, x, (out, in_, after))
        assert out_after == pytest.approx(expected, abs=2e-5 * max(1.0, before))
        s = truth.sae_in.encode(x[None])[0].detach()
        function = reference.sandwich_at_reconstruction(truth.sae_in, truth.mlp, truth.sae_out)
        exact = reference.second_derivative(function, s, torch.tensor([out]), torch.tensor([in_]))
        assert second == pytest.approx(float(exact), abs=1e-5)


def test_a_lake_of_the_demo_passes_every_check(tmp_path: Path) -> None:
    from jacobian_core.sql.checks import run_checks
    from jacobian_core.sql.warehouse import connect

    run = run_pipeline(small("demo", tmp_path / "lake"))
    with connect(Lake.open(tmp_path / "lake"), [run.run_id]) as connection:
        assert [check for check in run_checks(connection, run.run_id) if not check.passed] == []
