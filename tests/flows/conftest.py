"""What the flow tests need beside the shared server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def no_prefect_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where Prefect was never set up."""
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
