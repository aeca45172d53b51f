"""How many tokens a corpus holds, judged from its first documents and its files' sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from jacobian_core.config import CorpusConfig, ModelConfig
from jacobian_core.corpus.listing import Shard, list_shards, one_line, open_shard
from jacobian_core.corpus.shards import Document, read_documents
from jacobian_core.corpus.tokenizer import load_tokenizer
from jacobian_core.errors import CorpusError

_SAMPLE_BYTES = 2 << 20
_READ_BYTES = 8 << 10
_SAMPLE_TEXT_BYTES = 6 << 20
"""What that many bytes of compressed text usually hold."""
_SAMPLE_ROWS = 2_000


@dataclass(frozen=True)
class CorpusEstimate:
    """Bytes of all selected shards (as they are stored), and analysed tokens for each of them."""

    total_bytes: int
    tokens_per_byte: float


def tokens_per_byte(corpus: CorpusConfig, model: ModelConfig) -> CorpusEstimate:
    """The estimate from the start of the first shard; shards of unknown size count as large as the known ones' mean.

    Raises CorpusError as `list_shards` and `read_documents` do.
    """
    shards = list_shards(corpus)
    sizes = [shard.size_bytes for shard in shards if shard.size_bytes]
    rows, sample_bytes = _rows_and_bytes(shards[0])
    texts = [d.text for d in islice(read_documents(shards[0], corpus), rows) if isinstance(d, Document)]
    limit = corpus.context_tokens - 1 if corpus.packing == "document" else None
    tokens = sum(len(ids) if limit is None else min(len(ids), limit) for ids in load_tokenizer(model).encode(texts))
    mean = sum(sizes) / max(1, len(sizes))
    return CorpusEstimate(int(mean * len(shards)), tokens / max(1, sample_bytes))


def _rows_and_bytes(shard: Shard) -> tuple[int, float]:
    """Rows at the shard's start, and how many of its stored bytes they take."""
    with open_shard(shard) as file:
        if shard.name.endswith(".parquet"):
            import pyarrow.parquet as pq

            rows = pq.ParquetFile(file).metadata.num_rows
            taken = min(rows, _SAMPLE_ROWS)
            return taken, (shard.size_bytes or 0) * taken / max(1, rows)
        if not shard.name.endswith(".zst"):
            return _rows_and_end(file.read(_SAMPLE_BYTES))
        import zstandard

        source: Any = file
        stream = zstandard.ZstdDecompressor().stream_reader(
            source, read_size=_READ_BYTES, read_across_frames=True, closefd=False
        )
        try:
            text = stream.read(_SAMPLE_TEXT_BYTES)  # bounded by what comes out: a few bytes can hold gigabytes
        except zstandard.ZstdError as error:
            raise CorpusError(f"shard {shard.name} can't be read: {one_line(error)}.", "Repair the file.") from error
        raw_bytes = file.tell()
    rows, end = _rows_and_end(text)
    return rows, raw_bytes * end / max(1, len(text))


def _rows_and_end(text: bytes) -> tuple[int, int]:
    """How many of the first lines are whole, and where the last of them ends."""
    rows = min(text.count(b"\n"), _SAMPLE_ROWS)
    end = 0
    for _ in range(rows):
        end = text.index(b"\n", end) + 1
    return rows, end
