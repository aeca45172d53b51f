"""Documents to blocks: tokenise in batches, pack into rows, cut where a block is full.

Where a block ends depends only on the documents and the configuration, never on batches, workers or earlier runs: a
block closes with the document that fills it, so it can be made again alone from its cursor and its budget. It also
takes in the skipped rows that follow, so that the blocks of a shard account for every row.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from jacobian_core.config import CorpusConfig
from jacobian_core.contracts import DOCUMENTS, POSITION_BITS, document_id
from jacobian_core.corpus.blocks import TokenBlock, make_block_id
from jacobian_core.corpus.listing import Shard
from jacobian_core.corpus.shards import Document, SkipCounts, Skipped, read_documents
from jacobian_core.corpus.tokenizer import Tokenizer
from jacobian_core.errors import CorpusError

NOT_ANALYSED = -1
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 18
_log = logging.getLogger(__name__)

_Rows = tuple[Int64[np.ndarray, "rows_plus_1"], Int32[np.ndarray, "positions"], Int64[np.ndarray, "positions"]]
"""`row_offsets`, `vocab_ids` and `token_ids` of a TokenBlock."""


@dataclass(frozen=True)
class Cursor:
    """Where a block begins: the next `row` of its shard to read, and the block's `number` in the shard."""

    row: int
    number: int


@dataclass(frozen=True)
class _Tokenised:
    """One document's vocabulary ids, BOS not among them; `limit` of them are analysed."""

    row: int
    source: str | None
    ids: Int32[np.ndarray, "tokens"]
    limit: int

    @property
    def truncated(self) -> bool:
        """Whether tokens at its end are left out."""
        return self.limit < len(self.ids)


def cut_blocks(
    shard: Shard,
    tokenizer: Tokenizer,
    config: CorpusConfig,
    cursor: Cursor = Cursor(0, 0),
    budget: int | None = None,
) -> Generator[tuple[TokenBlock, Cursor, SkipCounts], None, SkipCounts]:
    """The blocks of a shard from `cursor` on, each with the cursor of the next and the rows skipped within it.

    `budget` is how many analysed tokens the run still wants (None: all); the document that reaches it is cut there and
    the last block ends. The generator's return value counts skipped rows that no block holds (a shard without a single
    usable document). Raises CorpusError where the shard is damaged, after every block that was full before.
    """
    if budget == 0:
        return SkipCounts()
    pack = partial(_pack, shard, tokenizer.bos_id, config)
    draft, left, damage = _Draft(cursor), budget, None
    for item in _tokenised(read_documents(shard, config, cursor.row), tokenizer, config):
        if isinstance(item, CorpusError):
            damage = item
        elif isinstance(item, Skipped):
            draft.skip(item)
        else:
            if draft.analysed >= config.block_tokens:
                yield pack(draft), draft.next, draft.skips
                draft = _Draft(draft.next)
            left = draft.add(item, left)
            if left == 0:
                yield pack(draft), draft.next, draft.skips
                return SkipCounts()
    if draft.analysed >= (config.block_tokens if damage else 1):
        yield pack(draft), draft.next, draft.skips
        draft = _Draft(draft.next)
    if damage:
        raise damage
    if draft.skips.total:
        _log.warning("shard %s from row %d on holds no usable document: %s", shard.name, cursor.row, draft.skips)
    return draft.skips


class _Draft:
    """A block in the making; `next` is the cursor behind everything that it took in."""

    def __init__(self, start: Cursor) -> None:
        self.number = start.number
        self.next = Cursor(start.row, start.number + 1)
        self.documents: list[_Tokenised] = []
        self.analysed = 0
        self.skips = SkipCounts()

    def add(self, document: _Tokenised, left: int | None) -> int | None:
        """Take in a document, or as much of it as the run still wants; gives back what is left of that."""
        if left is not None and document.limit > left:
            document = replace(document, limit=left)
        self.documents.append(document)
        self.analysed += document.limit
        self.next = Cursor(document.row + 1, self.next.number)
        return None if left is None else left - document.limit

    def skip(self, row: Skipped) -> None:
        """Count a row that gave no document."""
        self.skips += SkipCounts(**{row.reason: 1})
        self.next = Cursor(row.row + 1, self.next.number)


