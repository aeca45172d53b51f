"""The listing of a corpus: which shards, in which order, with which indices."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jacobian_core.config import CorpusConfig
from jacobian_core.corpus.listing import list_shards, one_line, open_shard
from jacobian_core.errors import CorpusError
from tests.corpus.helpers import record, settings, write_lines


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    for name in ("train/01.jsonl.zst", "train/00.jsonl.zst", "val.jsonl", ".cache/hidden.jsonl", "train/.part.jsonl"):
        write_lines(tmp_path / name, [record(name)])
    (tmp_path / "README.md").write_text("not text to analyse")
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


def test_shards_are_sorted_hashed_and_only_visible_text_files(pile: Path) -> None:
    shards = list_shards(settings(pile))
    assert [shard.name for shard in shards] == ["train/00.jsonl.zst", "train/01.jsonl.zst", "val.jsonl"]
    for shard in shards:
        content = (pile / shard.name).read_bytes()
        assert shard.digest == hashlib.sha256(content).hexdigest()
        assert shard.size_bytes == len(content)
        with open_shard(shard) as file:
            assert file.read() == content


def test_an_index_does_not_depend_on_the_selection(pile: Path) -> None:
    everything = {shard.name: shard.index for shard in list_shards(settings(pile))}
    chosen = list_shards(settings(pile, shards=("train/01*", "val.jsonl")))
    assert [(shard.name, shard.index) for shard in chosen] == [("train/01.jsonl.zst", 1), ("val.jsonl", 2)]
    assert {shard.name: shard.index for shard in chosen}.items() <= everything.items()


def test_a_shard_that_two_patterns_match_comes_once(pile: Path) -> None:
    assert len(list_shards(settings(pile, shards=("*", "*.jsonl", "val*")))) == 3


def test_patterns_that_match_nothing_are_told_what_is_there(pile: Path) -> None:
    with pytest.raises(CorpusError, match=r"matches corpus\.shards = 07\.jsonl; there are 3: train/00\.jsonl\.zst"):
        list_shards(settings(pile, shards=("07.jsonl",)))


def test_a_folder_without_shards_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no file that ends in \.jsonl\.zst"):
        list_shards(settings(tmp_path))
    with pytest.raises(CorpusError, match="is not a folder"):
        list_shards(settings(tmp_path / "missing"))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "bad\udcff.jsonl", [record("one two")])
    with pytest.raises(CorpusError, match="not UTF-8"):
        list_shards(settings(tmp_path))


def test_a_hub_that_is_switched_off_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match=r"dataset owner/pile \(revision main\) can't be listed") as caught:
        list_shards(CorpusConfig(source="hub", location="owner/pile"))
    assert "\n" not in str(caught.value)


def test_an_error_in_one_line_has_no_signature_of_a_url() -> None:
    error = OSError("500 for https://cdn.example/file?Signature=secret&Key=1 at once\nsecond line")
    assert one_line(error) == "500 for https://cdn.example/file at once"
    assert one_line(OSError()) == "OSError"
