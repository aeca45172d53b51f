"""A whole run of two SAEs named apart: half of a published pair in a folder, and a release from the hub."""

from pathlib import Path

import pytest

from jacobian_core.config import SaeConfig
from jacobian_core.lake.layout import Lake
from jacobian_core.request.plan import plan_run
from tests.artifact import pretrained as made
from tests.artifact.conftest import no_accounts  # noqa: F401
from tests.artifact.test_pretrained import LLAMA, LLAMA_NORM, LLAMA_THRESHOLD
from tests.stand_ins.hub_dataset_server import COMMIT
from tests.stand_ins.hub_server import ModelRepository, serve_models
from tests.test_main_job import Truth, compare_tokens, rows_of_run
from tests.tiny import D_MODEL, LAYER, run_pipeline, tiny_config

HOOK = f"blocks.{LAYER}.hook_mlp_out"


@pytest.mark.usefixtures("no_accounts")
def test_it_runs_offline_once_fetched_and_its_record_names_both(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = made.tensors(D_MODEL, 40)
    made.llama_scope(tmp_path / "hub/Llama3_1-8B-Base-L1M-8x", weights, HOOK, LLAMA_NORM, LLAMA_THRESHOLD)
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    sae = {"input": {"source": "folder", "location": str(tiny / "pair")}, "output": {"source": "release", **LLAMA}}
    config = tiny_config(tiny, tmp_path / "lake").model_copy(update={"sae": SaeConfig.model_validate(sae)})
    with serve_models({"fnlp/Llama3_1-8B-Base-LXM-8x": ModelRepository(tmp_path / "hub")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        plan = plan_run(config)
    assert plan.pair == f"in folder:{tiny}/pair; out release:llama_scope_lxm_8x/l1m_8x@{COMMIT}"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    run = run_pipeline(config)
    assert compare_tokens(config, run.run_id, Truth(config, LAYER), 8) > 100
    manifest = Lake.open(tmp_path / "lake").manifest(run.run_id)
    assert manifest is not None
    assert manifest.artifact["locator"] == plan.pair
    parts = manifest.artifact["parts"]
    assert isinstance(parts, dict)
    assert set(parts) == {"in", "out"}
    shown = rows_of_run(config, run.run_id, "SELECT artifact, n_in_latents, n_out_latents FROM runs")
    assert shown == [(f"in {tiny}/pair; out llama_scope_lxm_8x/l1m_8x", 96, 40)]
    counts = rows_of_run(config, run.run_id, "SELECT count(DISTINCT out_active) FROM tokens")
    assert counts[0][0] > 3  # type: ignore[operator]
