"""Compaction: the same rows in fewer files, at every moment, whoever reads, and whatever kills it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jacobian_core.contracts import BLOCK_TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake.compact import compact_run, row_groups
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo, to_json
from jacobian_core.lake.retention import sweep_lake
from jacobian_core.lake.runs import begin_run
from jacobian_core.lake.verify import verify_lake
from jacobian_core.sql.warehouse import connect
from jacobian_core.sql.warehouse_file import build_warehouse
from tests.lake.builders import IDENTITY, RUN, snapshot, temporaries, write_block, write_run
from tests.maintenance.rows import parts_named, parts_on_disk, rows_of, seen

ROOT = Path(__file__).parents[2]
BLOCKS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A finished run of four blocks; only read."""
    lake = Lake.create(tmp_path_factory.mktemp("whole") / "lake")
    write_run(lake, BLOCKS)
    return lake


@pytest.fixture
def lake(whole: Lake, tmp_path: Path) -> Lake:
    return Lake.open(shutil.copytree(whole.root, tmp_path / "lake"))


def errors(lake: Lake) -> list[str]:
    return [f"{found.path}: {found.what}" for found in verify_lake(lake) if found.severity == "error"]


def test_the_same_rows_in_one_part_a_table(lake: Lake) -> None:
    before, totals = seen(lake), lake.manifest(RUN).totals  # type: ignore[union-attr]
    done = compact_run(lake, RUN)
    assert (done.parts_before, done.parts_after) == (BLOCKS * len(BLOCK_TABLES), len(BLOCK_TABLES))
    assert seen(lake) == before
    manifest = lake.manifest(RUN)
    assert manifest is not None
    assert manifest.totals == totals
    assert {table: len(parts) for table, parts in manifest.all_parts().items()} == {
        **dict.fromkeys(BLOCK_TABLES, 1), "pair_stats": 1
    }  # fmt: skip
    assert errors(lake) == []


def test_again_changes_nothing(lake: Lake) -> None:
    compact_run(lake, RUN)
    before = snapshot(lake.root)
    assert not compact_run(lake, RUN).done
    assert snapshot(lake.root) == before


def test_parts_close_at_the_wanted_rows_and_are_left_alone_then(lake: Lake) -> None:
    done = compact_run(lake, RUN, part_rows=6)
    manifest = lake.manifest(RUN)
    assert manifest is not None
    assert [part.rows for part in manifest.all_parts()["tokens"]] == [6, 6]
    assert [part.rows for part in manifest.all_parts()["jacobian_entries"]] == [12] * BLOCKS  # each is large enough
    assert not compact_run(lake, RUN, part_rows=6).done
    assert done.parts_after > compact_run(lake, RUN).parts_after == len(BLOCK_TABLES)
    assert errors(lake) == []


@pytest.mark.parametrize("rows", [[], [0], [0, 0, 0], [5, 1, 9, 2, 2], [1] * 7])
def test_groups_keep_every_part_once_and_in_order(rows: list[int]) -> None:
    parts = [PartInfo(path=f"t/p{i}", rows=n, bytes=1, sha256="0" * 64) for i, n in enumerate(rows)]
    groups = row_groups(parts, 4)
    assert [part for group in groups for part in group] == parts
    assert all(sum(part.rows for part in group) >= 4 for group in groups[:-1])
    merged = [PartInfo(path="m", rows=sum(p.rows for p in g), bytes=1, sha256="0" * 64) for g in groups]
    assert all(len(group) == 1 for group in row_groups(merged, 4))


def test_a_reader_with_an_old_list_sees_all_rows_until_the_sweep(lake: Lake) -> None:
    with connect(lake) as reader:
        before = rows_of(reader)
        compact_run(lake, RUN)
        assert sweep_lake(lake).removed == 0
        assert rows_of(reader) == before
        swept = sweep_lake(lake, grace_seconds=0)
        assert swept.removed == BLOCKS * len(BLOCK_TABLES)
        with pytest.raises(Exception, match=r"part-0000-\d+\.parquet"):  # an error, never fewer rows
            rows_of(reader)
    assert parts_on_disk(lake) == parts_named(lake)
    assert verify_lake(lake) == []


def test_readers_that_come_meanwhile_see_all_rows(lake: Lake) -> None:
    expected, found, over = seen(lake), list[str](), threading.Event()

    def read() -> None:
        while not over.is_set():
            found.append(seen(lake))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        compact_run(lake, RUN, part_rows=6)
        compact_run(lake, RUN)
    finally:
        over.set()
        reader.join()
    assert set(found) <= {expected}
    assert found


def test_a_doubled_part_would_be_seen(lake: Lake) -> None:
    """The comparison notices what it is for."""
    expected, manifest = seen(lake), lake.manifest(RUN)
    assert manifest is not None
    compact_run(lake, RUN)
    merged = lake.manifest(RUN)
    assert merged is not None
    doubled = merged.parts | {"tokens": [*merged.parts["tokens"], manifest.all_parts()["tokens"][0]]}
    lake.manifest_path(RUN).write_bytes(to_json(merged.model_copy(update={"parts": doubled})))
    assert seen(lake) != expected
    assert any("rows may be doubled" in error for error in errors(lake))
    assert any("total tokens" in error for error in errors(lake))


