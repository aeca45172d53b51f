"""Documents out of a shard, one after another, in memory that does not grow with the shard or with its worst line.

A bad row never stops a run: it comes out as `Skipped`, with its reason. A bad *file* (a stream that ends early, bytes
that are not zstd, a damaged Parquet page) ends in a CorpusError that names the shard and the row, after the rows before
it. Decompression is pyarrow's: it notices a stream that ends early, which zstandard's reader does not, and gives out
bounded pieces, so that an endless line of gigabytes costs no more memory than the longest document allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

import pyarrow as pa

from jacobian_core.config import CorpusConfig
from jacobian_core.contracts import ROW_BITS
from jacobian_core.corpus.listing import HashedReader, Shard, is_changed, one_line, open_shard
from jacobian_core.errors import ChangedShardError, CorpusError

Reason = Literal["broken", "empty", "one_token", "too_long"]
_READ_BYTES = 1 << 12  # no slower than larger ones; what a damaged stream can lose before its damage
_PARQUET_ROWS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """One text; `row` is its line or row in the shard, from 0, and `source` where it is from, if the shard says."""

    row: int
    text: str
    source: str | None


@dataclass(frozen=True)
class Skipped:
    """A row that gives no document, and why."""

    row: int
    reason: Reason


@dataclass(frozen=True)
class SkipCounts:
    """Rows that gave no document.

    `broken`: not JSON, not UTF-8, or no string in the text field; `empty`: no text or no token; `one_token`: a token
    without context; `too_long`: more bytes than `max_document_bytes`, or more tokens than positions can count.
    """

    broken: int = 0
    empty: int = 0
    one_token: int = 0
    too_long: int = 0

    def __add__(self, other: SkipCounts) -> SkipCounts:
        return SkipCounts(
            self.broken + other.broken,
            self.empty + other.empty,
            self.one_token + other.one_token,
            self.too_long + other.too_long,
        )

    @property
    def total(self) -> int:
        """All skipped rows."""
        return self.broken + self.empty + self.one_token + self.too_long


def read_documents(shard: Shard, config: CorpusConfig, start_row: int = 0) -> Iterator[Document | Skipped]:
    """Every row of a shard from `start_row` on, in order, as a document or as skipped.

    Raises CorpusError, naming shard and row, where the file itself is damaged or can't be read, where a Parquet shard
    has no such text column, and at a row beyond what ids can count. Lines are hashed as they are read, for no format's
    checksum notices all damage: ChangedShardError at the end where their bytes are not those of the shard's digest.
    """
    row, in_lines = start_row, not shard.name.endswith(".parquet")
    try:
        with open_shard(shard) as file:
            reader = HashedReader(file)
            for item in _rows(shard, cast(IO[bytes], reader) if in_lines else file, config, start_row):
                if item.row >> ROW_BITS:
                    raise CorpusError(
                        f"shard {shard.name} has more than {1 << ROW_BITS} rows.", "Split it into smaller shards."
                    )
                yield item
                row = item.row + 1
            if in_lines and not reader.is_whole(shard):
                raise ChangedShardError(f"shard {shard.name} is not the file that the run began with.", _CHANGED)
    except (OSError, pa.ArrowException) as error:
        problem = f"shard {shard.name} can't be read beyond row {row}: {one_line(error)}."
        if is_changed(shard):
            raise ChangedShardError(problem, _CHANGED) from error
        raise CorpusError(problem, "Finished blocks are kept. Fetch or repair the file, then run again.") from error


_CHANGED = "It was changed while it was read. Restore it and run again: what was made of it is computed anew."


def _rows(shard: Shard, file: IO[bytes], config: CorpusConfig, start_row: int) -> Iterator[Document | Skipped]:
    if shard.name.endswith(".parquet"):
        return _parquet_rows(shard, file, config, start_row)
    stream: Any = file
    if shard.name.endswith(".zst"):
        if shard.size_bytes == 0:
            raise OSError("an empty file is not zstd")
        stream = pa.CompressedInputStream(pa.PythonFile(cast(Any, file), mode="r"), "zstd")
    return _json_rows(stream, config, start_row)


def _json_rows(stream: Any, config: CorpusConfig, start_row: int) -> Iterator[Document | Skipped]:
    for row, line in enumerate(_lines(stream, config.max_document_bytes)):
        if row >= start_row:
            yield _parsed(row, line, config)


def _lines(stream: Any, limit: int) -> Iterator[bytes | None]:
    """The lines of a byte stream without their newline; None for one of more than `limit` bytes, which is not kept."""
    pieces: list[bytes] = []
    size = 0
    while chunk := stream.read(_READ_BYTES):
        *ended, tail = chunk.split(b"\n")
        for part in ended:
            size += len(part)
            yield b"".join([*pieces, part]) if size <= limit else None
            pieces.clear()
            size = 0
        size += len(tail)
        if size <= limit:
            pieces.append(tail)
        else:
            pieces.clear()
    if size:
        yield b"".join(pieces) if size <= limit else None


def _parsed(row: int, line: bytes | None, config: CorpusConfig) -> Document | Skipped:
    if line is None:
        return Skipped(row, "too_long")
    if not line.strip():
        return Skipped(row, "empty")
    try:
        record = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode() if row == 0 else line.decode())
        text = _field(record, config.text_field)
        if not isinstance(text, str):
            return Skipped(row, "broken")
        size = len(text.encode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, nested without end, half a surrogate pair
        return Skipped(row, "broken")
    return _document(Document(row, text, _label(_field(record, config.source_field))), size, config)


def _document(document: Document, size: int, config: CorpusConfig) -> Document | Skipped:
    if size == 0:
        return Skipped(document.row, "empty")
    return document if size <= config.max_document_bytes else Skipped(document.row, "too_long")


def _label(source: object) -> str | None:
    """A source that can be stored: halves of surrogate pairs are replaced, what is not a string is left out."""
    return source.encode(errors="replace").decode() if isinstance(source, str) else None


def _field(record: object, path: str) -> object:
    """The value at a dotted path of nested objects; None without one. A key that itself has dots wins."""
    if isinstance(record, dict) and path in record:
        return record[path]
    value = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _parquet_rows(shard: Shard, file: IO[bytes], config: CorpusConfig, start_row: int) -> Iterator[Document | Skipped]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    _check_text_column(shard, parquet.schema_arrow, config)
    groups, row = _groups_from(parquet, start_row)
    columns = [config.text_field, config.source_field]
    for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=columns):
        texts = _column(batch, config.text_field).cast(pa.large_binary())
        sources = _column(batch, config.source_field)
        for text, source in zip(texts, sources, strict=True):
            if row >= start_row:
                yield _decoded(row, text.as_buffer(), source, config)
            row += 1


def _check_text_column(shard: Shard, schema: pa.Schema, config: CorpusConfig) -> None:
    """Refuse a Parquet shard that has no text: every one of its rows would be broken."""
    empty: Any = pa.RecordBatch.from_pylist([], schema=schema)
    kind = _column(empty, config.text_field).type
    if not _is_text(kind):
        raise CorpusError(
            f"shard {shard.name} has no text column {config.text_field}; its columns are "
            + ", ".join(f"{field.name} ({field.type})" for field in schema),
            "Set corpus.text_field.",
        )


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _groups_from(parquet: Any, start_row: int) -> tuple[list[int], int]:
    """The row groups from the one with `start_row` on, and the row at which the first of them begins."""
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first + rows > start_row:
            return list(range(group, parquet.num_row_groups)), first
        first += rows
    return [], first


def _column(batch: Any, path: str) -> Any:
    """The column at a dotted path of structs, nulls where there is none; dictionaries are decoded."""
    import pyarrow.compute as pc

    names = [path] if path in batch.schema.names else path.split(".")
    if names[0] not in batch.schema.names:
        return pa.nulls(batch.num_rows)
    column = batch.column(names[0])
    for name in names[1:]:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return pa.nulls(batch.num_rows)
        column = pc.struct_field(column, name)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _decoded(row: int, text: Any, source: Any, config: CorpusConfig) -> Document | Skipped:
    """Texts are checked as bytes: Arrow does not promise that a Parquet string is UTF-8."""
    if text is None:
        return Skipped(row, "broken")
    if text.size > config.max_document_bytes:
        return Skipped(row, "too_long")
    try:
        value = text.to_pybytes().decode()
        named = source.as_py() if _is_text(source.type) else None
    except UnicodeDecodeError:
        return Skipped(row, "broken")
    return _document(Document(row, value, named), text.size, config)
