"""The flow: it trains, exports, and leaves its page; a wrong request fails before anything is loaded."""

from pathlib import Path

import pytest

from flows.train_pair import page, train_pair
from jacobian_core.errors import CorpusError
from jacobian_core.training.config import TrainPairConfig


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def artifacts() -> list[dict[str, str]]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return [{"key": str(artifact.key), "data": str(artifact.data)} for artifact in found]


def test_flow_trains_and_leaves_a_page(prefect_home: None, pair_config: TrainPairConfig) -> None:
    figures = train_pair(pair_config.model_copy(update={"tokens": 600}))
    assert (pair_config.output / "sae_weights.safetensors").exists()
    assert 0 < figures["held_out"]["fvu_in"] < 1.5
    (left,) = [artifact for artifact in artifacts() if artifact["key"] == "pair-pair"]
    for shown in ("loss", "fvu_in", "dead_out", "mean_abs_jacobian", "0.005"):
        assert shown in left["data"]
    assert left["data"] == page(pair_config.output, figures)


def test_flow_refuses_a_missing_shard(prefect_home: None, pair_config: TrainPairConfig, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such shard"):
        train_pair(pair_config.model_copy(update={"held_out_shards": (tmp_path / "none.jsonl",)}))
    assert not pair_config.output.exists()
