"""Staged blocks: what goes in comes out, and anything else is an error that names the file."""

from __future__ import annotations

import errno
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jacobian_core.contracts import DOCUMENTS
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.staging import load_block, save_block
from jacobian_core.errors import LakeError

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)


def make_block(lengths: list[int], source: str | None = "Books", shard: str = "a.jsonl") -> TokenBlock:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    size = int(offsets[-1])
    documents = {
        "document_id": range(len(lengths)),
        "shard": [shard] * len(lengths),
        "row": range(len(lengths)),
        "source": [source] * len(lengths),
        "tokens": lengths,
        "truncated": [length > 2 for length in lengths],
    }
    return TokenBlock(
        "0000-000007",
        offsets,
        np.arange(size, dtype=np.int32),
        np.arange(size, dtype=np.int64) * 3 - 1,
        pa.table({name: list(values) for name, values in documents.items()}, schema=DOCUMENTS.schema()),
    )


def same(left: TokenBlock, right: TokenBlock) -> bool:
    arrays = ("row_offsets", "vocab_ids", "token_ids")
    return (
        left.block_id == right.block_id
        and all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays)
        and all(getattr(left, name).dtype == getattr(right, name).dtype for name in arrays)
        and bool(left.documents.equals(right.documents, check_metadata=True))
    )


@hypothesis_settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), source=st.none() | TEXT, shard=TEXT)
def test_a_block_survives_the_trip(lengths: list[int], source: str | None, shard: str) -> None:
    block = make_block(lengths, source, shard)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "staged", "0000-000007.arrow")
        save_block(block, path)
        assert same(load_block(path), block)
        assert not same(load_block(path), make_block([*lengths, 1], source, shard))
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces_and_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "b.arrow"
    save_block(make_block([2, 3]), path)
    first = path.read_bytes()
    save_block(make_block([5]), path)
    assert same(load_block(path), make_block([5]))
    save_block(make_block([2, 3]), path)
    assert path.read_bytes() == first


def test_any_arrow_reader_opens_it(tmp_path: Path) -> None:
    save_block(make_block([2, 3]), tmp_path / "b.arrow")
    with pa.OSFile(str(tmp_path / "b.arrow"), "r") as file, pa.ipc.open_stream(file) as reader:
        assert reader.read_all()["block_id"].to_pylist() == ["0000-000007"]


def test_every_cut_and_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b.arrow"
    save_block(make_block([2, 3]), path)
    content = path.read_bytes()
    for size in range(0, len(content), 17):
        path.write_bytes(content[:size])
        with pytest.raises(LakeError, match=r"b\.arrow is damaged"):
            load_block(path)
    for at in range(0, len(content), 23):
        changed = bytearray(content)
        changed[at] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(LakeError, match=r"b\.arrow is damaged"):
            load_block(path)
    path.write_bytes(content)
    assert same(load_block(path), make_block([2, 3]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"b\.arrow is not there"):
        load_block(tmp_path / "b.arrow")


def unchecked(like: TokenBlock, **changes: Any) -> TokenBlock:
    """A changed copy of a block that was never constructed, so that its shapes were never looked at."""
    block = object.__new__(TokenBlock)
    for name, value in (vars(like) | changes).items():
        object.__setattr__(block, name, value)
    return block


def test_a_block_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    good = make_block([2, 3])
    path = tmp_path / "b.arrow"

    def save(offsets: Any, token_ids: Any) -> None:
        save_block(unchecked(good, row_offsets=offsets, token_ids=token_ids), path)

    for bad in (good.row_offsets[:-1], good.row_offsets[1:], [0, 5, 2], [0, 0, 5], []):
        save(np.array(bad, np.int64), good.token_ids)
        with pytest.raises(LakeError, match="row offsets do not cover"):
            load_block(path)
    save(good.row_offsets, good.token_ids[1:])
    with pytest.raises(LakeError, match="5 vocab ids against 4"):
        load_block(path)
    save(good.row_offsets, good.token_ids)
    assert same(load_block(path), good)


def test_another_version_of_the_contract_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_block(make_block([2]), tmp_path / "b.arrow")
    monkeypatch.setattr("jacobian_core.corpus.staging.DOCUMENTS", replace(DOCUMENTS, version=99))
    with pytest.raises(LakeError, match="another version"):
        load_block(tmp_path / "b.arrow")


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.arrow"
    save_block(make_block([2]), path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LakeError, match=r"b\.arrow: can't write the file: No space left"):
        save_block(make_block([3]), path)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.arrow"]
    assert same(load_block(path), make_block([2]))


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="can't create the folder"):
        save_block(make_block([2]), tmp_path / "file" / "b.arrow")
