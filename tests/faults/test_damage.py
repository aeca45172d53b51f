"""Parts and records that were damaged behind the lake's back: `verify` finds them, and the run repairs them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import Finding, verify_lake
from tests.faults.child import Done
from tests.faults.table import Harness, Tried, failure

Note = Callable[[Tried], None]


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def errors_of(lake: Path) -> list[Finding]:
    return [finding for finding in verify_lake(Lake.open(lake)) if finding.severity == "error"]


def is_repaired(harness: Harness, place: Path, table: str, damage: str, seed: int) -> Tried:
    """Damage a random part of a finished run; verify must name it, and the run must make it again."""
    draw = random.Random(f"{table} {damage} {seed}")
    harness.runs.copy(harness.lake, place / "lake")
    part = draw.choice(sorted((place / "lake" / table).rglob("part-*")))
    {"truncated": truncate, "bit flipped": flip_a_bit, "removed": lambda path, _: path.unlink()}[damage](part, draw)
    found = errors_of(place / "lake")
    assert part.relative_to(place / "lake").as_posix() in [finding.path for finding in found]
    if damage == "bit flipped":
        assert all("Remove the file and start the run again" in f.remedy or "part" not in f.path for f in found)
        part.unlink()
    said, computed = harness.runs.run(harness.config, place)
    assert isinstance(said, Done), said
    assert said.state == "resume"
    assert computed == (table != "pair_stats")
    return harness.check(place, computed, f"part {damage}")


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("jacobian_entries", "truncated"),
        ("tokens", "bit flipped"),
        ("latents", "removed"),
        ("pair_stats", "bit flipped"),
    ],
)
def test_a_damaged_part(harness: Harness, tmp_path: Path, table: str, damage: str, tried: Note) -> None:
    tried(is_repaired(harness, tmp_path, table, damage, 0))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
@pytest.mark.parametrize("table", ["tokens", "documents", "latents", "interventions", "jacobian_entries", "pair_stats"])
@pytest.mark.parametrize("seed", range(100, 102))
def test_damaged_parts_for_long(
    harness: Harness, tmp_path: Path, table: str, damage: str, seed: int, tried: Note
) -> None:
    tried(is_repaired(harness, tmp_path, table, damage, seed))


@pytest.mark.parametrize("record", ["done/*.json", "staged/*.arrow"])
def test_a_damaged_record_of_a_run_in_progress(harness: Harness, tmp_path: Path, record: str, tried: Note) -> None:
    attempt = harness.runs.start(harness.config, tmp_path, trap=("compute", 2))
    assert attempt.wait_for_trap()
    attempt.kill()
    draw = random.Random(record)
    path = draw.choice(sorted((tmp_path / "lake" / "_work" / harness.run_id).glob(record)))
    truncate(path, draw)
    said, computed = harness.runs.run(harness.config, tmp_path)
    assert isinstance(said, Done), said
    recomputed = attempt.computing.value + computed - harness.blocks
    tried(harness.check(tmp_path, recomputed, "record of a run in progress truncated"))


def test_a_damaged_manifest(harness: Harness, tmp_path: Path, tried: Note) -> None:
    harness.runs.copy(harness.lake, tmp_path / "lake")
    manifest = tmp_path / "lake" / "runs" / f"{harness.run_id}.json"
    truncate(manifest, random.Random("manifest"))
    assert [finding.path for finding in errors_of(tmp_path / "lake")] == [f"runs/{harness.run_id}.json"]
    said, none = harness.runs.run(harness.config, tmp_path)
    assert "remove it and start the run again" in failure(said).message
    assert none == 0
    manifest.unlink()
    tried(harness.run_again(tmp_path, harness.blocks, "manifest truncated"))
