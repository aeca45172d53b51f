"""What is written is read back, by pyarrow and by DuckDB; the same rows are the same bytes; failures leave nothing."""

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import JACOBIAN_ENTRIES, TABLES, Table
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from tests.lake.builders import CONFIG, RUN, SMALL_GROUPS, example_tables, rows_of, temporaries

quick = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


def _write(lake: Lake, table: Table, chunks: Iterable[pa.Table], config: LakeConfig = SMALL_GROUPS) -> PreparedPart:
    with PartWriter(lake, table, RUN, "0000-000000", config) as writer:
        for chunk in chunks:
            writer.write(chunk)
        return writer.finish()


def _cut(rows: pa.Table, cuts: Iterable[int]) -> list[pa.Table]:
    edges = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    return [rows.slice(a, b - a) for a, b in pairwise(edges)]


@pytest.mark.parametrize("name", TABLES)
@quick
@given(data=st.data())
def test_read_back_is_what_was_written(lake: Lake, name: str, data: st.DataObject) -> None:
    rows = data.draw(rows_of(TABLES[name]))
    part = _write(lake, TABLES[name], [rows])
    file = pq.ParquetFile(part.temporary)
    read = file.read()
    file.close()
    assert read.schema.equals(TABLES[name].schema(), check_metadata=False)
    # Compared as text: Python's == takes 0.0 for -0.0, and a bit must not change.
    assert str(read.to_pylist()) == str(rows.to_pylist())
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert all(n == 3 for n in groups[:-1])
    assert sum(groups) == rows.num_rows == part.info.rows
    assert part.info.bytes == part.temporary.stat().st_size
    part.discard()


@quick
@given(rows=rows_of(JACOBIAN_ENTRIES), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_the_same_rows_are_the_same_bytes_however_they_are_cut(lake: Lake, rows: pa.Table, cuts: list[int]) -> None:
    whole, pieces = _write(lake, JACOBIAN_ENTRIES, [rows]), _write(lake, JACOBIAN_ENTRIES, _cut(rows, cuts))
    assert whole.info.sha256 == pieces.info.sha256
    whole.discard()
    pieces.discard()


def test_many_rows_too_are_the_same_bytes_however_they_are_cut(lake: Lake) -> None:
    """Pages, dictionaries and row groups of full size."""
    rows = example_tables(tokens=12_000, latents=8)["latents"]
    config = LakeConfig(row_group_rows=100_000)
    parts = [
        _write(lake, TABLES["latents"], _cut(rows, cuts), config) for cuts in ([], [5, 123_456], range(0, 190_000, 777))
    ]
    assert len({part.info.sha256 for part in parts}) == 1
    assert pq.ParquetFile(parts[0].temporary).num_row_groups == 2


def test_other_rows_are_other_bytes(lake: Lake) -> None:
    first, second = (example_tables(number=n)["jacobian_entries"] for n in (0, 1))
    assert _write(lake, JACOBIAN_ENTRIES, [first]).info.sha256 != _write(lake, JACOBIAN_ENTRIES, [second]).info.sha256


_DUCKDB_TYPES = {
    "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint32": "UINTEGER", "float32": "FLOAT",
    "float64": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_part_without_rows_has_its_types_in_duckdb(lake: Lake, name: str) -> None:
    part = _write(lake, TABLES[name], [])
    assert part.info.rows == 0
    found = duckdb.execute("describe from read_parquet(?, hive_partitioning = false)", [str(part.temporary)]).fetchall()
    assert [(row[0], row[1]) for row in found] == [(c.name, _DUCKDB_TYPES[c.type]) for c in TABLES[name].columns]
    assert duckdb.execute("select count(*) from read_parquet(?)", [str(part.temporary)]).fetchall() == [(0,)]


def test_columns_are_encoded_as_the_contract_says(lake: Lake) -> None:
    part = _write(lake, JACOBIAN_ENTRIES, [example_tables()["jacobian_entries"]], CONFIG)
    group = pq.ParquetFile(part.temporary).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "DELTA_BINARY_PACKED" in columns["token_id"].encodings
    assert "RLE_DICTIONARY" in columns["out_latent"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["value"].encodings
    assert "RLE_DICTIONARY" not in columns["value"].encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert [(s.column_index, s.descending) for s in group.sorting_columns] == [(0, False), (1, False), (2, False)]
    assert columns["token_id"].statistics.min == example_tables()["jacobian_entries"]["token_id"][0].as_py()


def test_a_part_says_what_it_is(lake: Lake) -> None:
    part = _write(lake, JACOBIAN_ENTRIES, [])
    metadata = pq.ParquetFile(part.temporary).schema_arrow.metadata
    assert metadata == {
        b"jacobian_flows.table": b"jacobian_entries",
        b"jacobian_flows.version": b"1",
        b"jacobian_flows.run_id": RUN.encode(),
        b"jacobian_flows.block_id": b"0000-000000",
    }


def test_broken_rows_leave_no_file(lake: Lake) -> None:
    rows = example_tables()["jacobian_entries"]
    with pytest.raises(LakeError, match="must ascend"):
        _write(lake, JACOBIAN_ENTRIES, [rows, rows])
    assert temporaries(lake.root) == []


def test_an_interrupted_writer_leaves_no_file(lake: Lake) -> None:
    def chunks() -> Iterator[pa.Table]:
        yield example_tables()["jacobian_entries"]
        assert len(temporaries(lake.root)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(lake, JACOBIAN_ENTRIES, chunks())
    assert temporaries(lake.root) == []


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _noise(rows: int) -> pa.Table:
    table = example_tables(tokens=rows, latents=1)["jacobian_entries"]
    value = pa.array(np.random.default_rng(0).normal(size=rows).astype(np.float32))
    return table.set_column(3, table.schema.field("value"), value)


@pytest.mark.parametrize("rows", [1_000, 50_000])
def test_a_file_that_can_not_grow_is_a_clear_error_and_leaves_nothing(lake: Lake, rows: int) -> None:
    """Small parts fail when they are closed, large ones while rows are written."""
    config = LakeConfig(row_group_rows=10_000)
    with _largest_file(2_000), pytest.raises(LakeError, match=r"part-0000-000000.parquet: can't write .*ulimit -f"):
        _write(lake, JACOBIAN_ENTRIES, [_noise(rows)], config)
    assert temporaries(lake.root) == []
    _write(lake, JACOBIAN_ENTRIES, [_noise(rows)], config).discard()


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    made = files.create_temporary

    def on_full_disk(path: Path) -> object:
        made(path).close()
        file = full.open("wb")
        return _Renamed(file, next(path.parent.glob(".tmp-*")))

    monkeypatch.setattr(files, "create_temporary", on_full_disk)
    with pytest.raises(LakeError, match=r"No space left.*Free some space"):
        _write(lake, JACOBIAN_ENTRIES, [_noise(50_000)], LakeConfig(row_group_rows=10_000))
    assert temporaries(lake.root) == []


class _Renamed:
    """A file object under another name."""

    def __init__(self, file: object, name: Path) -> None:
        self._file, self.name = file, str(name)

    def __getattr__(self, attribute: str) -> object:
        return getattr(self._file, attribute)


def test_a_file_where_a_folder_belongs_is_a_clear_error(lake: Lake) -> None:
    (lake.root / "tokens").write_text("")
    with pytest.raises(LakeError, match=r"tokens.*can't create the folder.*is a file"):
        _write(lake, TABLES["tokens"], [])
