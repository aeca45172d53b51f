"""Fixtures that every test may use, and the run-time check of every array annotation in the core.

The import hook must be installed before the core is imported: a wrong shape or dtype then fails its test.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' matrices are tiny: threads only wait for each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("WANDB_SILENT", "true")

from jaxtyping import install_import_hook

_hook = install_import_hook(
    [
        "jacobian_core.activations",
        "jacobian_core.all_inputs",
        "jacobian_core.blocks",
        "jacobian_core.codes",
        "jacobian_core.compute",
        "jacobian_core.coo",
        "jacobian_core.function_shapes",
        "jacobian_core.interventions",
        "jacobian_core.jacobian",
        "jacobian_core.llm",
        "jacobian_core.mlp",
        "jacobian_core.quality",
        "jacobian_core.reference",
        "jacobian_core.sandwich",
        "jacobian_core.staging",
        "jacobian_core.strata",
        "jacobian_core.tables",
        "jacobian_core.tokens",
    ],
    "beartype.beartype",
)

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.prefect_server import prefect_api, server, server_lake  # noqa: E402, F401
from tests.tiny import make_corpus, make_model, make_pair  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/`, `pair/` and `corpus/`: a whole run in miniature, with random weights."""
    root = tmp_path_factory.mktemp("tiny")
    make_corpus(root / "corpus")
    make_model(root / "model", root / "corpus")
    make_pair(root / "pair")
    return root


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))
