"""Is this lake the undisturbed one? File by file, part by part, row by row."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq

from jacobian_core.contracts import BLOCK_TABLES
from jacobian_core.lake.files import TEMPORARY_PREFIX
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake

_OF_THIS_ATTEMPT = ("warehouse.duckdb",)
"""Files that are not the same bytes twice: they hold absolute paths."""
_LAST_BITS = 1e-9


@dataclass(frozen=True)
class Difference:
    """What a lake lacks, and what it has too much, in rows of its tables; and everything else that is not the same."""

    rows_lost: int
    rows_doubled: int
    problems: list[str]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def difference(lake: Path, undisturbed: Path) -> Difference:
    """Compare a lake with the undisturbed one; nothing different is `Difference(0, 0, [])`."""
    found, expected = digests(lake), digests(undisturbed)
    problems = [f"{name}: missing" for name in expected if name not in found]
    problems += [f"{name}: should not be there" for name in found if name not in expected and not _is_more_report(name)]
    same_bytes = [name for name in expected if name in found and not _has_own_bytes(name)]
    problems += [f"{name}: other bytes" for name in same_bytes if found[name] != expected[name]]
    reports = [name for name in expected if name in found and name.startswith("reports/")]
    problems += [f"{name}: other rows" for name in reports if not _same_report(lake / name, undisturbed / name)]
    problems += [str(finding) for finding in verify_lake(Lake.open(lake))]
    for run_id in Lake.open(undisturbed).runs():
        if _record(lake, run_id) != _record(undisturbed, run_id):
            problems.append(f"{run_id}: the manifest says other things")
    problems += _warehouse_problems(lake, undisturbed)
    changed = [name for name in problems if ".parquet" in name]
    lost, doubled = _rows(lake, undisturbed) if changed else (0, 0)
    return Difference(lost, doubled, problems)


def _has_own_bytes(name: str) -> bool:
    return name in _OF_THIS_ATTEMPT or name.startswith(("runs/", "reports/"))


def _is_more_report(name: str) -> bool:
    """The whole flow leaves more of them than the run of the faults, and a page."""
    return name.startswith("reports/") and not Path(name).name.startswith(TEMPORARY_PREFIX)


def _same_report(one: Path, other: Path) -> bool:
    """The same rows in the same order; DuckDB adds floats up in any order, so their last bits may differ."""
    read = pq.read_table if one.suffix == ".parquet" else pyarrow.csv.read_csv
    tables = [read(path) for path in (one, other)]
    if tables[0].schema != tables[1].schema or tables[0].num_rows != tables[1].num_rows:
        return False
    pairs = [
        pair for name in tables[0].column_names for pair in zip(*(t[name].to_pylist() for t in tables), strict=True)
    ]
    return all(a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=_LAST_BITS)) for a, b in pairs)


def _record(lake: Path, run_id: str) -> dict[str, Any] | None:
    """A run's manifest without times, and without the places that its pair and its lake were at."""
    manifest = Lake.open(lake).manifest(run_id)
    if manifest is None:
        return None
    record = manifest.model_dump(mode="json", exclude={"seconds", "created_utc"})
    record["config"]["lake"].pop("root")
    record["config"].pop("sae")
    record["config"]["corpus"].pop("location")
    record["artifact"].pop("locator")
    return {**record, "blocks": [{k: v for k, v in b.items() if k != "seconds"} for b in record["blocks"]]}


def _warehouse_problems(lake: Path, undisturbed: Path) -> list[str]:
    """The warehouse file must show the lake as it is now, to any DuckDB client."""
    counts = [_warehouse_counts(each) for each in (lake, undisturbed)]
    return [] if counts[0] == counts[1] else [f"the warehouse shows {counts[0]}, not {counts[1]}"]


def _warehouse_counts(lake: Path) -> list[Any]:
    import duckdb

    if not (lake / "warehouse.duckdb").is_file():
        return []
    query = """SELECT run_id, complete, (SELECT count(*) FROM tokens), (SELECT count(*) FROM pair_stats),
        (SELECT count(*) FROM jacobian_entries) FROM runs ORDER BY run_id"""
    with duckdb.connect(str(lake / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def _rows(lake: Path, undisturbed: Path) -> tuple[int, int]:
    """Rows lost and rows doubled, counted over every part that a reader sees."""
    lost = doubled = 0
    expected = Lake.open(undisturbed).catalogue()
    found = Lake.open(lake).catalogue()
    for run_id, files in expected.items():
        for table in files.parts:
            seen = found[run_id].parts.get(table, []) if run_id in found else []
            rows = [_count(lake, [p.path for p in seen]), _count(undisturbed, [p.path for p in files.parts[table]])]
            lost += (rows[1] - rows[0]).total()
            doubled += (rows[0] - rows[1]).total()
    return lost, doubled


def _count(lake: Path, paths: list[str]) -> Counter[tuple[Any, ...]]:
    rows: Counter[tuple[Any, ...]] = Counter()
    for path in paths:
        columns = pq.ParquetFile(lake / path).read().to_pydict()
        rows.update(zip(*columns.values(), strict=True))
    return rows


def visible_problems(lake: Path, undisturbed: Path) -> list[str]:
    """What a reader sees right now must be whole blocks of the undisturbed lake: the same parts, each unchanged."""
    if not (lake / "lake.json").is_file():
        return []
    expected = digests(undisturbed)
    problems = []
    for run_id, run in Lake.open(lake).catalogue().items():
        for part in (part for parts in run.parts.values() for part in parts):
            content = (lake / part.path).read_bytes() if (lake / part.path).is_file() else b""
            if hashlib.sha256(content).hexdigest() != expected.get(part.path):
                problems.append(f"{run_id}: a reader sees {part.path}, which is not whole")
        if run.parts.get("tokens") and len({len(run.parts[t]) for t in run.parts if t in BLOCK_TABLES}) != 1:
            problems.append(f"{run_id}: a reader sees part of a block")
    return problems


def leftovers(place: Path) -> list[str]:
    """Files that a run should not leave beside its lake: half-fetched copies, spilled data."""
    kept = ("sae_weights.safetensors", "cfg.json", "artifact.json")
    below = [path for name in ("cache", "scratch") for path in (place / name).rglob("*") if path.is_file()]
    return [path.relative_to(place).as_posix() for path in below if path.name not in kept or ".partial" in str(path)]
