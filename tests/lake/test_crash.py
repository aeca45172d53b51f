"""Killed before any of its durable steps and started again, a run leaves the lake that an undisturbed run leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from tests.lake.builders import RUN, snapshot, temporaries, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("killed")
    driver = [sys.executable, "-m", "tests.lake.crash_driver", str(folder)]
    done = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [folder / str(step) for step in range(int(done.stdout))]


def test_every_durable_step_was_tried(killed: list[Path]) -> None:
    assert len(killed) > 40  # 9 parts with 3 steps each, 5 records, removals
    unfinished = [Lake(root).manifest(RUN) is None for root in killed]
    assert unfinished == sorted(unfinished, reverse=True)
    assert unfinished.count(False) >= 2  # after the manifest, and undisturbed
    assert any(temporaries(root) for root in killed)


def test_readers_see_whole_blocks_only(killed: list[Path]) -> None:
    for root in killed:
        for run in Lake(root).catalogue().values():
            assert len({len(parts) for table, parts in run.parts.items() if table != "pair_stats"}) <= 1
            assert all(
                (root / part.path).stat().st_size == part.bytes for parts in run.parts.values() for part in parts
            )


def test_a_later_kill_never_loses_a_block(killed: list[Path]) -> None:
    """Nor is there a moment, such as while the run is published, when blocks are gone that were there before."""
    seen = [len(Lake(root).markers(RUN)) for root in killed]
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}


def test_the_second_attempt_leaves_the_undisturbed_lake(killed: list[Path], tmp_path: Path) -> None:
    undisturbed = Lake.create(tmp_path / "undisturbed")
    write_run(undisturbed)
    expected = snapshot(undisturbed.root)
    for root in killed:
        lake = Lake.create(root)
        write_run(lake)
        assert temporaries(root) == []
        assert snapshot(root) == expected, root.name
    assert verify_lake(lake) == []
