"""What the main flow decides, on a real Prefect server and with steps that compute nothing."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import jacobian_core
from flows.progress import Figures, listening
from jacobian_core.config import RunConfig
from jacobian_core.errors import ArtifactError, LakeError
from jacobian_core.profiles import load_config
from tests.flows.fake_pipeline import FakePipeline


class Ear:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[Figures] = []
        self.last: Figures | None = None
        self.facts: dict[str, object] = {}

    def summary(self, facts: Mapping[str, object]) -> None:
        self.facts = dict(facts)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, figures: Figures) -> None:
        self.updates.append(figures)

    def close(self, figures: Figures) -> None:
        self.last = figures


@pytest.fixture
def config() -> RunConfig:
    return load_config("demo")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Callable[..., FakePipeline]:
    """Puts a fake pipeline in the real one's place; its reports are a note that they were asked for."""

    def install(shards: dict[str, int], **options: Any) -> FakePipeline:
        pipeline = FakePipeline(tmp_path, shards, **options)
        monkeypatch.setitem(__import__("sys").modules, "jacobian_core.pipeline", pipeline)
        monkeypatch.setattr(jacobian_core, "pipeline", pipeline, raising=False)
        import flows.steps

        def reported(*_: Any) -> list[str]:
            pipeline.calls.append("report")
            return []

        monkeypatch.setattr(flows.steps, "publish_reports", reported)
        monkeypatch.setattr("flows.run.run_facts", lambda lake, run_id: {"run_id": run_id, "lake": str(lake)})
        return pipeline

    return install


def run(config: RunConfig, ear: Ear | None = None) -> str:
    from flows.run import jacobian_run

    with listening(*([ear] if ear else [])):
        return str(jacobian_run(config))


