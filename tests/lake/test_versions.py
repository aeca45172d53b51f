"""A lake, a record or a part of another version is refused by whatever reads it, never misread."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jacobian_core.contracts import LATER_TABLES, TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import to_json
from jacobian_core.lake.runs import begin_run
from jacobian_core.lake.verify import verify_lake
from jacobian_core.sql.warehouse import connect
from jacobian_core.sql.warehouse_file import build_warehouse
from tests.lake.builders import IDENTITY, RUN, write_block, write_run

READERS: dict[str, Callable[[Lake], Any]] = {
    "query": connect,
    "warehouse": build_warehouse,
    "catalogue": lambda lake: lake.catalogue(),
    "the same request": lambda lake: begin_run(lake, RUN, IDENTITY, {}),
}


@pytest.fixture
def written(tmp_path: Path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    write_run(lake)
    return lake


def set_version(path: Path, version: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))


@pytest.mark.parametrize("version", [0, 5, None, "1", True])
@pytest.mark.parametrize("reader", READERS)
def test_a_manifest_of_another_version(written: Lake, reader: str, version: object) -> None:
    set_version(written.manifest_path(RUN), version)
    with pytest.raises(
        LakeError, match=rf"{RUN}\.json: schema version {version!r}, this program reads versions 1 to 4"
    ):
        READERS[reader](written)


def test_a_run_in_progress_of_another_version(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    set_version(lake.request_path(RUN), 5)
    with pytest.raises(LakeError, match=r"request\.json: schema version 5"):
        begin_run(lake, RUN, IDENTITY, {})
    assert [finding.severity for finding in verify_lake(lake)] == ["error"]


@pytest.mark.parametrize("reader", READERS)
def test_a_lake_of_version_1_is_read(tmp_path: Path, reader: str) -> None:
    """What version 1 wrote: another number, and blocks without `quality` and without the tables it did not know."""
    lake = lake_of_version_1(tmp_path / "lake", LATER_TABLES)
    READERS[reader](Lake.open(lake.root))
    assert verify_lake(lake) == []
    with connect(lake) as connection:
        assert connection.execute("SELECT tokens > 0, block_fvu_in FROM runs").fetchall() == [(True, None)]


def lake_of_version_1(root: Path, without: Sequence[str]) -> Lake:
    lake = Lake.create(root)
    set_version(lake.description_path, 1)
    manifest = json.loads(to_json(write_run(lake))) | {"schema_version": 1}
    for each in manifest["blocks"]:
        del each["quality"]
        for table in without:
            del each["parts"][table]
    lake.manifest_path(RUN).write_text(json.dumps(manifest))
    for table in without:
        shutil.rmtree(root / table)
    return lake


def test_a_lake_of_version_2_is_read(written: Lake) -> None:
    """Its blocks do not say what their entries became: they were kept."""
    set_version(written.description_path, 2)
    manifest = json.loads(written.manifest_path(RUN).read_text()) | {"schema_version": 2}
    for each in manifest["blocks"]:
        del each["entries_sha256"], each["keeps_latents"]
    written.manifest_path(RUN).write_text(json.dumps(manifest))
    lake = Lake.open(written.root)
    assert verify_lake(lake) == []
    with connect(lake) as connection:
        assert connection.execute("SELECT keep FROM runs").fetchall() == [("entries",)]


@pytest.mark.parametrize("without", [LATER_TABLES[:2], ("latents", *LATER_TABLES)])
def test_other_tables_that_lack_are_noticed(tmp_path: Path, without: Sequence[str]) -> None:
    found = verify_lake(lake_of_version_1(tmp_path / "lake", without))
    assert {f"has no part of {table}" for table in without} <= {finding.what for finding in found}


def test_a_page_of_a_run_of_version_1(tmp_path: Path) -> None:
    from flows.run_page import _quality

    manifest = lake_of_version_1(tmp_path / "lake", LATER_TABLES).manifest(RUN)
    assert manifest is not None
    assert str(_quality(manifest)["FVU of the input SAE"]).endswith("at the start")


@pytest.mark.parametrize("version", [2, 0])
@pytest.mark.parametrize("table", ["tokens", "jacobian_entries"])
def test_parts_of_another_contract(written: Lake, table: str, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's contract moves on (or back), the lake stays: its columns may mean something else now."""
    with connect(written) as connection:
        assert connection.execute(f"SELECT count(*) > 0 FROM {table}").fetchone() == (True,)
    monkeypatch.setitem(TABLES, table, replace(TABLES[table], version=version))
    monkeypatch.setattr("jacobian_core.sql.warehouse._checked", set())  # another program has checked nothing yet
    for read in (connect, build_warehouse):
        with pytest.raises(LakeError, match=rf"metadata says jacobian_flows\.version = b'1', expected b'{version}'"):
            read(written)
    found = verify_lake(written)
    assert {finding.path.partition("/")[0] for finding in found} == {table}
    assert all("Another version" in finding.remedy for finding in found)
