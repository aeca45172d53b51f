"""Runs that keep aggregates alone: the pair_stats of runs that keep entries, byte by byte, from a small work folder."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.publish import withdraw_block
from jacobian_core.lake.verify import verify_lake
from jacobian_core.pairs import build, levels, merging, sums_file
from jacobian_core.pairs.ended import list_ends, record_end
from jacobian_core.pairs.levels import Group, digest_of, list_sources, ready
from jacobian_core.pairs.merging import mend_sums, merge_ready
from jacobian_core.pairs.summed import sums_folder
from tests.pairs.aggregates import begin, blocks_of, pair_bytes, write_block
from tests.sql.lakes import RANDOM_RUN, Token, random_lake, random_tokens

TOKENS = random_tokens(180, seed=21, scale=6.0)
SIZE = 15


def _kept(root: Path, min_abs: float = 0.0, tokens: list[Token] = TOKENS) -> bytes:
    """What a run that keeps entries has."""
    return pair_bytes(random_lake(root, RANDOM_RUN, tokens, min_abs, complete=False))


def _levels(lake: Lake) -> Counter[int]:
    return Counter(source.group.level for source in list_sources(sums_folder(lake, RANDOM_RUN)))


@pytest.fixture
def fan_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many files are merged into one."""
    return lambda count: monkeypatch.setattr(levels, "FAN_IN", count)


@pytest.mark.parametrize("min_abs", [0.0, 0.02, 1e30])
@pytest.mark.parametrize("fan", [2, 3])
def test_same_bytes_in_any_order_of_blocks(
    tmp_path: Path, fan_in: Callable[[int], None], fan: int, min_abs: float
) -> None:
    fan_in(fan)
    expected = _kept(tmp_path / "kept", min_abs)
    for seed, size in ((0, 15), (1, 15), (2, 7), (3, 180)):
        lake = begin(tmp_path / f"{seed}", min_abs)
        blocks = blocks_of(TOKENS, size, min_abs)
        draw = random.Random(seed)
        for block_id in draw.sample(sorted(blocks), len(blocks)):
            write_block(lake, block_id, blocks[block_id])
            if draw.random() < 0.7:  # not at every block, as a worker that was stopped does
                merge_ready(lake, RANDOM_RUN)
        assert pair_bytes(lake) == expected
        merge_ready(lake, RANDOM_RUN)
        assert pair_bytes(lake) == expected
        assert size == 180 or max(_levels(lake)) >= 2


