"""A block is published once, whole, by whoever comes first; a run is published last, and then does not change."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from jacobian_core.contracts import BLOCK_TABLES, TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.lake.publish import (
    BlockNotes,
    block_totals,
    merge_totals,
    publish_block,
    publish_part,
    withdraw_block,
)
from jacobian_core.lake.runs import begin_run, publish_run, sweep
from tests.lake.builders import (
    CONFIG,
    IDENTITY,
    RUN,
    example_tables,
    manifest_of,
    snapshot,
    temporaries,
    write_block,
    write_pair_stats,
    write_run,
)

BLOCK = "0000-000000"


@pytest.fixture
def begun(lake: Lake) -> Lake:
    begin_run(lake, RUN, IDENTITY, {"corpus": {"max_tokens": 10}})
    return lake


def _prepare(lake: Lake, tables: dict[str, pa.Table], block_id: str = BLOCK) -> list[PreparedPart]:
    parts = []
    for name in BLOCK_TABLES:
        with PartWriter(lake, TABLES[name], RUN, block_id, CONFIG) as writer:
            writer.write(tables.get(name, TABLES[name].schema().empty_table()))
            parts.append(writer.finish())
    return parts


# ---- totals


def test_totals_are_the_tables_counts_and_sums() -> None:
    tables = example_tables(tokens=5, latents=3)
    totals = block_totals(tables)
    values = [abs(row["value"]) for row in tables["jacobian_entries"].to_pylist()]
    assert {key: totals[key] for key in ("tokens", "documents", "latents", "entries_total", "entries_stored")} == {
        "tokens": 5, "documents": 1, "latents": 30, "entries_total": 45, "entries_stored": 45,
    }  # fmt: skip
    assert totals["abs_sum_total"] == pytest.approx(math.fsum(values), rel=1e-12)
    assert totals["sq_sum_total"] == pytest.approx(math.fsum(v * v for v in values), rel=1e-12)


def test_sums_do_not_depend_on_the_order_of_addition() -> None:
    tables = example_tables()
    schema = tables["tokens"].schema
    sums = pa.array([1e16, 1.0, 1.0])
    index = schema.get_field_index("abs_sum_total")
    forth = {**tables, "tokens": tables["tokens"].set_column(index, schema.field(index), sums)}
    back = {**tables, "tokens": forth["tokens"].take(pa.array([2, 1, 0]))}
    assert block_totals(forth)["abs_sum_total"] == block_totals(back)["abs_sum_total"] == 1e16 + 2
    assert sum([1e16, 1.0, 1.0]) == 1e16  # what a plain sum would have lost


def test_totals_merge_alike_in_any_order(begun: Lake) -> None:
    blocks = [write_block(begun, number) for number in range(4)]
    merged = merge_totals(blocks)
    assert merged == merge_totals(blocks[::-1])
    assert merged["tokens"] == 12
    assert type(merged["tokens"]) is int


# ---- blocks


def test_a_published_block_is_left_alone_by_the_same_block(begun: Lake) -> None:
    first = write_block(begun, 0)
    before = snapshot(begun.root)
    assert write_block(begun, 0) == first
    assert snapshot(begun.root) == before


@pytest.mark.parametrize("finished", [False, True])
def test_the_same_block_again_heals_a_lost_part(begun: Lake, finished: bool) -> None:
    write_block(begun, 0)
    if finished:
        write_run(begun, blocks=1)
    before = snapshot(begun.root)
    begun.part_path("latents", RUN, BLOCK).unlink()
    assert snapshot(begun.root) != before
    write_block(begun, 0)
    assert snapshot(begun.root) == before


def test_a_published_block_is_not_changed_by_another(begun: Lake) -> None:
    write_block(begun, 0)
    before = snapshot(begun.root)
    tables = example_tables(0, 0, tokens=2)
    with pytest.raises(LakeError, match=f"block {BLOCK} is published already, with other tokens"):
        publish_block(begun, RUN, BLOCK, _prepare(begun, tables), block_totals(tables), BlockNotes())
    assert snapshot(begun.root) == before
    withdraw_block(begun, RUN, BLOCK)
    assert begun.catalogue()[RUN].parts == {}
    assert (
        publish_block(begun, RUN, BLOCK, _prepare(begun, tables), block_totals(tables), BlockNotes()).totals["tokens"]
        == 2
    )


def test_the_writer_of_blocks_and_the_steps_by_hand_agree(begun: Lake, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    begin_run(other, RUN, IDENTITY, {})
    tables = example_tables()
    by_hand = publish_block(other, RUN, BLOCK, _prepare(other, tables), block_totals(tables), BlockNotes())
    assert write_block(begun, 0).same_data(by_hand)


def test_a_block_needs_all_of_its_tables_and_right_totals(begun: Lake) -> None:
    tables = example_tables()
    totals = block_totals(tables)
    with pytest.raises(LakeError, match=rf"none of \['{BLOCK_TABLES[-1]}'\]"):
        publish_block(begun, RUN, BLOCK, _prepare(begun, tables)[:-1], totals, BlockNotes())
    with pytest.raises(LakeError, match="total entries_stored is 11, but jacobian_entries has 12 rows"):
        publish_block(begun, RUN, BLOCK, _prepare(begun, tables), totals | {"entries_stored": 11}, BlockNotes())
    with pytest.raises(LakeError, match="belongs to another block"):
        publish_block(begun, RUN, BLOCK, _prepare(begun, tables, "0000-000001"), totals, BlockNotes())
    assert begun.markers(RUN) == []
    withdrawn = [name for name in temporaries(begun.root) if "jacobian_entries" not in name]
    assert len(withdrawn) == 1  # the part that was held back above belongs to the test
    publish_block(begun, RUN, BLOCK, _prepare(begun, tables), totals, BlockNotes())


def test_a_block_of_a_run_that_was_not_begun_is_refused(lake: Lake) -> None:
    with pytest.raises(LakeError, match=f"run {RUN} was not begun"):
        write_block(lake, 0)
    assert temporaries(lake.root) == []


def test_many_workers_on_one_block_publish_it_once(begun: Lake) -> None:
    with ThreadPoolExecutor(6) as pool:
        markers = list(pool.map(lambda _: write_block(begun, 0), range(6)))
    assert all(marker == markers[0] for marker in markers)
    assert begun.markers(RUN) == [markers[0]]
    assert temporaries(begun.root) == []


def test_a_worker_waits_while_another_publishes(begun: Lake) -> None:
    with ThreadPoolExecutor(1) as pool:
        with files.exclusive(begun.lock_path(RUN)):
            waiting = pool.submit(write_block, begun, 0)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert begun.markers(RUN) == []
            assert not list(begun.root.glob("*/*/part-*"))
        assert [waiting.result(30)] == begun.markers(RUN)


def test_a_worker_that_wakes_after_the_run_was_published_changes_nothing(begun: Lake) -> None:
    tables = example_tables()
    late = _prepare(begun, tables)
    write_run(begun, blocks=1)
    late_too = _prepare(begun, example_tables(0, 7), "0000-000007")
    before = {path: digest for path, digest in snapshot(begun.root).items() if ".tmp-" not in path}
    assert publish_block(begun, RUN, BLOCK, late, block_totals(tables), BlockNotes()).block_id == BLOCK
    with pytest.raises(LakeError, match="finished, without a block 0000-000007"):
        publish_block(begun, RUN, "0000-000007", late_too, block_totals(example_tables(0, 7)), BlockNotes())
    assert snapshot(begun.root) == before


def test_a_finished_run_keeps_its_run_level_parts(begun: Lake) -> None:
    write_run(begun)
    assert write_pair_stats(begun) == begun.catalogue()[RUN].parts["pair_stats"][0]
    with PartWriter(begun, TABLES["pair_stats"], RUN, "active", CONFIG) as writer:
        other = writer.finish()
    with pytest.raises(LakeError, match="is finished, with other bytes"):
        publish_part(begun, other)
    assert temporaries(begun.root) == []


# ---- runs


def test_a_run_is_new_then_resumed_then_done(lake: Lake) -> None:
    assert begin_run(lake, RUN, IDENTITY, {}) == "new"
    assert begin_run(lake, RUN, IDENTITY, {}) == "resume"
    write_run(lake)
    before = snapshot(lake.root)
    assert begin_run(lake, RUN, IDENTITY, {}) == "done"
    assert snapshot(lake.root) == before
    assert not lake.work_folder(RUN).exists()


def test_another_request_under_the_same_id_is_refused(lake: Lake) -> None:
    other = {**IDENTITY, "artifact": "b" * 64}
    begin_run(lake, RUN, IDENTITY, {"compute": {"threads": 1}})
    assert begin_run(lake, RUN, IDENTITY, {"compute": {"threads": 2}}) == "resume"
    with pytest.raises(LakeError, match=r"another request \(artifact differ\)"):
        begin_run(lake, RUN, other, {})
    write_run(lake)
    with pytest.raises(LakeError, match=r"another request \(artifact differ\)"):
        begin_run(lake, RUN, other, {})


def test_publishing_a_run_again_does_nothing_and_other_data_are_refused(lake: Lake) -> None:
    manifest = write_run(lake)
    before = snapshot(lake.root)
    publish_run(lake, manifest.model_copy(update={"seconds": {"compute": 9.0}}))
    assert snapshot(lake.root) == before
    with pytest.raises(LakeError, match="finished already, with other data"):
        publish_run(lake, manifest.model_copy(update={"blocks": manifest.blocks[:1]}))


def test_a_manifest_must_name_exactly_what_was_done(begun: Lake) -> None:
    for number in range(2):
        write_block(begun, number)
    manifest = manifest_of(begun, write_pair_stats(begun))
    wrong = [
        ({"blocks": manifest.blocks[:1]}, r"does not match the finished blocks \(0000-000001\)"),
        ({"blocks": manifest.blocks + manifest.blocks[:1]}, "does not match the finished blocks"),
        ({"totals": {**manifest.totals, "tokens": 7}}, "total tokens is 7, its blocks say 6"),
        ({"identity": {"artifact": "c"}}, "another request"),
        ({"parts": {"pairs": manifest.parts["pair_stats"]}}, "'pairs' is not a table"),
    ]
    for change, message in wrong:
        with pytest.raises(LakeError, match=message):
            publish_run(begun, manifest.model_copy(update=change))
    begun.part_path("pair_stats", RUN, "active").unlink()
    with pytest.raises(LakeError, match=r"part-active.parquet: missing"):
        publish_run(begun, manifest)
    assert begun.manifest(RUN) is None
    write_pair_stats(begun)
    publish_run(begun, manifest)
    assert begun.manifest(RUN) == manifest


@pytest.mark.parametrize(
    ("damage", "finished"),
    [
        ("missing part", False),
        ("short part", False),
        ("damaged marker", False),
        ("missing part", True),
        ("short part", True),
    ],
)
def test_damaged_blocks_are_done_again_and_only_they(
    lake: Lake, damage: str, finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    intact = [write_block(lake, number) for number in range(2)]
    if finished:
        write_run(lake)
    part, marker = lake.part_path("latents", RUN, BLOCK), lake.marker_path(RUN, BLOCK)
    if damage == "missing part":
        part.unlink()
    elif damage == "short part":
        os.truncate(part, 100)
    else:
        marker.write_bytes(marker.read_bytes()[:50])
    assert begin_run(lake, RUN, IDENTITY, {}) == "resume"
    assert "computed again" in caplog.text
    assert lake.done_blocks(RUN) == ["0000-000001"]
    assert lake.manifest(RUN) is None
    assert write_run(lake).blocks == intact
    assert begin_run(lake, RUN, IDENTITY, {}) == "done"


def test_the_work_folder_of_a_finished_run_is_cleared(lake: Lake) -> None:
    write_run(lake)
    files.write_atomic(lake.staged_path(RUN, BLOCK), b"late")
    assert begin_run(lake, RUN, IDENTITY, {}) == "done"
    assert not lake.work_folder(RUN).exists()


# ---- temporary files


def _temporary_of(pid: int, folder: Path) -> Path:
    mine = files.temporary_path(folder / "part-0000-000000.parquet")
    path = folder / mine.name.replace(f"-{os.getpid()}-", f"-{pid}-")
    path.write_bytes(b"half")
    return path


def test_only_files_of_dead_processes_and_old_strangers_are_swept(begun: Lake) -> None:
    write_block(begun, 0)
    folder = begun.part_path("tokens", RUN, BLOCK).parent
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = _temporary_of(ended.pid, folder), _temporary_of(os.getppid(), folder)
    own = files.temporary_path(folder / "part.parquet")
    own.write_bytes(b"")
    foreign = folder / own.name.replace(".tmp-", ".tmp-0", 1)
    foreign.write_bytes(b"")
    assert sweep(begun, RUN) == 1
    assert (dead.exists(), alive.exists(), own.exists(), foreign.exists()) == (False, True, True, True)
    old = own.stat().st_mtime - 2 * files.STALE_AFTER_SECONDS
    for path in (alive, own, foreign):
        os.utime(path, (old, old))
    assert sweep(begun, RUN) == 2
    assert (alive.exists(), own.exists(), foreign.exists()) == (False, True, False)
    assert begun.part_path("tokens", RUN, BLOCK).exists()


def test_a_restarted_container_s_files_are_swept_although_the_process_id_is_ours(begun: Lake) -> None:
    write_block(begun, 0)
    own = files.temporary_path(begun.part_path("tokens", RUN, "0000-000001"))
    host, pid, token, *rest = own.name.removeprefix(".tmp-").split("-")
    earlier = own.with_name("-".join([f".tmp-{host}", pid, token[::-1] + "0", *rest]))
    for path in (own, earlier):
        path.write_bytes(b"")
    assert sweep(begun, RUN) == 1
    assert own.exists()


def test_a_lock_that_is_held_too_long_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "publish.lock"
    with files.exclusive(path), pytest.raises(LakeError, match="another process has held this lock"):
        with files.exclusive(path, timeout_s=0.05):
            pass
    with files.exclusive(path, timeout_s=0.05):
        pass


def test_an_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    files.write_atomic(path, b"old")

    def fail(temporary: Path, path: Path) -> None:
        raise LakeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", fail)
        with pytest.raises(LakeError):
            files.write_atomic(path, b"new")
    assert snapshot(tmp_path).keys() == {"record.json"}
    assert path.read_bytes() == b"old"
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
