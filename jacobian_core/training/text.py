"""Text shards to one stream of token ids, as language models and dictionaries are trained: documents end to end.

Every document starts with the tokenizer's BOS token. A training's stream is a file of int32 (4 bytes a token), written
batch by batch and mapped: a window costs the read of its pages, and memory does not grow with the text. Windows are
drawn at random, so no pass over the data is ever ordered.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import zstandard
from jaxtyping import Int

from jacobian_core.errors import CorpusError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENISED_AT_ONCE = 1000
CHARACTERS_AT_ONCE = 4_000_000

logger = logging.getLogger(__name__)


def read_texts(shards: Iterable[Path]) -> Iterator[str]:
    """Yield the `text` of every line of Pile-format shards (`.jsonl` or `.jsonl.zst`), empty ones left out.

    Raises:
        CorpusError: a shard does not exist, or a line is not a JSON object with a `text`.
    """
    for shard in shards:
        if not shard.exists():
            raise CorpusError(f"{shard}: there is no such shard of text.")
        with _lines(shard) as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = json.loads(line)["text"]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise CorpusError(f"{shard}, line {number}: not a JSON object with a 'text'.") from error
                if text:
                    yield text


def _lines(shard: Path) -> io.TextIOWrapper:
    """A shard opened for reading; closing it closes the file."""
    raw = shard.open("rb")
    if shard.suffix == ".zst":
        return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw, closefd=True), encoding="utf-8")
    return io.TextIOWrapper(raw, encoding="utf-8")


def token_stream(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast") -> Int[torch.Tensor, " stream"]:
    """Token ids (int32) of all texts end to end, the BOS token before each of them; held in memory.

    Raises:
        CorpusError: there was no text.
        ModelError: the tokenizer has no BOS token.
    """
    parts = [torch.from_numpy(ids) for ids in _token_batches(texts, tokenizer)]
    if not parts:
        raise CorpusError("the shards hold no text.")
    return torch.cat(parts)


def mapped_stream(
    shards: Sequence[Path], tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> Int[torch.Tensor, " stream"]:
    """The same stream in a file of `folder`, mapped into memory; the file is made once for a text and a tokenizer.

    Raises:
        CorpusError: a shard is missing or damaged, or there was no text.
        ModelError: the tokenizer has no BOS token.
    """
    path = folder / f"{_stream_key(shards, tokenizer)}.int32"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            for ids in _token_batches(read_texts(shards), tokenizer):
                file.write(ids.tobytes())
        if not partial.stat().st_size:
            partial.unlink()
            raise CorpusError("the shards hold no text.")
        partial.replace(path)
        logger.info("tokenised %d shards: %d tokens", len(shards), path.stat().st_size // 4)
    return torch.from_file(str(path), size=path.stat().st_size // 4, dtype=torch.int32)


def stream_digest(stream: Int[torch.Tensor, " stream"]) -> str:
    """SHA-256, in hex, of a stream's ids."""
    return hashlib.sha256(stream.numpy().data).hexdigest()


def _stream_key(shards: Sequence[Path], tokenizer: "PreTrainedTokenizerFast") -> str:
    """A digest of what the stream is made from: the shards' bytes and the tokenizer."""
    whole = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode() + str(tokenizer.bos_token_id).encode())
    for shard in shards:
        if not shard.exists():
            raise CorpusError(f"{shard}: there is no such shard of text.")
        with shard.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _token_batches(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast") -> Iterator[np.ndarray]:
    """Token ids (int32) of some texts after each other; a batch is bounded in texts and in characters."""
    if tokenizer.bos_token_id is None:
        raise ModelError("the tokenizer has no BOS token to mark where a document starts.")
    for batch in _text_batches(texts):
        rows = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        yield np.concatenate([np.array([tokenizer.bos_token_id, *ids], dtype=np.int32) for ids in rows])


def _text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == TOKENISED_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def random_windows(
    stream: Int[torch.Tensor, " stream"], *, count: int, length: int, seed: int
) -> Int[torch.Tensor, "rows context"]:
    """`count` windows of `length` tokens (int64), at offsets that depend on `seed` alone.

    A step that passes its own number as part of the seed can be repeated alone, so a resumed training sees the same
    data.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    _require_window(stream, length)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(stream) - length + 1, (count,), generator=generator)
    return stream[starts[:, None] + torch.arange(length)].long()


def with_leading_bos(windows: Int[torch.Tensor, "rows context"], bos: int) -> Int[torch.Tensor, "rows context"]:
    """The windows (as int64) with their first token replaced by BOS, as analysis sees every text."""
    windows = windows.to(torch.int64, copy=True)
    windows[:, 0] = bos
    return windows


def consecutive_windows(stream: Int[torch.Tensor, " stream"], *, length: int) -> Int[torch.Tensor, "rows context"]:
    """The stream cut into windows of `length` tokens, a view of it; what is left at the end is not used.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    _require_window(stream, length)
    return stream[: len(stream) // length * length].view(-1, length)


def _require_window(stream: Int[torch.Tensor, " stream"], length: int) -> None:
    if len(stream) < length:
        raise CorpusError(f"the text has {len(stream)} tokens, fewer than one window of {length}.", "Give more text.")