def newest_run(api: str) -> dict[str, Any]:
    """The flow run that started last; the server is shared, and other tests' schedules have runs that did not start."""
    started = {"flow_runs": {"start_time": {"is_null_": False}}, "flows": {"name": {"any_": ["jacobian-run"]}}}
    body = json.dumps({"sort": "START_TIME_DESC", "limit": 1, **started}).encode()
    request = urllib.request.Request(f"{api}/flow_runs/filter", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found[0]


def test_every_block_is_computed_once_in_order_and_few_are_in_flight(
    fake: Callable[..., FakePipeline], config: RunConfig, prefect_api: str
) -> None:
    pipeline, ear = fake({"a": 10, "b": 3}, compute_seconds=0.02), Ear()
    assert run(config, ear) == "demo-0123456789ab"
    computed = [call.split()[1] for call in pipeline.called("compute")]
    assert sorted(computed) == pipeline.done == sorted(set(computed))
    assert len(computed) == 13
    assert all(abs(place - computed.index(block)) <= 2 for place, block in enumerate(sorted(computed)))
    assert 1 < pipeline.most_computing <= 3  # they take turns with the cores, `work/crew.py`
    assert pipeline.calls[:3] == ["fetch", "resolve", "quality"]
    assert pipeline.calls[-2:] == ["publish {'empty': 3}", "report"]
    assert pipeline.called("stage") == ["stage a 0", "stage a 8", "stage b 0"]
    assert ear.last is not None
    assert (ear.last.tokens_done, ear.last.tokens_total, ear.last.entries) == (1300, 1300, 13_000)
    assert ear.last.entries_per_second == pytest.approx(10 * ear.last.tokens_per_second)
    assert ear.facts["run_id"] == "demo-0123456789ab"
    assert newest_run(prefect_api)["state_type"] == "COMPLETED"


def test_staging_runs_ahead_of_computing_but_only_by_one_batch(
    fake: Callable[..., FakePipeline], config: RunConfig
) -> None:
    pipeline = fake({"a": 24}, compute_seconds=0.02)
    run(config)
    begins = {call: place for place, call in enumerate(pipeline.calls)}
    computed_before = [c for c in pipeline.calls[: begins["stage a 16"]] if c.startswith("compute")]
    assert begins["stage a 8"] < begins["compute 0000-000007"]
    assert 5 <= len(computed_before) <= 8


def test_a_token_limit_stops_staging(fake: Callable[..., FakePipeline], config: RunConfig) -> None:
    pipeline = fake({"a": 5, "b": 5}, tokens_wanted=700)
    run(config)
    assert len(pipeline.done) == 7
    assert pipeline.called("stage b") == ["stage b 0"]


def test_the_same_request_again_computes_nothing(fake: Callable[..., FakePipeline], config: RunConfig) -> None:
    pipeline, ear = fake({"a": 3}), Ear()
    first = run(config)
    pipeline.calls.clear()
    assert run(config, ear) == first
    assert pipeline.calls == ["fetch", "resolve", "report"]
    assert "already done" in ear.notes[0]


def test_a_stopped_run_continues_and_its_rate_counts_only_new_tokens(
    fake: Callable[..., FakePipeline], config: RunConfig, tmp_path: Path
) -> None:
    pipeline, ear = fake({"a": 6}), Ear()
    for number in range(4):
        (tmp_path / f"done-0000-{number:06d}").touch()
    run(config, ear)
    assert len(pipeline.done) == 6
    assert "continued" in ear.notes[0]
    assert ear.last is not None
    assert (ear.last.tokens_done, ear.last.tokens_fresh) == (600, 200)


def test_a_failed_block_fails_the_run_and_keeps_the_others(
    fake: Callable[..., FakePipeline], config: RunConfig, prefect_api: str
) -> None:
    pipeline, ear = fake({"a": 6}, failing={"0000-000002"}), Ear()
    with pytest.raises(LakeError, match="block 0000-000002 is broken"):
        run(config, ear)
    assert len(pipeline.done) == 5
    assert not pipeline.called("publish")
    assert any("1 blocks failed" in note for note in ear.notes)
    failed = newest_run(prefect_api)
    assert (failed["state_type"], "0000-000002" in failed["state"]["message"]) == ("FAILED", True)
    pipeline.failing.clear()
    pipeline.calls.clear()
    run(config)
    assert len(pipeline.done) == 6
    assert pipeline.called("publish")


def test_a_run_whose_blocks_keep_failing_gives_up(fake: Callable[..., FakePipeline], config: RunConfig) -> None:
    pipeline = fake({"a": 40}, failing={f"0000-{n:06d}" for n in range(40)})
    with pytest.raises(LakeError):
        run(config)
    assert len(pipeline.called("compute")) <= 5
    assert len(pipeline.called("stage")) <= 2


def test_a_shard_that_breaks_off_keeps_the_blocks_before_it(
    fake: Callable[..., FakePipeline], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = fake({"a": 20})
    whole = pipeline.stage_blocks

    def broken(run: Any, shard: Any, cursor: int | None, budget: int | None, max_blocks: int) -> Any:
        if cursor:
            raise LakeError("shard a ends early.", "Fetch it again.")
        return whole(run, shard, cursor, budget, max_blocks)

    monkeypatch.setattr(pipeline, "stage_blocks", broken)
    with pytest.raises(LakeError, match="shard a ends early"):
        run(config)
    assert len(pipeline.done) == 8
    assert not pipeline.called("publish")


def test_only_failures_of_the_network_are_tried_again(
    fake: Callable[..., FakePipeline], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import run as run_module
    from flows import steps

    monkeypatch.setattr(run_module, "fetch", steps.fetch.with_options(retry_delay_seconds=[0, 0, 0]))
    offline = ArtifactError("no network.", "Connect it.")
    offline.__cause__ = ConnectionResetError()
    pipeline = fake({"a": 1}, fetch_errors=[offline, TimeoutError()])
    run(config)
    assert len(pipeline.called("fetch")) == 3
    pipeline = fake({"a": 1}, fetch_errors=[ArtifactError("no such artifact.", "Mend the name.")])
    with pytest.raises(ArtifactError, match="no such artifact"):
        run(config)
    assert len(pipeline.called("fetch")) == 1


def test_a_block_that_the_network_failed_is_submitted_again(
    fake: Callable[..., FakePipeline], config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows import run as run_module

    monkeypatch.setattr(run_module, "RETRY_SECONDS", (0.0, 0.0))
    pipeline = fake({"a": 4}, unreachable={"0000-000002": 2})
    run(config)
    assert len(pipeline.called("compute")) == 4 + 2
    assert len(pipeline.done) == 4
    for path in [tmp_path / "manifest", *tmp_path.glob("done-*")]:
        path.unlink()
    pipeline = fake({"a": 4}, unreachable={"0000-000002": 3})
    with pytest.raises(ConnectionError, match="0000-000002"):
        run(config)
    assert len(pipeline.done) == 3


def test_the_ui_shows_the_run_s_name_and_each_block(
    fake: Callable[..., FakePipeline], config: RunConfig, prefect_api: str
) -> None:
    fake({"a": 2})
    run(config)
    found = newest_run(prefect_api)
    assert found["name"] == "demo"
    assert found["parameters"]["config"]["corpus"]["max_tokens"] == config.corpus.max_tokens
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[found["id"]])))
        bars = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[found["id"]]))
        )
    names = {t.name for t in tasks}
    assert {"compute 0000-000000", "compute 0000-000001", "stage a"} <= names
    assert [(bar.type, bar.data) for bar in bars] == [("progress", 100.0)]
