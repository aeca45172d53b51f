"""Export: a folder that stands alone, wherever it is moved, for plain DuckDB and for every command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake.compact import compact_run
from jacobian_core.lake.export import export_run
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.verify import verify_lake
from tests.maintenance.rows import seen
from tests.sql.lakes import HAND_RUN, hand_lake

QUERY = "SELECT count(*) FROM jacobian_entries SEMI JOIN tokens USING (token_id)"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = hand_lake(tmp_path / "lake")
    made.report_folder(HAND_RUN).mkdir(parents=True)
    (made.report_folder(HAND_RUN) / "sparsity.csv").write_text("a\n1\n")
    return made


@pytest.mark.parametrize("compacted", [False, True])
def test_the_folder_stands_alone(lake: Lake, tmp_path: Path, compacted: bool) -> None:
    if compacted:
        compact_run(lake, HAND_RUN)
    expected = seen(lake)
    done = export_run(lake, HAND_RUN, tmp_path / "out" / "run")
    shutil.rmtree(lake.root)
    moved = Path(shutil.move(done.folder, tmp_path / "elsewhere"))
    found = Lake.open(moved)
    assert verify_lake(found) == []
    assert seen(found) == expected
    assert (moved / "reports" / HAND_RUN / "sparsity.csv").is_file()
    assert "`abs_sum_total`" in (moved / "DATA_DICTIONARY.md").read_text()
    readme = (moved / "README.md").read_text()
    assert f"`runs/{HAND_RUN}.json`" in readme
    assert "| `jacobian_entries` | 7 |" in readme
    assert done.files == sum(path.is_file() for path in moved.rglob("*"))


def test_plain_duckdb_opens_it_from_inside_and_not_from_elsewhere(lake: Lake, tmp_path: Path) -> None:
    done = export_run(lake, HAND_RUN, tmp_path / "run")
    moved = Path(shutil.move(done.folder, tmp_path / "moved"))
    code = f"import duckdb; print(duckdb.connect('warehouse.duckdb', read_only=True).execute({QUERY!r}).fetchone()[0])"
    plain = subprocess.run([sys.executable, "-c", code], cwd=moved, capture_output=True, text=True, check=True)
    assert plain.stdout == "7\n"
    with duckdb.connect(str(moved / "warehouse.duckdb"), read_only=True) as connection:
        with pytest.raises(duckdb.Error):
            connection.execute(QUERY)
        connection.execute("SET file_search_path = $folder", {"folder": str(moved)})
        assert connection.execute(QUERY).fetchall() == [(7,)]
        assert connection.execute("SELECT run_id FROM runs").fetchall() == [(HAND_RUN,)]


def test_a_damaged_part_is_not_exported_and_nothing_is_left(lake: Lake, tmp_path: Path) -> None:
    victim = lake.root / lake.run_files(HAND_RUN).parts["tokens"][0].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(LakeError, match="not what the run's manifest says"):
        export_run(lake, HAND_RUN, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake"]


def test_what_is_there_is_not_touched(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(LakeError, match="something already"):
        export_run(lake, HAND_RUN, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert export_run(lake, HAND_RUN, tmp_path / "empty").files > 0


def test_a_run_in_progress_is_not_exported(tmp_path: Path) -> None:
    going = hand_lake(tmp_path / "going", complete=False)
    with pytest.raises(LakeError, match="not finished"):
        export_run(going, HAND_RUN, tmp_path / "run")
