"""A block: the unit of work, and the rows of token ids that it is made of.

A block is kept flat: all its rows (contexts) one after another, with offsets. `token_ids` is -1 at positions that are
read by the model but never analysed (BOS). Both packings keep the analysed token ids in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64


@dataclass(frozen=True)
class TokenBlock:
    """A fixed list of documents of one shard, tokenised and packed into rows.

    `block_id` is '<shard index, 4 digits>-<number in the shard, 6 digits>'; `documents` has the `documents` contract.
    """

    block_id: str
    row_offsets: Int64[np.ndarray, "rows_plus_1"]
    vocab_ids: Int32[np.ndarray, "positions"]
    token_ids: Int64[np.ndarray, "positions"]
    documents: pa.Table

    @property
    def analysed(self) -> int:
        """Tokens of the block that are analysed."""
        return int((self.token_ids >= 0).sum())


def make_block_id(shard_index: int, number: int) -> str:
    """The id of the `number`-th block of a shard."""
    return f"{shard_index:04d}-{number:06d}"
