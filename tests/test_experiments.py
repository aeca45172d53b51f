"""Interventions of a whole run against the real modules: sae_lens SAEs, the Hugging Face MLP, the code edited, float64.

Tolerance: the run computes the starting point in float32, so activations agree to 1e-5 of the largest of their token,
and a selection may differ where two pre-activations are closer than that.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from jacobian_core.config import RunConfig
from jacobian_core.numerics import reference
from tests.test_main_job import Truth, rows_of_run
from tests.tiny import LAYER, run_pipeline, tiny_config

KINDS = ["ablate", "unit", "set", "scale", "sweep"]


def effect_by_modules(
    config: RunConfig, truth: Truth, x: torch.Tensor, change: tuple[int, int, float]
) -> tuple[float, float]:
    """t_i before and after setting s_j, by decoding, running the MLP and encoding in full."""
    s = truth.sae_in.encode(x[None])[0].detach()
    out, in_, value = change
    if config.jacobian.evaluate_at == "reconstruction":
        function = reference.sandwich_at_reconstruction(truth.sae_in, truth.mlp, truth.sae_out)
    else:
        function = reference.sandwich_at_activation(truth.sae_in, truth.mlp, truth.sae_out, x)
    with torch.no_grad():
        return float(function(s)[out]), float(reference.intervene(function, s, in_, value)[out])


@pytest.mark.parametrize("evaluate_at", ["reconstruction", "activation"])
def test_interventions_equal_the_model_with_edited_code(tiny: Path, tmp_path: Path, evaluate_at: str) -> None:
    config = tiny_config(
        tiny, tmp_path / "lake", jacobian={"evaluate_at": evaluate_at}, corpus={"max_tokens": 600},
        interventions={"kinds": KINDS, "shape_token_share": 0.05, "sweep_points": 3, "shape_points": 20},
    )  # fmt: skip
    run = run_pipeline(config)
    truth = Truth(config, LAYER)
    columns = "token_id, out_latent, in_latent, in_after, out_before, out_after, left_selection, kind"
    rows = rows_of_run(config, run.run_id, f"SELECT {columns} FROM interventions ORDER BY ALL")
    assert {row[-1] for row in rows} == set(KINDS)
    tokens = {
        r[0]: r[1:] for r in rows_of_run(config, run.run_id, "SELECT token_id, document_id, position FROM tokens")
    }
    by_document: dict[object, list[tuple[int, int]]] = {}
    for document, position, vocab in rows_of_run(
        config, run.run_id, "SELECT document_id, position, vocab_id FROM tokens"
    ):
        by_document.setdefault(document, []).append((position, vocab))
    switched = 0
    for token_id, out, in_, after, before, out_after, left, _ in random.Random(5).sample(rows, 60):
        document, position = tokens[token_id]
        ids = [0, *[vocab for _, vocab in sorted(by_document[document])][:position]]
        x = truth.mlp_inputs(ids)[position]
        expected_before, expected_after = effect_by_modules(config, truth, x, (out, in_, after))
        scale = max(1.0, expected_before)
        assert before == pytest.approx(expected_before, abs=1e-5 * scale)
        assert out_after == pytest.approx(expected_after, abs=2e-5 * scale)
        assert left == (expected_after == 0)
        switched += left
    assert switched > 0
    assert rows_of_run(config, run.run_id, "SELECT count(*) FROM function_shapes")[0][0] > 20


def test_the_lake_of_such_a_run_is_valid(tiny: Path, tmp_path: Path) -> None:
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.verify import verify_lake
    from jacobian_core.sql.checks import run_checks
    from jacobian_core.sql.warehouse import connect

    config = tiny_config(
        tiny, tmp_path / "lake", jacobian={"derivatives": "second", "min_abs": 0.02, "top_entries_per_token": 20},
        interventions={"kinds": ["ablate", "unit"], "pairs": "all", "token_share": 0.3},
    )  # fmt: skip
    run = run_pipeline(config)
    lake = Lake.open(tmp_path / "lake")
    assert [f for f in verify_lake(lake, run.run_id) if f.severity == "error"] == []
    with connect(lake, [run.run_id]) as connection:
        failed = [check for check in run_checks(connection, run.run_id) if not check.passed]
    assert failed == []
