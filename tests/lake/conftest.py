from pathlib import Path

import pytest

from jacobian_core.lake.layout import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")