def _tokenised(
    items: Iterable[Document | Skipped], tokenizer: Tokenizer, config: CorpusConfig
) -> Iterator[_Tokenised | Skipped | CorpusError]:
    """Every row with its tokens. Where the shard is damaged, the error is the last item, after all rows before it."""
    for batch in _batches(items):
        encoded = iter(tokenizer.encode([item.text for item in batch if isinstance(item, Document)]))
        for item in batch:
            yield _limited(item, next(encoded), config) if isinstance(item, Document) else item


def _batches(items: Iterable[Document | Skipped]) -> Iterator[list[Document | Skipped | CorpusError]]:
    """Rows in batches large enough for the tokenizer, an error of the reader being the last item of the last one."""
    batch: list[Document | Skipped | CorpusError] = []
    characters = 0
    try:
        for item in items:
            batch.append(item)
            characters += len(item.text) if isinstance(item, Document) else 0
            if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    except CorpusError as error:
        batch.append(error)
    yield batch


def _limited(document: Document, ids: list[int], config: CorpusConfig) -> _Tokenised | Skipped:
    if len(ids) < 2:
        return Skipped(document.row, "one_token" if ids else "empty")
    if len(ids) >= 1 << POSITION_BITS:
        return Skipped(document.row, "too_long")
    limit = min(len(ids), config.context_tokens - 1) if config.packing == "document" else len(ids)
    return _Tokenised(document.row, document.source, np.asarray(ids, np.int32), limit)


def _pack(shard: Shard, bos_id: int, config: CorpusConfig, draft: _Draft) -> TokenBlock:
    ids = [document_id(shard.index, document.row) for document in draft.documents]
    rows = _document_rows(draft.documents, ids, bos_id)
    if config.packing == "concatenated":
        rows = _full_rows(rows[1], rows[2], config.context_tokens)
    documents = _documents_table(draft.documents, ids, shard.name)
    return TokenBlock(make_block_id(shard.index, draft.number), *rows, documents)


def _document_rows(documents: list[_Tokenised], ids: list[int], bos_id: int) -> _Rows:
    """One row a document: BOS, then its analysed tokens at positions 1, 2, ..."""
    lengths = np.array([document.limit for document in documents], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.int64)
    vocab_ids = np.full(offsets[-1], bos_id, np.int32)
    token_ids = np.full(offsets[-1], NOT_ANALYSED, np.int64)
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths + 1)
    analysed = positions > 0
    vocab_ids[analysed] = np.concatenate([document.ids[: document.limit] for document in documents])
    firsts = np.repeat(np.array(ids, np.int64) << POSITION_BITS, lengths)
    token_ids[analysed] = firsts + positions[analysed]
    return offsets, vocab_ids, token_ids


def _full_rows(
    vocab_ids: Int32[np.ndarray, "positions"], token_ids: Int64[np.ndarray, "positions"], context_tokens: int
) -> tuple[
    Int64[np.ndarray, "packed_rows_plus_1"],
    Int32[np.ndarray, "packed_positions"],
    Int64[np.ndarray, "packed_positions"],
]:
    """Document rows joined into one stream, BOS between the documents, and cut into rows that begin with BOS."""
    bos_id = vocab_ids[0]
    length = len(vocab_ids) - 1  # the stream itself: without the first row's BOS
    row_tokens = context_tokens - 1
    count = -(-length // row_tokens)
    stream = np.arange(length)
    places = stream + stream // row_tokens + 1
    packed_vocab = np.full(length + count, bos_id, np.int32)
    packed_tokens = np.full(length + count, NOT_ANALYSED, np.int64)
    packed_vocab[places] = vocab_ids[1:]
    packed_tokens[places] = token_ids[1:]
    offsets = np.minimum(np.arange(count + 1, dtype=np.int64) * context_tokens, length + count)
    return offsets, packed_vocab, packed_tokens


def _documents_table(documents: list[_Tokenised], ids: list[int], shard_name: str) -> pa.Table:
    """The `documents` rows of a block, in the contract's order and types."""
    columns = {
        "document_id": ids,
        "shard": [shard_name] * len(documents),
        "row": [document.row for document in documents],
        "source": [document.source for document in documents],
        "tokens": [len(document.ids) for document in documents],
        "truncated": [document.truncated for document in documents],
    }
    return pa.table(columns, schema=DOCUMENTS.schema())