def test_wrong_totals_of_a_block_are_found_in_a_compacted_run(lake: Lake) -> None:
    compact_run(lake, RUN)
    manifest = lake.manifest(RUN)
    assert manifest is not None
    blocks = list(manifest.blocks)
    blocks[1], blocks[2] = (
        blocks[1].model_copy(update={"totals": blocks[2].totals}),
        blocks[2].model_copy(update={"totals": blocks[1].totals}),
    )
    lake.manifest_path(RUN).write_bytes(to_json(manifest.model_copy(update={"blocks": blocks})))
    assert {error.split(":")[0] for error in errors(lake)} == {f"block {blocks[n].block_id}" for n in (1, 2)}


def test_a_damaged_part_is_refused_and_nothing_changes(lake: Lake) -> None:
    manifest = lake.manifest(RUN)
    assert manifest is not None
    victim = lake.root / manifest.all_parts()["latents"][1].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    before = snapshot(lake.root)
    with pytest.raises(LakeError, match="not what the run's manifest says"):
        compact_run(lake, RUN)
    assert {k: v for k, v in snapshot(lake.root).items() if not k.endswith(".lock")} == before
    assert temporaries(lake.root) == []


def test_only_a_finished_run_is_compacted(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "going")
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    with pytest.raises(LakeError, match="not finished"):
        compact_run(lake, RUN)


def test_the_same_request_finds_a_compacted_run_done(lake: Lake) -> None:
    compact_run(lake, RUN)
    assert begin_run(lake, RUN, IDENTITY, {}) == "done"


def test_a_worker_that_wakes_late_is_content_and_other_data_are_refused(lake: Lake) -> None:
    compact_run(lake, RUN)
    before = seen(lake)
    assert write_block(lake, 1).totals["tokens"] == 3
    with pytest.raises(LakeError, match="with other"):
        write_block(lake, 1, tokens=4)
    assert seen(lake) == before
    assert temporaries(lake.root) == []


def test_a_compacted_run_that_lost_a_part_is_computed_again(lake: Lake) -> None:
    expected = seen(lake)
    compact_run(lake, RUN)
    sweep_lake(lake, grace_seconds=0)
    manifest = lake.manifest(RUN)
    assert manifest is not None
    (lake.root / manifest.all_parts()["tokens"][0].path).unlink()
    assert begin_run(lake, RUN, IDENTITY, {}) == "resume"
    assert lake.done_blocks(RUN) == []
    write_run(lake, BLOCKS)
    build_warehouse(lake)
    assert seen(lake) == expected
    sweep_lake(lake, grace_seconds=0)
    assert verify_lake(lake) == []


def test_killed_at_any_step_the_rows_are_all_there_and_the_next_attempt_finishes(tmp_path: Path) -> None:
    whole = Lake.create(tmp_path / "whole")
    write_run(whole, 2)
    driver = [sys.executable, "-m", "tests.maintenance.crash_driver", str(whole.root), str(tmp_path)]
    done = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    attempts, expected = int(done.stdout), seen(whole)
    assert attempts > 30  # 6 parts with 3 steps each, manifest, warehouse, 12 removals
    compacted = [not Lake(tmp_path / str(n)).markers(RUN)[0].parts for n in range(attempts)]
    assert compacted == sorted(compacted)
    assert {False, True} == set(compacted)
    from tests.maintenance.crash_driver import maintain

    final = set()
    for number in range(attempts):
        lake = Lake.open(tmp_path / str(number))
        assert seen(lake) == expected, number
        if number % 6 == 0 or number > attempts - 3:  # the second attempt costs more than the look
            maintain(lake.root)
            assert seen(lake) == expected, number
            assert verify_lake(lake) == [], number
            assert parts_on_disk(lake) == parts_named(lake)
            final.add(repr(sorted(parts_named(lake))))
    assert len(final) == 1


def test_a_killed_compaction_s_parts_wait_for_their_time(lake: Lake) -> None:
    """A sweep must not take new parts from a compaction's hands, nor leave them for ever."""
    stray = lake.part_path("tokens", RUN, "compact-000000000000")
    shutil.copy(lake.root / lake.run_files(RUN).parts["tokens"][0].path, stray)
    long_ago = time.time() - 10_000
    os.utime(lake.manifest_path(RUN), (long_ago, long_ago))
    assert sweep_lake(lake).waiting == 1
    assert stray.is_file()
    os.utime(stray, (long_ago, long_ago))
    assert sweep_lake(lake).removed == 1
    assert not stray.is_file()
    assert pq.read_metadata(lake.root / lake.run_files(RUN).parts["tokens"][0].path).num_rows == 3
