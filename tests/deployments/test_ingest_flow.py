"""The ingest flow on a real server: a firing is one run over the next shards, and an idle one says that it was idle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import jacobian_core
from jacobian_core.errors import CorpusError
from jacobian_core.lake.layout import Lake
from tests.flows.test_main_command import PROFILE

QUICK = ["compute.threads=1", "corpus.max_tokens=60"]


@pytest.fixture
def work(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a profile, a corpus of two shards, and reports that are a note that they were asked for."""
    import flows.steps

    monkeypatch.setattr(flows.steps, "publish_reports", lambda lake, run_id: [run_id])
    (tiny_copy / "tiny.toml").write_text(PROFILE)
    return tiny_copy


def fire(work: Path) -> Any:
    """One firing; its final state."""
    from flows.ingest import ingest

    return ingest(str(work / "tiny.toml"), str(work / "lake"), 1, QUICK, return_state=True)


def shards_of(work: Path) -> list[list[str]]:
    lake = Lake.open(work / "lake")
    manifests = [m for m in map(lake.manifest, lake.runs()) if m is not None]
    manifests.sort(key=lambda manifest: manifest.created_utc)
    return [[shard["name"] for shard in manifest.identity["corpus"]["shards"]] for manifest in manifests]  # type: ignore[index,call-overload,union-attr]


def test_each_firing_is_one_run_and_an_idle_one_completes(work: Path, prefect_api: str) -> None:
    states = [fire(work) for _ in range(3)]
    assert [state.type.value for state in states] == ["COMPLETED"] * 3
    assert shards_of(work) == [["00.jsonl.zst"], ["01.jsonl.zst"]]
    assert states[1].message == f"run {states[1].result()}"
    assert states[2].message == "nothing new: the lake has all 2 shards"
    shutil.copy(work / "corpus" / "00.jsonl.zst", work / "corpus" / "02.jsonl.zst")
    fire(work)
    assert shards_of(work)[2:] == [["02.jsonl.zst"]]


def test_a_shard_that_cannot_be_read_fails_its_firing_and_holds_up_none_behind_it(work: Path, prefect_api: str) -> None:
    (work / "corpus" / "00.jsonl.zst").write_bytes(b"no zstd at all")
    state = fire(work)
    assert (state.type.value, shards_of(work)) == ("FAILED", [["01.jsonl.zst"]])
    assert "00.jsonl.zst" in state.message
    with pytest.raises(CorpusError, match=r"00\.jsonl\.zst"):
        state.result()


def test_another_failure_stops_the_firing(work: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise jacobian_core.errors.LakeError("the disk is full.")

    monkeypatch.setattr("jacobian_core.lake.runs.begin_run", broken)
    assert fire(work).type.value == "FAILED"
    assert shards_of(work) == []
