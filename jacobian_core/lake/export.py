"""One run as a folder of its own that can be sent to somebody: data, manifest, dictionary, reports, and a DuckDB file.

The folder is a lake with one run, so every command works on it; its `warehouse.duckdb` names the parts relative to the
folder, so plain DuckDB opens it wherever it lies, started from inside. The price of that: from another folder its views
find nothing until `SET file_search_path`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacobian_core.dictionary import data_dictionary
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import PartInfo, RunManifest, to_json
from jacobian_core.sql.run_facts import run_snapshot
from jacobian_core.sql.warehouse_sql import warehouse_statements

WAREHOUSE = "warehouse.duckdb"
DICTIONARY = "DATA_DICTIONARY.md"
README = "README.md"


@dataclass(frozen=True)
class Export:
    """What was written: the folder, how many files, and their bytes."""

    folder: str
    run_id: str
    files: int
    bytes: int


def export_run(lake: Lake, run_id: str, folder: Path) -> Export:
    """Copy a finished run into a new (or empty) folder, every part checked against its digest on the way.

    The folder appears when it is whole. Raises LakeError where the run is not finished, where the folder holds
    something, where a part is not what the manifest says, or where writing fails.
    """
    manifest = lake.manifest(run_id)
    if manifest is None:
        raise LakeError(f"{lake.root}: run {run_id} is not finished.", "Finish it with `jacobian run`, then export it.")
    if folder.exists() and (not folder.is_dir() or files.list_folder(folder)):
        raise LakeError(f"{folder}: there is something already.", "Choose a new folder, or an empty one.")
    folder = folder.resolve()
    files.make_folder(folder.parent)
    temporary = files.temporary_path(folder)
    try:
        _fill(lake, manifest, temporary)
        written = [path.stat().st_size for path in temporary.rglob("*") if path.is_file()]
        files.rename(temporary, folder)
        files.fsync_folder(folder.parent)
    finally:
        files.remove_tree(temporary)
    return Export(str(folder), run_id, len(written), sum(written))


def _fill(lake: Lake, manifest: RunManifest, root: Path) -> None:
    target = Lake.create(root)
    for parts in manifest.all_parts().values():
        for part in parts:
            _copy(lake, part, root / part.path)
    files.write_atomic(target.manifest_path(manifest.run_id), to_json(manifest))
    reports = lake.report_folder(manifest.run_id)
    for path in files.list_folder(reports):
        if not files.is_temporary(path):
            to = root / lake.relative(path)
            files.make_folder(to.parent)
            files.copy_to_disk(path, to)
    files.write_atomic(root / DICTIONARY, data_dictionary().encode())
    files.write_atomic(root / README, _readme(manifest).encode())
    _build_warehouse(target, manifest.run_id)


def _copy(lake: Lake, part: PartInfo, to: Path) -> None:
    files.make_folder(to.parent)
    files.copy_to_disk(lake.root / part.path, to)
    if files.size_of(to) != part.bytes or files.sha256_of(to) != part.sha256:
        problem = f"{lake.root / part.path}: not what the run's manifest says."
        raise LakeError(problem, "See `jacobian verify`; nothing was exported.")


def _build_warehouse(target: Lake, run_id: str) -> None:
    """The views over the exported parts, named relative to the folder."""
    import duckdb

    state = run_snapshot(target, run_id)
    with duckdb.connect(str(target.root / WAREHOUSE)) as connection:
        connection.execute("SET file_search_path = $folder", {"folder": str(target.root)})
        for statement in warehouse_statements(Path(), [] if state is None else [state]):
            connection.execute(statement)


def _readme(manifest: RunManifest) -> str:
    parts = manifest.all_parts()
    rows = "\n".join(
        f"| `{table}` | {sum(p.rows for p in parts[table]):,} | {len(parts[table]):,} | "
        f"{sum(p.bytes for p in parts[table]):,} |"
        for table in sorted(parts)
    )
    facts = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in _facts(manifest).items())
    return _TEXT.format(run_id=manifest.run_id, facts=facts, rows=rows)


def _facts(manifest: RunManifest) -> dict[str, Any]:
    return {
        "finished (UTC)": manifest.created_utc.isoformat(timespec="seconds"),
        "model": manifest.model.get("name"),
        "layer": manifest.model.get("layer"),
        "SAE pair": manifest.artifact.get("locator"),
        "its digest": manifest.artifact.get("digest"),
        **{f"total: {name}": f"{value:,}" for name, value in sorted(manifest.totals.items())},
        **{f"version: {name}": value for name, value in sorted(manifest.versions.items())},
    }


def _cell(value: object) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(value))
    for char, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("[", "&#91;")):
        text = text.replace(char, safe)
    return text


_TEXT = """# Run {run_id}

Sparse Jacobians between SAE latents, as Parquet tables: one run of jacobian-flows, complete in this folder.

| | |
|---|---|
{facts}

| table | rows | files | bytes |
|---|---|---|---|
{rows}

`DATA_DICTIONARY.md` says what each column means, `runs/{run_id}.json` where everything came from (with the SHA-256 of
every part), `reports/` holds the reports as CSV and Parquet where they were made.

With DuckDB 1.5 or newer, from inside this folder:

```sh
duckdb -readonly warehouse.duckdb "SELECT * FROM runs"
```

From elsewhere, run `SET file_search_path = '<this folder>'` first. Without the warehouse:
`SELECT * FROM read_parquet('tokens/run_id={run_id}/*.parquet')`. The folder is a lake:
`jacobian sql --lake <this folder>` and every other command read it too.
"""
