"""Which shards a firing takes: each shard once, what was begun first, and never one that the lake holds already."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacobian_core import pipeline
from jacobian_core.config import RunConfig
from jacobian_core.corpus.listing import Shard
from jacobian_core.errors import ConfigError, CorpusError
from jacobian_core.lake.layout import Lake
from jacobian_core.request.describe import describe_request
from jacobian_core.request.ingest import (
    HeldShard,
    IngestPlan,
    batch_config,
    begun_batches,
    lacking_shards,
    next_batches,
    plan_ingest,
)
from tests.tiny import make_corpus, run_pipeline, tiny_config

NAMES = [f"{n:02d}" for n in range(12)]


@given(st.sets(st.sampled_from(NAMES)), st.lists(st.sets(st.sampled_from(NAMES), min_size=1)), st.integers(1, 5))
def test_every_lacking_shard_is_in_exactly_one_batch(lacking: set[str], begun: list[set[str]], at_once: int) -> None:
    batches = next_batches(sorted(lacking), [tuple(sorted(batch)) for batch in begun], at_once)
    named = [name for batch in batches for name in batch]
    assert sorted(named) == sorted(lacking)
    assert all(batches)


def test_what_was_begun_comes_first_and_as_it_was_begun() -> None:
    assert next_batches(list("abcdef"), [("e", "f")], 2) == (("e", "f"), ("a", "b"), ("c", "d"))
    assert next_batches(list("abc"), [("c", "d")], 2) == (("a", "b"), ("c",))


def remote(name: str, index: int, digest: str | None = "d") -> Shard:
    return Shard(name, index, f"hf://datasets/a/b@c/{name}", 10, digest)


def held(name: str, index: int, content: str = "d") -> HeldShard:
    return HeldShard(name, index, content, datetime.now(UTC))


def test_a_shard_is_held_by_its_name_its_place_and_its_content() -> None:
    listed = [remote("a", 0), remote("b", 1), remote("c", 2, None)]
    url = "hf://datasets/a/b@c/c 10"
    assert [s.name for s in lacking_shards(listed, [held("a", 0), held("c", 2, url)])] == ["b"]
    assert [s.name for s in lacking_shards(listed, [held("a", 0, "old"), held("c", 2, "old")])] == ["a", "b", "c"]


def test_a_shard_that_moved_is_refused_and_not_ingested_twice() -> None:
    with pytest.raises(CorpusError, match="shard a is number 1 of the corpus now and was 0"):
        lacking_shards([remote("0", 0), remote("a", 1)], [held("a", 0)])


@pytest.fixture
def pile(tiny_copy: Path) -> Path:
    """A `tiny` folder with five shards that differ."""
    shutil.rmtree(tiny_copy / "corpus")
    make_corpus(tiny_copy / "more", documents=10)
    (tiny_copy / "corpus").mkdir()
    draw = random.Random(5)
    for number in range(5):
        texts = [" ".join(draw.choices(["a", "latent", "drives", "zero", "of"], k=30)) for _ in range(4)]
        lines = [f'{{"text": "{text}", "meta": {{"pile_set_name": "Made"}}}}\n' for text in texts]
        (tiny_copy / "corpus" / f"{number:02d}[x].jsonl").write_text("".join(lines))
    return tiny_copy


def plan(config: RunConfig, at_once: int = 2) -> IngestPlan:
    artifact = pipeline.fetch_artifact(config)
    identity, _ = describe_request(config, Path(artifact.folder), artifact.digest, [])
    return plan_ingest(config, identity, at_once)


def fire(config: RunConfig, at_once: int = 2) -> str:
    """What one firing of the schedule does, without Prefect."""
    return str(run_pipeline(batch_config(config, plan(config, at_once).batches[0])).run_id)


def document_shards(lake: Path, run_id: str) -> set[tuple[int, str]]:
    from jacobian_core.sql.warehouse import connect

    with connect(Lake.open(lake), [run_id]) as connection:
        return set(connection.execute("SELECT document_id, shard FROM documents").fetchall())


def test_each_firing_does_only_the_new_shards_and_ids_are_those_of_one_run_over_all(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    runs = [fire(config) for _ in range(3)]
    assert len(set(runs)) == 3
    assert plan(config) == IngestPlan(5, 5, ())
    parts = [document_shards(tmp_path / "lake", run) for run in runs]
    assert [sorted({shard[:2] for _, shard in part}) for part in parts] == [["00", "01"], ["02", "03"], ["04"]]
    whole = run_pipeline(tiny_config(pile, tmp_path / "other")).run_id
    assert set.union(*parts) == document_shards(tmp_path / "other", whole)
    shutil.copy(pile / "corpus" / "00[x].jsonl", pile / "corpus" / "05[x].jsonl")
    assert plan(config).batches == (("05[x].jsonl",),)


def test_other_settings_lack_every_shard_and_the_place_of_the_lake_is_no_setting(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    fire(config)
    assert plan(config).held == 2
    assert plan(tiny_config(pile, tmp_path / "lake", compute={"threads": 1})).held == 2
    assert plan(tiny_config(pile, tmp_path / "lake", jacobian={"min_abs": 0.01})).held == 0
    assert plan(tiny_config(pile, tmp_path / "none")).held == 0


def test_a_changed_shard_is_taken_again_and_a_touched_one_is_not(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    fire(config)
    first = pile / "corpus" / "00[x].jsonl"
    time.sleep(0.02)
    os.utime(first)
    assert plan(config).held == 2
    first.write_text(first.read_text().replace("latent", "another"))
    os.utime(first, (0, 0))  # an old date on new content
    assert plan(config).batches[0] == ("00[x].jsonl", "02[x].jsonl")


def test_an_interrupted_batch_is_finished_before_new_ones(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    interrupted = batch_config(config, ("03[x].jsonl", "04[x].jsonl"))
    run = pipeline.resolve_run(interrupted, pipeline.fetch_artifact(interrupted))
    assert plan(config).batches[0] == ("03[x].jsonl", "04[x].jsonl")
    assert fire(config) == run.run_id
    assert plan(config).batches[0] == ("00[x].jsonl", "01[x].jsonl")


def test_a_larger_run_that_someone_began_by_hand_is_left_alone(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    request = Lake.open(tmp_path / "lake").request(run.run_id)
    assert request is not None
    assert begun_batches(Lake.open(tmp_path / "lake"), config.name, request.identity, 5) != []
    assert plan(config).batches[0] == ("00[x].jsonl", "01[x].jsonl")


def test_a_limit_of_tokens_holds_for_each_shard_and_never_for_a_batch(pile: Path, tmp_path: Path) -> None:
    limited = tiny_config(pile, tmp_path / "lake", corpus={"max_tokens": 20})
    with pytest.raises(ConfigError, match=r"corpus\.max_tokens = 20 is refused"):
        plan(limited, 2)
    run_pipeline(limited)  # over all five, of which it reads only the first
    assert plan(limited, 1).held == 0
    fire(limited, 1)
    assert plan(limited, 1).held == 1
    with pytest.raises(ConfigError, match="at least 1"):
        plan(limited, 0)


def test_a_clock_that_went_backwards_hashes_and_still_finds_the_shard(pile: Path, tmp_path: Path) -> None:
    config = tiny_config(pile, tmp_path / "lake")
    fire(config)
    shards = [Shard(s.name, s.index, s.url, s.size_bytes, None) for s in pipeline.resolve_run(
        tiny_config(pile, tmp_path / "other"), pipeline.fetch_artifact(config)).shards]  # fmt: skip
    from jacobian_core.request.ingest import held_shards

    artifact = pipeline.fetch_artifact(config)
    wanted, _ = describe_request(config, Path(artifact.folder), artifact.digest, [])
    past = [
        replace(h, held_since=h.held_since - timedelta(days=9))
        for h in held_shards(Lake.open(config.lake.root), wanted)
    ]
    assert len(lacking_shards(shards, past)) == 3
    assert len(lacking_shards(shards, [replace(h, content="other") for h in past])) == 5
