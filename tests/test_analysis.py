"""The request of an analysis over an existing run."""

from pathlib import Path

import pytest

from jacobian_core.errors import ConfigError, LakeError
from jacobian_core.request.analysis import analysis_config
from tests.tiny import run_pipeline, tiny_config


def test_an_analysis_is_the_runs_request_with_changes(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path / "lake", corpus={"max_tokens": 120})
    run = run_pipeline(config)
    found = analysis_config(tmp_path / "lake", run.run_id, ["interventions.seed=3"])
    assert found.interventions.kinds == ("ablate", "unit")
    assert found.interventions.seed == 3
    assert found.jacobian.derivatives == "second"
    assert found.model_copy(update={"interventions": config.interventions, "jacobian": config.jacobian}) == config
    again = run_pipeline(found)
    assert again.run_id != run.run_id
    assert run_pipeline(analysis_config(tmp_path / "lake", run.run_id, ["interventions.seed=3"])).state == "done"


def test_what_the_run_or_an_override_says_stands(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path / "lake", corpus={"max_tokens": 60}, interventions={"kinds": ["scale"]})
    run_id = run_pipeline(config).run_id
    assert analysis_config(tmp_path / "lake", run_id, []).interventions.kinds == ("scale",)
    overrides = ['interventions.kinds=["set"]', "jacobian.derivatives=first"]
    changed = analysis_config(tmp_path / "lake", run_id, overrides)
    assert changed.interventions.kinds == ("set",)
    assert changed.jacobian.derivatives == "first"


def test_errors(tiny: Path, tmp_path: Path) -> None:
    run_id = run_pipeline(tiny_config(tiny, tmp_path / "lake", corpus={"max_tokens": 60})).run_id
    with pytest.raises(LakeError, match="has no run other"):
        analysis_config(tmp_path / "lake", "other", [])
    with pytest.raises(ConfigError, match="kinds"):
        analysis_config(tmp_path / "lake", run_id, ["interventions.knds=[]"])
