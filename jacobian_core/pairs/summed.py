"""The entries of a block that are summed and not kept: from the tables of its chunks to rows in the work folder.

So are its active latents where these are not kept either. Both are checked like any part before anything is written.
What is held meanwhile is one block's entries, 20 bytes each.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from jacobian_core.contracts import JACOBIAN_ENTRIES, LATENTS, TABLES, TOKENS, Keep, block_tables
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.lake.validate import Key, check_rows
from jacobian_core.lake.work_files import SummedEntries, WorkFile, new_file
from jacobian_core.numerics.latent_sums import added_up
from jacobian_core.pairs.latent_bytes import of_codes_table, table_of
from jacobian_core.pairs.sorting import CODE_COLUMNS, ENTRY_COLUMNS, encode_rows

_KEPT = {
    TOKENS.name: ("token_id", "entries_total"),
    LATENTS.name: CODE_COLUMNS,
    JACOBIAN_ENTRIES.name: ENTRY_COLUMNS,
}
_CALLED = {LATENTS.name: "active latents", JACOBIAN_ENTRIES.name: "entries"}


def sums_folder(lake: Lake, run_id: str) -> LakePath:
    """Where a run that does not keep entries keeps rows and sums while it goes on: for all of its workers."""
    return lake.work_folder(run_id) / "pairs"


class BlockEntries:
    """Collects a block's chunks; `finish` writes its rows, under temporary names."""

    def __init__(self, block_id: str, keep: Keep) -> None:
        self._block_id, self._kept = block_id, block_tables(keep)
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in _KEPT}
        self._rows, self._last_key = Counter[str](), dict[str, Key | None]()
        self._latents = [of_codes_table(_EMPTY_LATENTS)]

    def add(self, name: str, table: pa.Table) -> None:
        """Take what is needed of a chunk's table. LakeError where a row that is not kept breaks the contract."""
        if name not in self._kept:
            where = f"{_CALLED[name]} of block {self._block_id} from row {self._rows[name]}"
            self._last_key[name] = check_rows(TABLES[name], table, where, self._last_key.get(name))
            self._rows[name] += table.num_rows
        if name == LATENTS.name and name not in self._kept:
            self._latents.append(of_codes_table(table))
        if name in _KEPT:
            self._tables[name].append(table.select(_KEPT[name]))

    def finish(self, lake: Lake, run_id: str) -> SummedEntries:
        """Write the rows, for `BlockWriter.publish` to place. LakeError where that fails; nothing is left then."""
        tokens, latents, entries = (self._table(name) for name in (TOKENS.name, LATENTS.name, JACOBIAN_ENTRIES.name))
        dropped = int(tokens.column("entries_total").to_numpy().sum()) != entries.num_rows
        sums = None if LATENTS.name in self._kept else table_of(added_up(self._latents))
        codes = latents if dropped else None
        digest, contents = encode_rows(self._block_id, None, tokens, entries, codes, sums)
        made: list[WorkFile] = []
        try:
            for name, content in contents.items():
                with new_file(lake, run_id, sums_folder(lake, run_id) / name) as (file, work_file):
                    file.write(content)
                made.append(work_file)
        except BaseException:
            for work_file in made:
                work_file.discard()
            raise
        return SummedEntries(digest, tuple(made), keeps_latents=sums is None)

    def _table(self, name: str) -> pa.Table:
        return pa.concat_tables([_EMPTY[name], *self._tables[name]])


_EMPTY = {
    table.name: table.schema().empty_table().select(_KEPT[table.name]) for table in (TOKENS, LATENTS, JACOBIAN_ENTRIES)
}
_EMPTY_LATENTS = LATENTS.schema().empty_table()
