"""What a user has before anything is deployed."""

from pathlib import Path

import pytest

from tests.flows.test_main_command import PROFILE
from tests.tiny import make_corpus, make_model, make_pair


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A user's folder: model, pair, a corpus of two shards, and a profile."""
    make_corpus(tmp_path / "corpus", documents=30)
    make_model(tmp_path / "model", tmp_path / "corpus")
    make_pair(tmp_path / "pair")
    (tmp_path / "tiny.toml").write_text(PROFILE)
    return tmp_path
