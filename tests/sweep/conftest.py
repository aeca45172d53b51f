"""A sweep in miniature: two layers of the tiny model, a pair that is trained here and one that lies in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

PROFILE = """
name = "base"
[sae]
source = "folder"
location = "pair"
[model]
name = "./model"
[corpus]
source = "folder"
location = "corpus"
context_tokens = 48
block_tokens = 150
max_tokens = 300
[jacobian]
derivatives = "second"
[interventions]
kinds = ["ablate"]
shape_token_share = 0.2
[quality]
fvu_tokens = 100
max_fvu_in = 50.0
max_fvu_out = 50.0
"""

SWEEP = """
name = "tiny"
profile = "base.toml"
layers = [0, 1]
weights = ["model", "randomised"]

[train]
training_shards = ["corpus/00.jsonl.zst"]
held_out_shards = ["corpus/01.jsonl.zst"]
latents = 48
active_latents = 4
tokens = 1200
context_tokens = 16
windows_per_step = 4
learning_rate = 5e-3
statistics_tokens = 200
evaluation_tokens = 200
log_every_steps = 10

[[pairs]]
name = "made"
train = { jacobian_coefficient = 1.0 }
weights = ["model"]

[[pairs]]
name = "taken"
settings = ["sae.location=pairs/layer{layer}"]
layers = [1]
"""


@pytest.fixture
def work(tiny_copy: Path) -> Path:
    """A user's folder: model, pair, corpus, a profile and a sweep over it; `pairs/layer1` is not there yet."""
    (tiny_copy / "base.toml").write_text(PROFILE)
    (tiny_copy / "sweep.toml").write_text(SWEEP)
    return tiny_copy
