"""Reading shards: every row comes out once, bad rows are counted, bad files stop with the place named."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jacobian_core.corpus.shards import Document, SkipCounts, _lines, read_documents
from jacobian_core.errors import CorpusError
from tests.corpus.helpers import (
    memory_of_arrow,
    only_shard,
    reasons_of,
    record,
    rows_of,
    settings,
    texts_of,
    until_damage,
    write_lines,
)

HOSTILE = [
    (record("fine"), None),
    (b'{"text": "cut off', "broken"),
    (b"[1, 2]", "broken"),
    (b'"text"', "broken"),
    (b'{"meta": {}}', "broken"),
    (b'{"text": 7}', "broken"),
    (b'{"text": null}', "broken"),
    (b'{"text": "\xff\xfe"}', "broken"),
    (b'{"text": "half a pair \\ud800"}', "broken"),
    (b"[" * 100_000, "broken"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "broken"),
    (b"", "empty"),
    (b"  \r", "empty"),
    (record(""), "empty"),
    (record("x" * 200_001), "too_long"),
    (record("nul \0, \x1b[31m, <|endoftext|>, \u2028 and \u0085 in the text"), None),
    (record("with a return") + b"\r", None),
    (record("last"), None),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_bad_lines_are_skipped_with_their_reason_and_keep_their_row(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / name, [line for line, _ in HOSTILE])
    rows = rows_of(tmp_path, max_document_bytes=200_000)
    assert [row.row for row in rows] == list(range(len(HOSTILE)))
    assert reasons_of(rows) == {row: reason for row, (_, reason) in enumerate(HOSTILE) if reason}
    assert texts_of(rows)[1] == "nul \0, \x1b[31m, <|endoftext|>, \u2028 and \u0085 in the text"


def test_the_last_line_counts_with_or_without_its_newline(tmp_path: Path) -> None:
    lines = [record("one"), record("two")]
    for end in (b"", b"\n"):
        write_lines(tmp_path / "a.jsonl", lines, end)
        assert texts_of(rows_of(tmp_path)) == ["one", "two"]
    write_lines(tmp_path / "a.jsonl", [*lines, record("three")[:9]], b"")
    assert reasons_of(rows_of(tmp_path)) == {2: "broken"}


def test_a_byte_order_mark_is_no_broken_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [b"\xef\xbb\xbf" + record("one"), b"\xef\xbb\xbf" + record("two")])
    assert texts_of(rows_of(tmp_path)) == ["one"]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b" ")), max_size=8),
    limit=st.integers(1, 12),
    piece=st.integers(1, 7),
)
def test_lines_are_those_of_split_whatever_the_pieces(lines: list[bytes], limit: int, piece: int) -> None:
    content = b"\n".join(lines)

    class Pieces:
        """A stream that gives out `piece` bytes at a time."""

        at = 0

        def read(self, _: int) -> bytes:
            self.at += piece
            return content[self.at - piece : self.at]

    expected = [line if len(line) <= limit else None for line in content.split(b"\n")]
    if expected[-1] == b"":  # split sees an empty line behind the last newline
        expected.pop()
    assert list(_lines(Pieces(), limit)) == expected


def test_an_endless_line_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = b"0" * (1 << 24)
    content = compressor.compress(record("before") + b"\n")
    content += b"".join(compressor.compress(zeros) for _ in range(16)) + compressor.compress(b"\n" + record("after"))
    (tmp_path / "a.jsonl.zst").write_bytes(content + compressor.flush())
    assert len(content) < 1 << 20
    shard = only_shard(tmp_path)
    config = settings(tmp_path, max_document_bytes=1 << 20)
    tracemalloc.start()
    try:
        rows = list(read_documents(shard, config))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert memory_of_arrow() < 64 << 20
    assert texts_of(rows) == ["before", "after"]
    assert reasons_of(rows) == {1: "too_long"}


def test_reading_can_start_at_any_row(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl.zst", [line for line, _ in HOSTILE])
    everything = rows_of(tmp_path)
    for start in range(len(HOSTILE) + 2):
        assert rows_of(tmp_path, start) == everything[start:]


def test_a_source_is_found_by_its_path_or_is_null(tmp_path: Path) -> None:
    lines = [
        record("pile", "Books3"),
        b'{"text": "no meta"}',
        b'{"text": "other meta", "meta": {"new_key": [1, {"deep": 2}]}}',
        b'{"text": "meta is no object", "meta": "pile_set_name"}',
        b'{"text": "not a string", "meta": {"pile_set_name": 7}}',
        b'{"text": "dots", "meta.pile_set_name": "by its own key"}',
        b'{"text": "half a pair", "meta": {"pile_set_name": "\\ud800"}}',
    ]
    write_lines(tmp_path / "a.jsonl", lines)
    sources = [row.source for row in rows_of(tmp_path) if isinstance(row, Document)]
    assert sources == ["Books3", None, None, None, None, "by its own key", "?"]


def many_lines(count: int) -> list[bytes]:
    return [record(f"document {row} " + str(row * 7919) * 40) for row in range(count)]


def test_a_stream_that_ends_early_stops_at_a_named_row_after_the_rows_before(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.zst", many_lines(4000))
    whole = rows_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    rows, problem = until_damage(read_documents(only_shard(tmp_path), settings(tmp_path)))
    assert rows == whole[: len(rows)]
    assert 3000 < len(rows) < 4000
    assert f"shard a.jsonl.zst can't be read beyond row {len(rows)}: Truncated" in problem


@pytest.mark.parametrize("content", [b"", b"this is no zstd at all", b"\x28\xb5\x2f"])
def test_bytes_that_are_not_zstd_are_a_damaged_shard(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    with pytest.raises(CorpusError, match=r"a\.jsonl\.zst can't be read beyond row 0"):
        rows_of(tmp_path)


def test_several_zstd_frames_are_one_shard_and_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    frames = [compressor.compress(b"\n".join(many_lines(n)) + b"\n") for n in (50, 60)]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert len(rows_of(tmp_path)) == 110
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorpusError, match="can't be read"):
        rows_of(tmp_path)


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(pa.table(columns), path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_gives_the_same_documents_as_lines(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one", "", "three \0 \u2028", None, "x" * 99, "six"]
    meta = [
        {"pile_set_name": "A", "other": 1},
        None,
        {"pile_set_name": None, "other": 2},
        *[{"pile_set_name": "B"}] * 3,
    ]
    write_parquet(
        tmp_path / "a.parquet", {"id": range(6), "meta": meta, "text": pa.array(texts, kind)}, row_group_size=2
    )
    rows = rows_of(tmp_path, max_document_bytes=90)
    assert reasons_of(rows) == {1: "empty", 3: "broken", 4: "too_long"}
    assert [(row.row, row.text, row.source) for row in rows if isinstance(row, Document)] == [
        (0, "one", "A"),
        (2, "three \0 \u2028", None),
        (5, "six", "B"),
    ]
    for start in range(8):
        assert rows_of(tmp_path, start, max_document_bytes=90) == rows[start:]


def test_parquet_strings_that_are_not_utf8_are_broken_rows(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe", b"also good"]).view(pa.string())
    write_parquet(tmp_path / "a.parquet", {"text": bad})
    assert reasons_of(rows_of(tmp_path)) == {1: "broken"}


@pytest.mark.parametrize("columns", [{"content": ["one"]}, {"text": [1]}, {"text": [["one"]]}])
def test_parquet_without_a_text_column_names_what_it_has(tmp_path: Path, columns: dict[str, object]) -> None:
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(CorpusError, match=r"no text column text; its columns are (content|text) \("):
        rows_of(tmp_path)


def test_damaged_parquet_names_shard_and_row(tmp_path: Path) -> None:
    texts = [f"document {row} " + str(row * 7919) * 20 for row in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=1000, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start + 5000] ^= 0xFF
    path.write_bytes(content)
    rows, problem = until_damage(read_documents(only_shard(tmp_path), settings(tmp_path)))
    assert 700 < len(rows) < 2000
    assert f"shard a.parquet can't be read beyond row {len(rows)}:" in problem
    assert texts_of(rows) == texts[: len(rows)]
    path.write_bytes(content[:-100])
    with pytest.raises(CorpusError, match="beyond row 0"):
        rows_of(tmp_path)


def test_a_shard_that_vanished_is_a_clear_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record("one")])
    shard = only_shard(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\.jsonl can't be read beyond row 0: .*No such file"):
        list(read_documents(shard, settings(tmp_path)))


def test_a_row_beyond_what_ids_can_count_stops_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacobian_core.corpus.shards.ROW_BITS", 2)
    write_lines(tmp_path / "a.jsonl", [record(str(row)) for row in range(5)])
    with pytest.raises(CorpusError, match="more than 4 rows"):
        rows_of(tmp_path)


def test_counts_add_up() -> None:
    total = SkipCounts(broken=1, empty=2) + SkipCounts(empty=3, one_token=4, too_long=5)
    assert total == SkipCounts(1, 5, 4, 5)
    assert total.total == 15


def test_json_that_spells_the_text_field_otherwise_is_found_by_configuration(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [json.dumps({"doc": {"body": "nested"}}).encode()])
    assert texts_of(rows_of(tmp_path, text_field="doc.body")) == ["nested"]
    assert reasons_of(rows_of(tmp_path)) == {0: "broken"}
