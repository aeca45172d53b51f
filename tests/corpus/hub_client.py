"""Cuts corpora in a process of its own, as the hub's client reads its endpoint once, when it is imported.

Reads a JSON list of {"corpus": ..., "model": ...} from standard input; writes one JSON result for each.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from jacobian_core.config import CorpusConfig, ModelConfig
from jacobian_core.corpus.listing import list_shards
from jacobian_core.corpus.tokenizer import load_tokenizer
from jacobian_core.corpus.tokens import cut_blocks
from jacobian_core.errors import JacobianFlowsError


def cut(corpus: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The shards and blocks of a corpus, or the error that came instead of the rest."""
    result: dict[str, Any] = {"shards": [], "blocks": [], "error": None}
    try:
        tokenizer = load_tokenizer(ModelConfig(**model))
        config = CorpusConfig(**corpus)
        for shard in list_shards(config):
            result["shards"].append([shard.name, shard.index, shard.url, shard.size_bytes, shard.digest])
            for block, cursor, skips in cut_blocks(shard, tokenizer, config):
                content = block.vocab_ids.tobytes() + block.token_ids.tobytes() + block.row_offsets.tobytes()
                content += json.dumps(block.documents.to_pylist()).encode()
                digest = hashlib.sha256(content).hexdigest()
                result["blocks"].append([block.block_id, digest, cursor.row, cursor.number, skips.broken])
    except JacobianFlowsError as error:
        result["error"] = f"{type(error).__name__}: {error}"
    return result


if __name__ == "__main__":
    for request in json.load(sys.stdin):
        sys.stdout.write(json.dumps(cut(**request)) + "\n")
