"""Disks that are full or read-only: a clear error, nothing half-written, and the same request goes on afterwards."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.compare import digests
from tests.faults.faults import FULL, READ_ONLY, failing_step, no_privileges, small_files
from tests.faults.table import Harness, Tried, failure
from tests.lake.builders import temporaries

Note = Callable[[Tried], None]
_PAGE = 4096
_STEPS = 80
"""Fewer than the durable steps of a run."""


def fails_and_goes_on(harness: Harness, place: Path, fault: Callable[[], object], says: str, name: str) -> Tried:
    """A run under a fault ends with a LakeError and no temporary file; without the fault it comes to its end."""
    said, computed = harness.runs.run(harness.config, place, fault=fault)
    assert failure(said).kind in ("LakeError", "ArtifactError")
    assert says in said.message  # type: ignore[union-attr]
    assert temporaries(place) == []
    return harness.run_again(place, computed, name)


@pytest.mark.parametrize("seed", range(1))
def test_a_full_disk_at_any_write(harness: Harness, tmp_path: Path, seed: int, tried: Note) -> None:
    step = random.Random(f"full {seed}").randrange(_STEPS)
    fault = partial(failing_step, step, FULL)
    tried(fails_and_goes_on(harness, tmp_path, fault, "No space left on device", "disk full (ENOSPC injected)"))


def test_a_file_that_can_not_grow(harness: Harness, tmp_path: Path, tried: Note) -> None:
    largest = max(path.stat().st_size for path in harness.lake.rglob("part-*"))
    fault = partial(small_files, largest - 1)
    tried(fails_and_goes_on(harness, tmp_path, fault, "File too large", "file size limit"))


@pytest.fixture
def small_disk(harness: Harness, tmp_path: Path) -> Iterator[Path]:
    """A place whose lake is a file system of its own, with room for half of a run."""
    folder = tmp_path / "lake"
    folder.mkdir()
    pages = sum(-(-path.stat().st_size // _PAGE) for path in harness.lake.rglob("*") if path.is_file())
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={pages // 2 * _PAGE}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("this user may not mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_small_disk_that_grows(harness: Harness, small_disk: Path, tried: Note) -> None:
    said, computed = harness.runs.run(harness.config, small_disk)
    assert failure(said).kind == "LakeError"
    assert "No space left on device" in failure(said).message
    assert temporaries(small_disk / "lake") == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk / "lake")], check=True)
    tried(harness.run_again(small_disk, computed, "disk full (a small tmpfs)"))


def test_a_read_only_lake(harness: Harness, tmp_path: Path, tried: Note) -> None:
    """In the middle of a run the lake can no longer be written; what is there stays as it is, and readable."""
    attempt = harness.start_until(tmp_path, "write", random.Random("read-only"))
    attempt.kill()
    folders = [path for path in [tmp_path / "lake", *(tmp_path / "lake").rglob("*")] if path.is_dir()]
    before = digests(tmp_path / "lake")
    for folder in folders:
        folder.chmod(0o555)
    said, none = harness.runs.run(harness.config, tmp_path, fault=no_privileges)
    assert failure(said).kind == "LakeError"
    assert "Permission denied" in failure(said).message
    assert digests(tmp_path / "lake") == before
    for folder in folders:
        folder.chmod(0o755)
    tried(harness.run_again(tmp_path, attempt.computing.value + none, "read-only lake"))


def test_a_disk_that_turns_read_only(harness: Harness, tmp_path: Path, tried: Note) -> None:
    fault = partial(failing_step, 40, READ_ONLY)
    tried(fails_and_goes_on(harness, tmp_path, fault, "Read-only file system", "read-only lake"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_a_full_disk_for_long(harness: Harness, tmp_path: Path, seed: int, tried: Note) -> None:
    test_a_full_disk_at_any_write(harness, tmp_path, seed, tried)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 2, 3, 5, 8, 13, 21])
def test_small_files_for_long(harness: Harness, tmp_path: Path, kilobytes: int, tried: Note) -> None:
    said, computed = harness.runs.run(harness.config, tmp_path, fault=partial(small_files, kilobytes << 10))
    assert "File too large" in failure(said).message
    tried(harness.run_again(tmp_path, computed, "file size limit"))
