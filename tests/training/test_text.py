"""Shards to token streams and windows."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from jacobian_core.errors import CorpusError
from jacobian_core.training.text import (
    consecutive_windows,
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
