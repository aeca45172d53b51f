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

import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, so before anything imports it

_hook = install_import_hook(
    [
        "jacobian_core.model.activations",
        "jacobian_core.model.affine",
        "jacobian_core.numerics.all_inputs",
        "jacobian_core.corpus.blocks",
        "jacobian_core.numerics.codes",
        "jacobian_core.work.compute",
        "jacobian_core.numerics.coo",
        "jacobian_core.numerics.device",
        "jacobian_core.numerics.function_shapes",
        "jacobian_core.numerics.interventions",
        "jacobian_core.numerics.jacobian",
        "jacobian_core.numerics.output_norm",
        "jacobian_core.numerics.left_out",
        "jacobian_core.numerics.masses",
        "jacobian_core.numerics.latent_sums",
        "jacobian_core.numerics.pair_digits",
        "jacobian_core.numerics.pair_sums",
        "jacobian_core.numerics.radix",
        "jacobian_core.numerics.partial_sums",
        "jacobian_core.numerics.stretches",
        "jacobian_core.pairs.above",
        "jacobian_core.pairs.latent_bytes",
        "jacobian_core.pairs.latent_stats",
        "jacobian_core.pairs.by_pair",
        "jacobian_core.pairs.counting",
        "jacobian_core.pairs.threshold_counts",
        "jacobian_core.pairs.rows",
        "jacobian_core.pairs.sorting",
        "jacobian_core.numerics.largest",
        "jacobian_core.model.forward",
        "jacobian_core.numerics.collect",
        "jacobian_core.numerics.gpu.choice",
        "jacobian_core.numerics.gpu.compaction",
        "jacobian_core.numerics.gpu.gathered",
        "jacobian_core.numerics.gpu.sums",
        "jacobian_core.model.llm",
        "jacobian_core.model.mlp",
        "jacobian_core.model.neurons",
        "jacobian_core.numerics.precision",
        "jacobian_core.model.quality",
        "jacobian_core.numerics.reference",
        "jacobian_core.numerics.sae",
        "jacobian_core.numerics.sandwich",
        "jacobian_core.numerics.search",
        "jacobian_core.numerics.bounds",
        "jacobian_core.numerics.integer_bounds",
        "jacobian_core.numerics.dots",
        "jacobian_core.numerics.state",
        "jacobian_core.corpus.staging",
        "jacobian_core.numerics.strata",
        "jacobian_core.numerics.transcoder",
        "jacobian_core.work.tables",
        "jacobian_core.corpus.tokens",
    ],
    "beartype.beartype",
)

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.object_store import s3, store  # noqa: E402, F401
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
