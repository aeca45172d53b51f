"""A shard that is damaged while it is read: what was made of it is not kept, and its sound copy gives the same lake."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from tests.faults.conftest import Configure
from tests.faults.table import Harness, Tried, failure
from tests.faults.test_damage import flip_a_bit, truncate

Note = Callable[[Tried], None]
Damage = Callable[[Path, random.Random], None]


def other_words(path: Path, draw: random.Random) -> None:
    """The same file with one word exchanged: no checksum of the format can notice it."""
    import zstandard

    lines = zstandard.decompress(path.read_bytes()).replace(b" zero ", b" nought ", draw.randrange(1, 9))
    path.write_bytes(zstandard.compress(lines))


DAMAGES: dict[str, Damage] = {"truncated": truncate, "bit flipped": flip_a_bit, "exchanged": other_words}


def is_read_again(harness: Harness, configure: Configure, mini: Path, place: Path, damage: str, seed: int) -> Tried:
    """Damage a shard after the run has hashed it; the run must fail, and with the sound shard must come to its end."""
    draw = random.Random(f"{damage} {seed}")
    corpus = harness.runs.copy(mini / "corpus", place / "corpus")
    ours = harness.configured(configure(corpus={"location": str(corpus)}))
    attempt = ours.runs.start(ours.config, place, trap=("tokenise", 0))
    assert attempt.wait_for_trap()
    attempt.pause()
    shard = corpus / "01.jsonl.zst"
    DAMAGES[damage](shard, draw)
    attempt.resume()
    said = failure(attempt.end())
    assert said.kind == "ChangedShardError"
    assert "shard 01.jsonl.zst" in said.message
    assert Lake.open(place / "lake").manifest(ours.run_id) is None
    shard.write_bytes((mini / "corpus" / shard.name).read_bytes())
    computed = attempt.computing.value
    said, more = ours.runs.run(ours.config, place)
    return ours.check(place, computed + more - ours.blocks, f"shard {damage} while it is read")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_damaged_while_it_is_read(
    harness: Harness, configure: Configure, mini: Path, tmp_path: Path, damage: str, tried: Note
) -> None:
    tried(is_read_again(harness, configure, mini, tmp_path, damage, 0))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_shard_damaged_for_long(
    harness: Harness, configure: Configure, mini: Path, tmp_path: Path, damage: str, seed: int, tried: Note
) -> None:
    tried(is_read_again(harness, configure, mini, tmp_path, damage, seed))
