"""What makes two requests the same run: the content that determines the data, and nothing about who computes it.

The run id is a hash over digests of the artifact, the model, the tokenizer and the shards, and over the settings that
change a value or its rounding. Where the lake is, which device computes and how files are encoded stay out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from jacobian_core.config import RunConfig
from jacobian_core.corpus.listing import Shard

Identity = dict[str, JsonValue]
_HEX_DIGITS = 12


def run_identity(
    config: RunConfig, artifact: Mapping[str, Any], model: Mapping[str, Any], shards: Sequence[Shard]
) -> Identity:
    """The identity of a request.

    Args:
        config: the request.
        artifact: digest and widths of the SAE pair.
        model: digests of the model and its tokenizer, and the layer.
        shards: the shards that are read, with their digests (or, where the hub has none, their commit's URL and size).
    """
    corpus = config.corpus.model_dump(mode="json", exclude={"source", "location", "revision", "shards"})
    corpus["shards"] = [{"name": s.name, "index": s.index, "content": shard_content(s)} for s in shards]
    return {
        "artifact": dict(artifact),
        "model": {**model, **config.model.model_dump(mode="json", exclude={"name", "revision", "layer"})},
        "corpus": corpus,
        "jacobian": _jacobian(config),
        "interventions": config.interventions.model_dump(mode="json"),
        "all_inputs": config.all_inputs.model_dump(mode="json", exclude={"max_memory_bytes"}),
        # Matrix shapes decide the order of floating-point sums, so the last bits of the data hang on these two.
        "batching": {
            "forward_batch_tokens": config.compute.forward_batch_tokens,
            "chunk_tokens": config.compute.chunk_tokens,
        },
    }


def _jacobian(config: RunConfig) -> dict[str, JsonValue]:
    """The settings of the Jacobian; what is usual and newer than some runs is left out, as these did not have it.

    Nor did these distinguish what is kept beside aggregates: what is 'latents' now was 'aggregates' then.
    """
    usual = {"precision": "float32", "keep": "entries"}
    left_out = {name for name, value in usual.items() if getattr(config.jacobian, name) == value}
    settings: dict[str, JsonValue] = config.jacobian.model_dump(mode="json", exclude=left_out)
    if not config.jacobian.keeps_entries:
        settings |= {"keep": "aggregates"} | ({} if config.jacobian.keeps_latents else {"keep_latents": False})
    return settings


def shard_content(shard: Shard) -> str:
    """What stands for a shard's bytes: their digest or, where the hub has none, the commit's URL and the size."""
    return shard.digest or f"{shard.url} {shard.size_bytes}"


def run_id(name: str, identity: Identity) -> str:
    """`<name>-<12 hexadecimal digits>` of the identity's SHA-256."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]}"
