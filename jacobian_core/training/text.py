"""Text shards to one stream of token ids, as language models and dictionaries are trained: documents end to end.

Every document starts with the tokenizer's BOS token. The whole stream is held in memory (4 bytes a token), which suits
training sets up to some hundred million tokens; windows are drawn at random, so no pass over the data is ever ordered.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import zstandard
from jaxtyping import Int

from jacobian_core.errors import CorpusError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENISED_AT_ONCE = 1000


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
    """Token ids (int32) of all texts end to end, the BOS token before each of them.

    Raises:
        CorpusError: there was no text.
        ModelError: the tokenizer has no BOS token.
    """
    if tokenizer.bos_token_id is None:
        raise ModelError("the tokenizer has no BOS token to mark where a document starts.")
    parts: list[torch.Tensor] = []
    batch: list[str] = []

    def flush() -> None:
        rows = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        parts.extend(torch.tensor([tokenizer.bos_token_id, *ids], dtype=torch.int32) for ids in rows)
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == TOKENISED_AT_ONCE:
            flush()
    if batch:
        flush()
    if not parts:
        raise CorpusError("the shards hold no text.")
    return torch.cat(parts)


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
    """The windows with their first token replaced by BOS, as analysis sees every text."""
    windows = windows.clone()
    windows[:, 0] = bos
    return windows


def consecutive_windows(stream: Int[torch.Tensor, " stream"], *, length: int) -> Int[torch.Tensor, "rows context"]:
    """The stream cut into windows of `length` tokens (int64); what is left at the end is not used.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    _require_window(stream, length)
    return stream[: len(stream) // length * length].view(-1, length).long()


def _require_window(stream: Int[torch.Tensor, " stream"], length: int) -> None:
    if len(stream) < length:
        raise CorpusError(f"the text has {len(stream)} tokens, fewer than one window of {length}.", "Give more text.")
