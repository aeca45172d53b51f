"""Tokenised blocks on disk, between the task that cuts them and the task that computes on them.

One Arrow IPC stream of one row, followed by its SHA-256: any Arrow reader opens the file (it stops at the stream's
end), and ours refuses one that is short or altered. A block is there whole or not at all.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, Shaped

from jacobian_core.contracts import DOCUMENTS
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.errors import LakeError
from jacobian_core.lake.files import read_bytes, write_atomic
from jacobian_core.lake.paths import LakePath

_ARRAYS = ("row_offsets", "vocab_ids", "token_ids")
_DIGEST_BYTES = hashlib.sha256().digest_size


def _schema() -> pa.Schema:
    documents: Any = DOCUMENTS.schema()
    return pa.schema(
        [
            pa.field("block_id", pa.string(), nullable=False),
            pa.field("row_offsets", pa.list_(pa.int64()), nullable=False),
            pa.field("vocab_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("token_ids", pa.list_(pa.int64()), nullable=False),
            pa.field("documents", pa.list_(pa.struct(list(documents))), nullable=False),
        ],
        metadata=documents.metadata,
    )


def save_block(block: TokenBlock, path: LakePath) -> None:
    """Write a block to `path`, replacing what is there; raises LakeError if it can't be written."""
    content = _encode(block)
    write_atomic(path, content + hashlib.sha256(content).digest())


def load_block(path: LakePath) -> TokenBlock:
    """The block that was saved at `path`; raises LakeError if the file is missing, short, altered or inconsistent."""
    content = read_bytes(path)
    if content is None:
        raise LakeError(f"staged block {path} is not there.", "Run again: it is cut anew.")
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise LakeError(f"staged block {path} is damaged: its checksum is wrong.", "Delete it and run again.")
    return _decode(body, path)


def _encode(block: TokenBlock) -> bytes:
    schema = _schema()
    documents = pa.array([block.documents.to_pylist()], schema.field("documents").type)
    arrays = [
        pa.array([block.block_id], pa.string()),
        *(_one_list(getattr(block, name)) for name in _ARRAYS),
        documents,
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return bytes(sink.getvalue())


def _one_list(values: Shaped[np.ndarray, "values"]) -> Any:
    """An array as a column with one row."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))


def _decode(body: bytes, path: LakePath) -> TokenBlock:
    with pa.ipc.open_stream(body) as reader:
        if not reader.schema.equals(_schema(), check_metadata=True):
            raise LakeError(f"staged block {path} was written by another version.", "Delete it and run again.")
        batch: Any = reader.read_next_batch()
    offsets, vocab_ids, token_ids = (batch.column(name).values.to_numpy() for name in _ARRAYS)
    problem = _inconsistency(offsets, len(vocab_ids), len(token_ids))
    if problem:
        raise LakeError(f"staged block {path} is inconsistent: {problem}.", "Delete it and run again.")
    documents = pa.Table.from_struct_array(batch.column("documents").values).cast(DOCUMENTS.schema())
    return TokenBlock(batch.column("block_id")[0].as_py(), offsets, vocab_ids, token_ids, documents)


def _inconsistency(offsets: Int64[np.ndarray, "rows_plus_1"], vocab_ids: int, token_ids: int) -> str:
    """What is wrong with the arrays of a block whose bytes are as written, '' if nothing."""
    if vocab_ids != token_ids:
        return f"{vocab_ids} vocab ids against {token_ids} token ids"
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != vocab_ids or (np.diff(offsets) <= 0).any():
        return "its row offsets do not cover its positions"
    return ""
