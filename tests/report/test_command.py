"""`jacobian report --html`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import cli
from jacobian_core.errors import ConfigError, LakeError
from jacobian_core.lake.layout import Lake
from tests.report.lakes import RUNS


def _report(*arguments: str) -> None:
    cli.app(["report", *arguments], standalone_mode=False)


def test_page_of_two_runs(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _report("--html", "--lake", str(lake.root), "--run", "jsae", "--run", "control", "--out", str(tmp_path / "page"))
    path = tmp_path / "page" / "report.html"
    assert capsys.readouterr().out == f"page: {path}\n"
    assert path.read_text(encoding="utf-8").count('class="answer') == 2


def test_page_as_json(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _report("--html", "--lake", str(lake.root), "--run", "control", "--out", str(tmp_path), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["run_ids"] == [RUNS[1]]
    assert sorted(Path(file) for file in found["files"]) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--run", "jsae", "--run", "control"], ConfigError),
        (["--out", "somewhere"], ConfigError),
        (["--html", "sparsity"], ConfigError),
        (["--html", "--set", "top=3"], ConfigError),
        (["--html", "--run", "nobody"], LakeError),
    ],
)
def test_what_does_not_fit_together_is_refused(lake: Lake, arguments: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        _report("--lake", str(lake.root), *arguments)
