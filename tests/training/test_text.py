"""Shards to token streams and windows."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoTokenizer

from jacobian_core.errors import CorpusError
from jacobian_core.training import text
from jacobian_core.training.text import (
    consecutive_windows,
    mapped_stream,
    random_windows,
    read_texts,
    token_stream,
    with_leading_bos,
)
from tests.training.conftest import write_shard


def test_stream_is_every_text_after_its_bos(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    stream = token_stream(["the cat", "a mat é"], tokenizer)
    assert tokenizer.decode(stream) == "<|endoftext|>the cat<|endoftext|>a mat é"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert len(tokenizer) <= 280
    assert '"PreTrainedTokenizerFast"' in (model_folder / "tokenizer_config.json").read_text()


def test_empty_texts_are_left_out_and_broken_lines_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.jsonl.zst", ["one", "", "two"])
    assert list(read_texts([shard])) == ["one", "two"]
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "one"}\n{"tex')
    with pytest.raises(CorpusError, match=r"b\.jsonl, line 2"):
        list(read_texts([broken]))
    with pytest.raises(CorpusError, match="no such shard"):
        list(read_texts([tmp_path / "missing.jsonl"]))


def test_a_mapped_stream_is_the_stream_and_is_made_once(
    model_folder: Path, corpus: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    expected = token_stream(read_texts(corpus), tokenizer)
    monkeypatch.setattr(text, "TOKENISED_AT_ONCE", 7)
    monkeypatch.setattr(text, "CHARACTERS_AT_ONCE", 500)
    mapped = mapped_stream(corpus, tokenizer, tmp_path)
    assert torch.equal(mapped, expected)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 4 * len(expected)
    before = file.stat().st_mtime_ns
    assert torch.equal(mapped_stream(corpus, tokenizer, tmp_path), expected)
    assert file.stat().st_mtime_ns == before
    assert not torch.equal(mapped_stream(corpus[1:], tokenizer, tmp_path)[:50], expected[:50])
    assert len(list(tmp_path.iterdir())) == 2, "another text is another file"
    empty = write_shard(tmp_path / "empty.jsonl", [""])
    with pytest.raises(CorpusError, match="no text"):
        mapped_stream([empty], tokenizer, tmp_path)
    with pytest.raises(CorpusError, match="no such shard"):
        mapped_stream([tmp_path / "none.jsonl"], tokenizer, tmp_path)


def test_batches_of_text_are_bounded_and_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TOKENISED_AT_ONCE", 5)
    monkeypatch.setattr(text, "CHARACTERS_AT_ONCE", 100)
    read: list[int] = []

    def texts() -> Iterator[str]:
        for size in [10] * 12 + [99, 99, 3, 500, 1]:
            read.append(size)
            yield "x" * size

    sizes = []
    for batch in text._text_batches(texts()):
        sizes.append([len(one) for one in batch])
        assert sum(map(sum, sizes)) == sum(read), "nothing is read ahead"
    assert sizes == [[10] * 5, [10] * 5, [10, 10, 99], [99, 3], [500], [1]]
    assert all(len(one) <= 5 and sum(one[:-1]) < 100 for one in sizes)


def test_windows_of_a_mapped_stream_cost_their_pages_only(tmp_path: Path) -> None:
    path = tmp_path / "stream.int32"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # a hole: a quarter of a billion tokens that take no room on the disk
    stream = torch.from_file(str(path), size=1 << 28, dtype=torch.int32)
    before = psutil.Process().memory_info().rss
    for seed in range(50):
        random_windows(stream, count=8, length=256, seed=seed)
    windows = consecutive_windows(stream, length=256)
    assert with_leading_bos(windows[-4:], 7)[:, 0].tolist() == [7] * 4
    assert psutil.Process().memory_info().rss - before < 1 << 28, "a quarter of what the stream would take"


def test_windows() -> None:
    stream = torch.arange(100, dtype=torch.int32)
    windows = random_windows(stream, count=50, length=8, seed=1)
    assert torch.equal(windows, random_windows(stream, count=50, length=8, seed=1))
    assert not torch.equal(windows, random_windows(stream, count=50, length=8, seed=2))
    assert bool((windows.diff(dim=1) == 1).all())
    assert windows.min() >= 0
    assert windows.max() <= 99
    assert consecutive_windows(stream, length=30).flatten().tolist() == list(range(90))
    led = with_leading_bos(windows, 999)
    assert bool((led[:, 0] == 999).all())
    assert torch.equal(led[:, 1:], windows[:, 1:])
    with pytest.raises(CorpusError, match="fewer than one window"):
        random_windows(stream, count=1, length=101, seed=0)
