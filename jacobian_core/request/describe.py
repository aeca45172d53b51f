"""What a request would be as a run, without beginning it: the digests of everything that determines its data.

`resolve_run` and the scheduled ingest both ask this, so that they agree on which run holds which shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jacobian_core.artifact.sae_pair import describe_pair, model_weights_of
from jacobian_core.artifact.transcoder import check_transcoder_settings
from jacobian_core.config import RunConfig
from jacobian_core.corpus.listing import Shard
from jacobian_core.corpus.tokenizer import load_tokenizer
from jacobian_core.model.llm_identity import model_digest
from jacobian_core.numerics.all_inputs import check_settings
from jacobian_core.request.identity import Identity, run_identity


def describe_request(config: RunConfig, artifact: Path, digest: str, shards: Sequence[Shard]) -> tuple[Identity, int]:
    """The identity of a request over these shards, and the layer that it analyses.

    `artifact` is the folder of the fetched SAE pair, `digest` its digest. Raises ArtifactError and ModelError for what
    can't be read, ConfigError for settings that do not fit the pair.
    """
    pair = describe_pair(artifact)
    layer = pair.layer if config.model.layer is None else config.model.layer
    weights = model_weights_of(artifact) if config.model.weights == "artifact" else None
    model: dict[str, Any] = {
        "layer": layer,
        "files": model_digest(config.model, weights),
        "tokenizer": load_tokenizer(config.model).digest,
    }
    facts: dict[str, Any] = {
        "digest": digest, "n_in_latents": pair.n_in_latents, "n_out_latents": pair.n_out_latents,
    }  # fmt: skip
    if pair.transcoder:
        check_transcoder_settings(config)
        facts["kind"] = "transcoder"
    if pair.parts:
        # Where a part is from does not determine the data: two places of one SAE are the same run.
        facts["parts"] = {
            side: {"digest": part.digest, "norm_factor": part.norm_factor} for side, part in pair.parts.items()
        }
    check_settings(config, pair.n_out_latents, pair.n_in_latents)
    return run_identity(config, facts, model, shards), layer
