"""Opening a lake, the names of its files, and a catalogue that shows whole blocks only."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker, PartInfo, RunManifest, from_json, to_json
from jacobian_core.lake.runs import begin_run
from tests.lake.builders import IDENTITY, RUN, write_block, write_pair_stats, write_run


def test_a_lake_is_made_once_and_opened_after(tmp_path: Path) -> None:
    first = Lake.create(tmp_path / "a" / "lake")
    described = first.description_path.read_bytes()
    assert json.loads(described) == {"format": "jacobian-flows lake", "schema_version": 4}
    Lake.create(first.root)
    assert Lake.open(str(first.root)).root == first.root
    assert first.description_path.read_bytes() == described


def test_opening_does_not_make_a_lake(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no lake here"):
        Lake.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else_is_refused_but_the_server_s_state_is_not(tmp_path: Path) -> None:
    (tmp_path / "_prefect").mkdir()
    Lake.create(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(LakeError, match=r"not a lake .*thesis\.tex"):
        Lake.create(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_lake_that_another_worker_makes_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = files.list_folder

    def meanwhile(folder: Path) -> list[Path]:
        monkeypatch.setattr(files, "list_folder", listed)
        (Lake.create(tmp_path).root / "tokens").mkdir()
        return listed(folder)

    monkeypatch.setattr(files, "list_folder", meanwhile)
    Lake.create(tmp_path)
    assert (tmp_path / "tokens").is_dir()  # the moment did come


@pytest.mark.parametrize(("version", "remedy"), [(5, "Update jacobian-flows"), (0, "Start a new lake"), (None, "new")])
def test_another_schema_version_is_refused(lake: Lake, version: object, remedy: str) -> None:
    lake.description_path.write_text(json.dumps({"format": "jacobian-flows lake", "schema_version": version}))
    with pytest.raises(LakeError, match=f"schema version {version}.*{remedy}"):
        Lake.open(lake.root)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "something else", "schema_version": 1}'])
def test_a_damaged_description_is_refused(lake: Lake, content: str) -> None:
    lake.description_path.write_text(content)
    with pytest.raises(LakeError, match="does not describe"):
        Lake.create(lake.root)


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/lake", "/dev/null/lake"])
def test_a_place_that_can_not_hold_a_lake_is_refused(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match=r"can't create the folder: .*--lake"):
        Lake.create(tmp_path / root)


@given(st.text(max_size=12).filter(lambda s: not s.replace("-", "").replace("_", "").isalnum() or not s.isascii()))
def test_no_name_leaves_its_folder(name: str) -> None:
    lake = Lake(Path("/nowhere"))
    for path in (lake.manifest_path, lake.work_folder, lambda n: lake.part_path("tokens", n, "0000-000000")):
        with pytest.raises(LakeError, match="not a valid name"):
            path(name)


def test_the_layout_is_the_contract() -> None:
    lake = Lake(Path("/l"))
    assert [
        str(path)
        for path in (
            lake.part_path("tokens", RUN, "0003-000017"),
            lake.request_path(RUN),
            lake.staged_path(RUN, "0003-000017"),
            lake.marker_path(RUN, "0003-000017"),
            lake.manifest_path(RUN),
            lake.report_folder(RUN),
        )
    ] == [
        f"/l/tokens/run_id={RUN}/part-0003-000017.parquet",
        f"/l/_work/{RUN}/request.json",
        f"/l/_work/{RUN}/staged/0003-000017.arrow",
        f"/l/_work/{RUN}/done/0003-000017.json",
        f"/l/runs/{RUN}.json",
        f"/l/reports/{RUN}",
    ]


def test_the_catalogue_grows_by_whole_blocks_then_by_the_run(lake: Lake) -> None:
    assert lake.catalogue() == {}
    begin_run(lake, RUN, IDENTITY, {})
    assert lake.catalogue()[RUN].parts == {}
    for number in (1, 0):
        write_block(lake, number)
    going = lake.catalogue()[RUN]
    assert not going.complete
    assert [part.path[-11:] for part in going.parts["tokens"]] == ["000.parquet", "001.parquet"]
    pair_stats = write_pair_stats(lake)
    assert "pair_stats" not in lake.catalogue()[RUN].parts
    manifest = write_run(lake)
    done = lake.catalogue()[RUN]
    assert done.complete
    assert done.parts == {**going.parts, "pair_stats": [pair_stats]}
    assert lake.manifest(RUN) == manifest
    assert lake.markers(RUN) == manifest.blocks
    assert lake.runs() == [RUN]


def test_a_part_without_a_marker_is_in_no_catalogue(lake: Lake) -> None:
    begin_run(lake, RUN, IDENTITY, {})
    write_block(lake, 0)
    lake.marker_path(RUN, "0000-000000").unlink()
    assert lake.part_path("tokens", RUN, "0000-000000").exists()
    assert lake.catalogue()[RUN].parts == {}


def test_records_survive_their_json(lake: Lake) -> None:
    manifest = write_run(lake)
    again = from_json(RunManifest, to_json(manifest), lake.manifest_path(RUN))
    assert again == manifest
    assert to_json(again) == to_json(manifest)
    assert type(again.totals["tokens"]) is int
    assert type(again.totals["abs_sum_total"]) is float


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_sums_survive_to_the_last_bit(value: float) -> None:
    marker = BlockMarker(run_id=RUN, block_id="0000-000000", parts={}, totals={"abs_sum_total": value}, seconds={})
    assert str(from_json(BlockMarker, to_json(marker), Path("x")).totals["abs_sum_total"]) == str(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_with_a_number_that_is_none_is_refused(lake: Lake, value: float) -> None:
    manifest = write_run(lake)
    with pytest.raises(ValidationError, match=r"quality\.fvu_in"):
        RunManifest(**{**manifest.model_dump(), "quality": {"fvu_in": value}})
    with pytest.raises(LakeError, match="RunManifest can't be written as JSON"):
        to_json(manifest.model_copy(update={"quality": {"fvu_in": value}}))
    assert RunManifest(**{**manifest.model_dump(), "quality": {"fvu_in": 0.5}}).quality == {"fvu_in": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 5}, "schema version 5.*Update jacobian-flows"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"blocks": "none"}, "blocks: Input should be a valid array"),
    ],
)
def test_a_record_of_another_shape_is_refused(lake: Lake, change: dict[str, object], message: str) -> None:
    write_run(lake)
    path = lake.manifest_path(RUN)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LakeError, match=f"{RUN}.json: {message}"):
        lake.manifest(RUN)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "tokens/../../x", "a//b", "a\\b", ""])
def test_a_record_can_not_point_outside_of_the_lake(path: str) -> None:
    with pytest.raises(ValueError, match="relative to the lake"):
        PartInfo(path=path, rows=0, bytes=0, sha256="0" * 64)
