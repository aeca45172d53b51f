"""The miniature that faults happen to, its fork server, and the table that the session ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from jacobian_core.config import RunConfig
from tests.faults.attempts import Runs
from tests.faults.table import TABLE_FILE, Harness, Tried, summary
from tests.stand_ins.hub_server import ModelRepository, serve_models
from tests.tiny import make_corpus, make_model, make_pair, tiny_config

_BAD_ROWS = (b'{"text": "cut o', b'{"text": ""}', b'{"text": 7}')
DOCUMENTS = 28


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, pair and corpus; the shards have checksums, as `zstd` writes them, and rows that can't be used."""
    root = tmp_path_factory.mktemp("mini")
    make_corpus(root / "corpus", DOCUMENTS)
    make_model(root / "model", root / "corpus")
    make_pair(root / "hub")
    for path in (root / "corpus").iterdir():
        lines = zstandard.decompress(path.read_bytes()).splitlines()
        lines[5:5] = _BAD_ROWS
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(b"\n".join(lines) + b"\n"))
    return root


Configure = Callable[..., RunConfig]
AGGREGATES: dict[str, dict[str, object]] = {
    "jacobian": {"keep": "aggregates", "derivatives": "first"},
    "corpus": {"block_tokens": 20},
}
"""A document a block, so that each shard has a group to merge."""


@pytest.fixture(scope="session")
def configure(mini: Path) -> Configure:
    """Make a configuration over the miniature; the pair comes from a hub."""

    def make(lake: str = "lake", **groups: dict[str, object]) -> RunConfig:
        base: dict[str, dict[str, object]] = {
            "sae": {"source": "huggingface", "location": "owner/pair"},
            "jacobian": {"derivatives": "second"},
            "interventions": {"kinds": ["ablate"], "token_share": 0.2},
            "all_inputs": {"group_blocks": 2},
            "compute": {"threads": 1},
        }
        for group, fields in groups.items():
            base[group] = {**base.get(group, {}), **fields}
        return RunConfig.model_validate(tiny_config(mini, mini / lake, **base))

    return make


@pytest.fixture(scope="session")
def hub(mini: Path) -> Iterator[ModelRepository]:
    """The repository that the pair is fetched from, served for the whole session."""
    repository = ModelRepository(mini / "hub")
    with serve_models({"owner/pair": repository}) as server:
        (mini / "hub-url.txt").write_text(server.url)
        yield repository


@pytest.fixture(scope="session")
def runs(mini: Path, configure: Configure, hub: ModelRepository) -> Iterator[Runs]:
    """Starts attempts; model and pair are loaded once."""
    for scope in ("active", "all_inputs"):
        config = configure(f"warm-{scope}", jacobian={"scope": scope})
        (mini / f"warm-{scope}.json").write_text(config.model_dump_json())
    (mini / "warm-aggregates.json").write_text(configure("warm-aggregates", **AGGREGATES).model_dump_json())
    private = {"HF_ENDPOINT": (mini / "hub-url.txt").read_text(), "HF_HOME": str(mini / "hf"), "TMPDIR": str(mini)}
    started = Runs(mini, {**private, "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    yield started
    started.stop()


@pytest.fixture(scope="session")
def harness(runs: Runs, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Runs, faults and comparisons; what was tried goes into the session's table."""
    return Harness(runs, configure(), tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def all_inputs_harness(runs: Runs, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The same for scope 'all_inputs', whose sums are kept in groups of blocks."""
    return Harness(runs, configure(jacobian={"scope": "all_inputs"}), tmp_path_factory.mktemp("undisturbed-all"))


@pytest.fixture(scope="session")
def aggregates_harness(runs: Runs, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The same for a run that keeps aggregates alone, and merges groups of blocks on its way."""
    return Harness(runs, configure(**AGGREGATES), tmp_path_factory.mktemp("undisturbed-aggregates"))


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[Tried], None]:
    """Put a line into the table."""

    def note(line: Tried) -> None:
        record_property("fault", line.as_json())

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: fault, times tried, blocks recomputed, rows lost and doubled."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    lines = [Tried(**json.loads(str(value))) for r in reports for name, value in r.user_properties if name == "fault"]
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line(summary(lines))
        if target := os.environ.get(TABLE_FILE):
            Path(target).write_text(summary(lines) + "\n")