def test_other_entries_give_other_bytes(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    fan_in(2)
    place = next(n for n, token in enumerate(TOKENS) if token.jacobian)
    pair, value = next(iter(TOKENS[place].jacobian.items()))
    changed = [*TOKENS]
    token = TOKENS[place]
    changed[place] = Token(
        token.row, token.position, token.text, token.inputs, token.outputs,
        {**token.jacobian, pair: value * (1 + 1e-6)},
    )  # fmt: skip
    lake = begin(tmp_path / "changed")
    for block_id, tables in blocks_of(changed, SIZE).items():
        write_block(lake, block_id, tables)
        merge_ready(lake, RANDOM_RUN)
    assert pair_bytes(lake) != _kept(tmp_path / "kept")


def test_work_folder_holds_few_files(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    """After every block, at most FAN_IN - 1 files a level; and no rows of blocks that are in sums."""
    fan_in(3)
    lake = begin(tmp_path)
    for number, (block_id, tables) in enumerate(blocks_of(TOKENS, 5).items(), 1):
        write_block(lake, block_id, tables)
        merge_ready(lake, RANDOM_RUN)
        digits, left = [], number
        while left:
            left, digit = divmod(left, 3)
            digits.append(digit)
        assert _levels(lake) == Counter({level: digit for level, digit in enumerate(digits) if digit})
    assert not [path for path in files.list_folder(sums_folder(lake, RANDOM_RUN)) if files.is_temporary(path)]


@pytest.mark.parametrize("min_abs", [0.0, 0.02])
def test_strips_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_abs: float) -> None:
    monkeypatch.setattr(levels, "FAN_IN", 2)
    monkeypatch.setattr(sums_file, "_BATCH_CELLS", 1)
    monkeypatch.setattr(build, "_MERGED_CELLS", 20)
    monkeypatch.setattr(merging, "_ROWS_AT_ONCE", 5)
    lake = begin(tmp_path / "summed", min_abs)
    for block_id, tables in blocks_of(TOKENS, SIZE, min_abs).items():
        write_block(lake, block_id, tables)
        merge_ready(lake, RANDOM_RUN)
    assert pair_bytes(lake) == _kept(tmp_path / "kept", min_abs)


def test_a_merge_is_a_function_of_its_inputs(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    fan_in(2)
    found = []
    for name in ("a", "b"):
        lake = begin(tmp_path / name)
        blocks = blocks_of(TOKENS, SIZE)
        for block_id in sorted(blocks, reverse=name == "b"):
            write_block(lake, block_id, blocks[block_id])
        merge_ready(lake, RANDOM_RUN)
        found.append({s.path.name: s.path.read_bytes() for s in list_sources(sums_folder(lake, RANDOM_RUN))})  # type: ignore[union-attr]
    assert found[0] == found[1]
    assert any(name.endswith(".sums") for name in found[0])


class StoppedError(Exception):
    """A worker that is stopped there."""


@pytest.mark.parametrize("step", ["place", "remove", "remove a second"])
def test_stopped_in_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fan_in: Callable[[int], None], step: str
) -> None:
    """Before the merged file has its name, or before what was merged is removed: nothing is lost or counted twice."""
    fan_in(2)
    lake = begin(tmp_path / "stopped")
    for block_id, tables in blocks_of(TOKENS, SIZE).items():
        write_block(lake, block_id, tables)
    calls = 0

    def stop(*arguments: object) -> bool:
        nonlocal calls
        calls += 1
        if step == "remove a second" and calls == 1:
            real(*arguments)  # type: ignore[arg-type]
            return True
        raise StoppedError

    name = "_placed" if step == "place" else "remove_source"
    real = getattr(merging, name)
    with monkeypatch.context() as patched:
        patched.setattr(merging, name, stop)
        with pytest.raises(StoppedError):
            merge_ready(lake, RANDOM_RUN)
    expected = _kept(tmp_path / "kept")
    assert pair_bytes(lake) == expected
    mend_sums(lake, RANDOM_RUN)
    assert pair_bytes(lake) == expected
    merge_ready(lake, RANDOM_RUN)
    assert pair_bytes(lake) == expected
    assert _levels(lake) == Counter({3: 1, 2: 1})  # 12 blocks


def _merged_blocks(lake: Lake) -> dict[str, dict[str, pa.Table]]:
    """Write the usual blocks and merge what can be."""
    blocks = blocks_of(TOKENS, SIZE)
    for block_id, tables in blocks.items():
        write_block(lake, block_id, tables)
    merge_ready(lake, RANDOM_RUN)
    return blocks


def test_gone_sums_are_computed_again(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    fan_in(2)
    lake = begin(tmp_path / "damaged")
    blocks = _merged_blocks(lake)
    widest = max(list_sources(sums_folder(lake, RANDOM_RUN)), key=lambda source: source.group)
    files.remove(widest.path)
    with pytest.raises(LakeError, match="the sums of 8 blocks are gone"):
        pair_bytes(lake)
    mend_sums(lake, RANDOM_RUN)
    assert lake.done_blocks(RANDOM_RUN) == sorted(blocks)[8:]
    for block_id in sorted(blocks)[:8]:
        write_block(lake, block_id, blocks[block_id])
    assert pair_bytes(lake) == _kept(tmp_path / "kept")


def test_a_block_that_is_computed_again_counts_once(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    """Its marker was dropped (a part was damaged) after its entries had been summed with those of others."""
    fan_in(2)
    lake = begin(tmp_path / "again")
    blocks = _merged_blocks(lake)
    before = _levels(lake)
    withdraw_block(lake, RANDOM_RUN, "0000-000003")
    mend_sums(lake, RANDOM_RUN)
    assert _levels(lake) == before
    assert len(lake.done_blocks(RANDOM_RUN)) == len(blocks) - 1
    write_block(lake, "0000-000003", blocks["0000-000003"])
    merge_ready(lake, RANDOM_RUN)
    assert pair_bytes(lake) == _kept(tmp_path / "kept")


def test_a_block_that_comes_out_differently(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    """Sums of its old entries do not count, so the other blocks in them are computed again too."""
    fan_in(2)
    lake = begin(tmp_path / "other")
    other = [Token(t.row, t.position, t.text, t.inputs, t.outputs, {}) for t in TOKENS[:SIZE]] + TOKENS[SIZE:]
    blocks, changed = blocks_of(TOKENS, SIZE), blocks_of(other, SIZE)
    for block_id, tables in blocks.items():
        write_block(lake, block_id, tables)
    merge_ready(lake, RANDOM_RUN)
    withdraw_block(lake, RANDOM_RUN, "0000-000000")
    write_block(lake, "0000-000000", changed["0000-000000"])
    with pytest.raises(LakeError, match="the sums of 7 blocks are gone"):
        pair_bytes(lake)
    mend_sums(lake, RANDOM_RUN)
    for block_id in sorted(set(changed) - set(lake.done_blocks(RANDOM_RUN))):
        write_block(lake, block_id, changed[block_id])
    assert pair_bytes(lake) == _kept(tmp_path / "kept", tokens=other)


def test_another_worker_merges(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    fan_in(2)
    lake = begin(tmp_path)
    for block_id, tables in blocks_of(TOKENS, SIZE).items():
        write_block(lake, block_id, tables)
    with levels.alone(lake, RANDOM_RUN, 0.0) as mine:
        assert mine
        assert merge_ready(lake, RANDOM_RUN) == 0
    assert merge_ready(lake, RANDOM_RUN) == 6 + 3 + 1


def test_a_damaged_entry_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    lake = begin(tmp_path)
    tables = blocks_of(TOKENS, SIZE)["0000-000000"]
    entries = tables["jacobian_entries"]
    value = pa.array([float("nan")] * entries.num_rows, pa.float32())
    broken = entries.set_column(3, entries.schema.field("value"), value)
    with pytest.raises(LakeError, match=r"entries of block 0000-000000.* is not finite"):
        write_block(lake, "0000-000000", {**tables, "jacobian_entries": broken})
    assert not files.list_folder(sums_folder(lake, RANDOM_RUN))
    assert not verify_lake(lake)


def test_groups_are_fixed_runs_of_blocks(fan_in: Callable[[int], None]) -> None:
    fan_in(3)
    group = Group(2, 4, 1)
    blocks = [f"0004-{n:06d}" for n in range(9, 18)]
    assert group.blocks({}) == group.blocks({3: 11, 4: 18}) == blocks
    assert [child.blocks({}) for child in group.children({})] == [blocks[n : n + 3] for n in (0, 3, 6)]
    assert all(child.parent == group for child in group.children({}))
    digests = {block_id: f"{n:064x}" for n, block_id in enumerate(blocks)}
    assert digest_of(group, {k: d for k, d in digests.items() if k != blocks[4]}, {}) is None
    assert digest_of(group, digests, {}) != digest_of(group, {**digests, blocks[4]: "f" * 64}, {})


def test_the_last_group_of_a_shard_has_what_is_left(fan_in: Callable[[int], None]) -> None:
    fan_in(3)
    group, ends = Group(2, 4, 1), {4: 13}
    blocks = [f"0004-{n:06d}" for n in range(9, 13)]
    assert group.blocks(ends) == blocks
    assert [child.blocks(ends) for child in group.children(ends)] == [blocks[:3], blocks[3:]]
    digests = {block_id: f"{n:064x}" for n, block_id in enumerate(blocks)}
    assert digest_of(group, digests, ends) is not None
    assert digest_of(group, digests, {}) is digest_of(group, digests, {4: 14}) is None
    assert Group(2, 4, 2).blocks(ends) == Group(2, 4, 2).children(ends) == []


@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("last", [False, True])
def test_a_shard_that_ended_is_one_file(tmp_path: Path, fan_in: Callable[[int], None], number: int, last: bool) -> None:
    """Whether its end is known before its last block is finished, or after; and the sums are the same."""
    fan_in(2)
    tokens = TOKENS[: number * SIZE]
    lake, expected = begin(tmp_path / "ended"), _kept(tmp_path / "kept", tokens=tokens)
    folder = sums_folder(lake, RANDOM_RUN)
    blocks = blocks_of(tokens, SIZE)
    for block_id, tables in blocks.items():
        if block_id == max(blocks) and not last:
            record_end(lake, RANDOM_RUN, folder, 0, number)
        write_block(lake, block_id, tables)
        merge_ready(lake, RANDOM_RUN)
    if last:
        assert len(list_sources(folder)) == number.bit_count()
        record_end(lake, RANDOM_RUN, folder, 0, number)
        merge_ready(lake, RANDOM_RUN)
    (source,) = list_sources(folder)
    assert source.group.level == (number - 1).bit_length()
    assert pair_bytes(lake) == expected
    mend_sums(lake, RANDOM_RUN)
    assert lake.done_blocks(RANDOM_RUN) == sorted(blocks)
    assert pair_bytes(lake) == expected


@pytest.mark.parametrize("said", [None, 10, 12])
def test_an_end_that_is_not_that_of_the_sums(tmp_path: Path, fan_in: Callable[[int], None], said: int | None) -> None:
    """It was lost, or the shard was changed: nothing counts twice, and what nothing stands for is made again."""
    fan_in(2)
    tokens = TOKENS[: 11 * SIZE]
    lake, blocks = begin(tmp_path / "ended"), blocks_of(tokens, SIZE)
    folder = sums_folder(lake, RANDOM_RUN)
    record_end(lake, RANDOM_RUN, folder, 0, 11)
    for block_id, tables in blocks.items():
        write_block(lake, block_id, tables)
    merge_ready(lake, RANDOM_RUN)
    (end,) = [path for path in files.list_folder(folder) if "-ended-" in path.name]
    files.remove(end)
    if said is not None:
        record_end(lake, RANDOM_RUN, folder, 0, said)
    with pytest.raises(LakeError, match="the sums of 11 blocks are gone"):
        pair_bytes(lake)
    mend_sums(lake, RANDOM_RUN)
    for path in [path for path in files.list_folder(folder) if "-ended-" in path.name]:
        files.remove(path)
    record_end(lake, RANDOM_RUN, folder, 0, 11)  # the shard is read again
    for block_id in sorted(set(blocks) - set(lake.done_blocks(RANDOM_RUN))):
        write_block(lake, block_id, blocks[block_id])
    merge_ready(lake, RANDOM_RUN)
    assert pair_bytes(lake) == _kept(tmp_path / "kept", tokens=tokens)


def test_two_ends_are_none(tmp_path: Path) -> None:
    lake = begin(tmp_path)
    folder = sums_folder(lake, RANDOM_RUN)
    for shard, number in ((0, 3), (1, 4), (1, 4), (1, 5)):
        record_end(lake, RANDOM_RUN, folder, shard, number)
    assert list_ends(folder) == {0: 3}
    assert list_sources(folder) == []


def test_two_files_of_one_block_are_not_merged(tmp_path: Path, fan_in: Callable[[int], None]) -> None:
    fan_in(2)
    lake = begin(tmp_path)
    blocks = blocks_of(TOKENS, SIZE)
    write_block(lake, "0000-000000", blocks["0000-000000"])
    withdraw_block(lake, RANDOM_RUN, "0000-000000")
    write_block(lake, "0000-000000", blocks["0000-000002"])
    write_block(lake, "0000-000001", blocks["0000-000001"])
    assert _levels(lake) == Counter({0: 3})
    assert ready(list_sources(sums_folder(lake, RANDOM_RUN)), {}) == []
