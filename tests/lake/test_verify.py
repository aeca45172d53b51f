"""`verify_lake` is silent on a clean lake and names each kind of damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jacobian_core.contracts import TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, RunManifest, to_json
from jacobian_core.lake.parts import encode_options
from jacobian_core.lake.runs import begin_run
from jacobian_core.lake.validate import part_metadata
from jacobian_core.lake.verify import verify_lake
from tests.lake.builders import CONFIG, IDENTITY, RUN, example_tables, write_block, write_run

BLOCK = "0000-000000"


def test_a_clean_lake_has_no_findings(lake: Lake) -> None:
    assert verify_lake(lake) == []
    write_run(lake)
    assert verify_lake(lake) == verify_lake(lake, RUN) == []


def test_a_run_in_progress_has_no_findings(lake: Lake) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0, latents=0)
    write_block(lake, 1)
    assert verify_lake(lake) == []


def test_an_unknown_run_or_lake_is_an_error(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no run other-0123456789ab"):
        verify_lake(lake, "other-0123456789ab")
    with pytest.raises(LakeError, match="no lake here"):
        verify_lake(Lake(tmp_path / "none"))


def _part(lake: Lake, table: str = "latents") -> Path:
    return lake.part_path(table, RUN, BLOCK)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _edit_manifest(lake: Lake, change: Callable[[RunManifest], RunManifest]) -> None:
    manifest = lake.manifest(RUN)
    assert manifest is not None
    lake.manifest_path(RUN).write_bytes(to_json(change(manifest)))


def _edit_block(lake: Lake, change: Callable[[BlockMarker], BlockMarker]) -> None:
    _edit_manifest(lake, lambda m: m.model_copy(update={"blocks": [change(m.blocks[0]), *m.blocks[1:]]}))


def _replace_part(lake: Lake, table: str, version: str = "1", block_id: str = BLOCK, number: int = 0) -> None:
    """Write a valid file of other content under a part's name, and let the manifest name its digest."""
    metadata = part_metadata(TABLES[table], RUN, block_id) | {b"jacobian_flows.version": version.encode()}
    data = example_tables(0, number)[table]
    with pq.ParquetWriter(
        _part(lake, table), data.schema.with_metadata(metadata), **encode_options(TABLES[table], CONFIG)
    ) as writer:
        writer.write_table(data.replace_schema_metadata(metadata))
    _rename_digest(lake, table)


def _rename_digest(lake: Lake, table: str) -> None:
    path = _part(lake, table)

    def change(block: BlockMarker) -> BlockMarker:
        info = block.parts[table].model_copy(update={"bytes": path.stat().st_size, "sha256": files.sha256_of(path)})
        return block.model_copy(update={"parts": {**block.parts, table: info}})

    _edit_block(lake, change)


def _scale_totals(block: BlockMarker) -> BlockMarker:
    total = block.totals["abs_sum_total"]
    return block.model_copy(update={"totals": {**block.totals, "abs_sum_total": total * (1 + 1e-15)}})


def _flip_footer_and_rename(lake: Lake) -> None:
    _flip(_part(lake), -20)
    _rename_digest(lake, "latents")


DAMAGES: list[tuple[Callable[[Lake], object], str, str]] = [
    (lambda lake: _part(lake).unlink(), "error", "missing"),
    (lambda lake: os.truncate(_part(lake), 100), "error", "100 bytes, recorded as"),
    (lambda lake: _flip(_part(lake), 50), "error", "SHA-256 is not the recorded one"),
    (_flip_footer_and_rename, "error", ""),
    (lambda lake: _replace_part(lake, "latents", version="2"), "error", "jacobian_flows.version = b'2'"),
    (lambda lake: _replace_part(lake, "latents", block_id="0000-000009"), "error", "jacobian_flows.block_id"),
    (lambda lake: _replace_part(lake, "latents", number=1), "error", "rows may be doubled"),
    (lambda lake: _replace_part(lake, "tokens", number=1), "error", "total abs_sum_total is recorded as"),
    (lambda lake: _edit_block(lake, _scale_totals), "error", "its parts give"),
    (
        lambda lake: _edit_manifest(lake, lambda m: m.model_copy(update={"totals": {**m.totals, "tokens": 5}})),
        "error",
        "total tokens is recorded as 5, the blocks give 6",
    ),
    (lambda lake: lake.manifest_path(RUN).write_text("{"), "error", "not JSON"),
    (lambda lake: lake.manifest_path(RUN).write_text(json.dumps({"schema_version": 9})), "error", "schema version 9"),
    (lambda lake: _part(lake).with_name("part-0000-000009.parquet").touch(), "warning", "not named by the run"),
    (lambda lake: files.temporary_path(_part(lake)).touch(), "warning", "temporary file"),
    (lambda lake: files.write_atomic(lake.staged_path(RUN, BLOCK), b""), "warning", "work folder of a finished run"),
    (lambda lake: (lake.root / "tokens" / "run_id=ghost-1").mkdir(), "warning", "belongs to no run"),
]


@pytest.mark.parametrize(("damage", "severity", "what"), DAMAGES)
def test_damage_is_found_and_has_a_remedy(
    lake: Lake, damage: Callable[[Lake], object], severity: str, what: str
) -> None:
    write_run(lake)
    damage(lake)
    findings = verify_lake(lake)
    assert any(f.severity == severity and what in f.what for f in findings), findings
    assert all(f.remedy for f in findings)
    assert all(str(lake.root) not in f.path for f in findings)


def test_rewritten_but_equal_parts_are_no_damage(lake: Lake) -> None:
    """The sibling of the replaced parts above: the same rows, written by the same settings, are the same bytes."""
    write_run(lake)
    _replace_part(lake, "latents")
    assert verify_lake(lake) == []


def test_a_damaged_marker_does_not_hide_the_other_blocks(lake: Lake) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    write_block(lake, 1)
    lake.marker_path(RUN, BLOCK).write_text("")
    lake.part_path("tokens", RUN, "0000-000001").unlink()
    paths = {Path(finding.path).name for finding in verify_lake(lake)}
    assert paths == {f"{BLOCK}.json", "part-0000-000001.parquet"}
