"""Pages that several tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.page.write import WrittenPage, write_page
from tests.report.lakes import RUNS, hostile_lake


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two finished runs with interventions and hostile text."""
    return hostile_lake(tmp_path_factory.mktemp("report") / "lake")


@pytest.fixture(scope="session")
def one(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> WrittenPage:
    """The page of the first run."""
    return write_page(lake, RUNS[:1], tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def both(lake: Lake) -> WrittenPage:
    """The page of both runs, where the lake keeps it."""
    return write_page(lake, RUNS)


def text_of(page: WrittenPage) -> str:
    return Path(page.path).read_text(encoding="utf-8")
