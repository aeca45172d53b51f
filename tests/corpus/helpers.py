"""Shards to read, and what should come out of them, written down the slow way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import zstandard

from jacobian_core.config import CorpusConfig
from jacobian_core.corpus.listing import Shard, list_shards
from jacobian_core.corpus.shards import Document, Skipped, read_documents
from jacobian_core.errors import CorpusError

T = TypeVar("T")


def record(text: object, source: str | None = "Books") -> bytes:
    """One line of the Pile, without its newline."""
    return json.dumps({"text": text, "meta": {"pile_set_name": source}}).encode()


def write_lines(path: Path, lines: Iterable[bytes], end: bytes = b"\n") -> Path:
    """A `.jsonl` or `.jsonl.zst` file of these lines."""
    content = b"".join(line + b"\n" for line in lines)
    content = content if end else content.removesuffix(b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content)
    return path


def settings(folder: Path, **changes: Any) -> CorpusConfig:
    """A corpus configuration for a local folder."""
    return CorpusConfig(source="folder", location=str(folder), **changes)


def only_shard(folder: Path) -> Shard:
    """The one shard of a folder."""
    (shard,) = list_shards(settings(folder))
    return shard


def rows_of(folder: Path, start_row: int = 0, **changes: Any) -> list[Document | Skipped]:
    """Everything that the one shard of a folder gives."""
    return list(read_documents(only_shard(folder), settings(folder, **changes), start_row))


def texts_of(rows: Iterable[Document | Skipped]) -> list[str]:
    """The texts among these rows."""
    return [row.text for row in rows if isinstance(row, Document)]


def reasons_of(rows: Iterable[Document | Skipped]) -> dict[int, str]:
    """Why which row was skipped."""
    return {row.row: row.reason for row in rows if isinstance(row, Skipped)}


def until_damage(items: Iterable[T]) -> tuple[list[T], str]:
    """What comes before a CorpusError, and its text."""
    found: list[T] = []
    try:
        for item in items:
            found.append(item)
    except CorpusError as error:
        return found, str(error)
    raise AssertionError("the damage went unnoticed")


def memory_of_arrow() -> int:
    """Bytes that Arrow has had allocated at most."""
    return int(pa.default_memory_pool().max_memory() or 0)
