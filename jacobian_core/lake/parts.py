"""Write one part of one table: a Parquet file that is whole and checked before it gets its name.

Columns are encoded as the contract says (BYTE_STREAM_SPLIT, DELTA_BINARY_PACKED, dictionaries, zstd): 3.9 bytes an
entry where pyarrow's defaults take 4.9, and faster. At most one row group is held in memory. The same rows give the
same bytes, however they were cut into writes: row groups are cut to size here, and pyarrow's pages don't depend on
chunks (a test holds it to that).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import Table
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.validate import Key, check_part, check_rows, part_metadata

_ENCODINGS = {"byte_stream_split": "BYTE_STREAM_SPLIT", "delta": "DELTA_BINARY_PACKED"}


def encode_options(table: Table, config: LakeConfig) -> dict[str, Any]:
    """Arguments of `pq.ParquetWriter` for a table: an encoding per column, zstd, statistics, the sort order.

    Strings outside of the key get no statistics: their minimum and maximum prune nothing and swell the footer.
    """
    return {
        "version": "2.6",
        "compression": "zstd",
        "compression_level": config.compression_level,
        "use_dictionary": [c.name for c in table.columns if c.encoding == "dictionary"],
        "column_encoding": {c.name: _ENCODINGS[c.encoding] for c in table.columns if c.encoding != "dictionary"},
        "write_statistics": [c.name for c in table.columns if c.type != "string" or c.name in table.key],
        "sorting_columns": pq.SortingColumn.from_ordering(table.schema(), [(name, "ascending") for name in table.key]),
        "store_schema": True,
    }


@dataclass(frozen=True)
class PreparedPart:
    """A whole, checked part under its temporary name; `info` is what its record will say."""

    table: str
    run_id: str
    block_id: str
    temporary: Path
    path: LakePath
    info: PartInfo

    def discard(self) -> None:
        """Remove the temporary file; nothing happens if it was published or removed already."""
        files.remove(self.temporary)


class PartWriter:
    """Writes one part; a context manager that leaves nothing behind unless `finish` succeeded.

        with PartWriter(lake, TOKENS, run_id, block_id, config) as writer:
            writer.write(rows)          # any number of times, keys ascending throughout
            prepared = writer.finish()

    Raises LakeError where rows break the contract or the file can't be written.
    """

    def __init__(self, lake: Lake, table: Table, run_id: str, block_id: str, config: LakeConfig) -> None:
        self._lake, self._table, self._run_id, self._block_id = lake, table, run_id, block_id
        self._path = self._place = lake.part_path(table.name, run_id, block_id)
        self._group_rows = config.row_group_rows
        self._options = encode_options(table, config)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._rows = 0
        self._last_key: Key | None = None
        self._finished = False

    def __enter__(self) -> PartWriter:
        self._file = files.create_temporary(self._path)
        self._temporary = Path(self._file.name)
        if not self._lake.locks:  # in a store: what goes wrong before it is put is this machine's matter
            self._place = self._temporary
        metadata = part_metadata(self._table, self._run_id, self._block_id)
        try:
            with files.lake_errors(self._place, "write the part"):
                self._writer = pq.ParquetWriter(
                    self._file, self._table.schema().with_metadata(metadata), **self._options
                )
        except BaseException:
            files.close_quietly(self._file)
            files.remove(self._temporary)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._abandon()

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._rows

    def write(self, data: pa.Table) -> None:
        """Check rows and add them; whole row groups are encoded and go to the disk."""
        self._last_key = check_rows(self._table, data, f"{self._path.name} from row {self._rows}", self._last_key)
        self._pending.append(data)
        self._pending_rows += data.num_rows
        self._rows += data.num_rows
        if self._pending_rows >= self._group_rows:
            self._write_groups()

    def finish(self) -> PreparedPart:
        """Write what is left, make the file durable and check it; returns the part, ready to be published."""
        if self._pending_rows:
            self._write_group(pa.concat_tables(self._pending))
        with files.lake_errors(self._place, "write the part"):
            self._writer.close()
        files.close_durably(self._file)
        check_part(self._temporary, self._table, self._run_id, self._block_id, self._rows)
        info = PartInfo(
            path=self._lake.relative(self._path),
            rows=self._rows,
            bytes=files.size_of(self._temporary) or 0,
            sha256=files.sha256_of(self._temporary),
        )
        self._finished = True
        return PreparedPart(self._table.name, self._run_id, self._block_id, self._temporary, self._path, info)

    def _write_groups(self) -> None:
        """Cut the pending rows into row groups of exactly the configured size; keep the rest."""
        data, start = pa.concat_tables(self._pending), 0
        while data.num_rows - start >= self._group_rows:
            self._write_group(data.slice(start, self._group_rows))
            start += self._group_rows
        self._pending = [data.slice(start)]
        self._pending_rows = data.num_rows - start

    def _write_group(self, data: pa.Table) -> None:
        with files.lake_errors(self._place, "write the part"):
            self._writer.write_table(data, row_group_size=self._group_rows)

    def _abandon(self) -> None:
        # Closing the writer tries to write a footer, which fails on a full disk; the file goes away either way.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        files.close_quietly(self._file)
        with suppress(LakeError):
            files.remove(self._temporary)
