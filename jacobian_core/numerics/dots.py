"""Dot products of a few pairs out of two sets of vectors, each added up in one order whatever else is asked for.

On a CPU the pairs are taken in the order of the weights, by torch's product at a sparse pattern: each row of the
weights is read once a call, where gathering copies it for each token (12 us instead of 35 for 100 latents of a token).
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.numerics.radix import ascending_order
from jacobian_core.numerics.scratch import scratch

_GATHERED_BYTES = 2 << 20


def dots(
    x: Float[Tensor, "tokens d"],
    weights: Float[Tensor, "n d"],
    token: Int64[Tensor, "pairs"],
    latent: Int64[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """`x[token] . weights[latent]` of each pair."""
    if x.device.type != "cpu" or not _has_pattern_product(x.dtype):
        return _gathered(x, weights, token, latent)
    order = torch.from_numpy(ascending_order(latent.numpy()))
    begins = np.zeros(len(weights) + 1, np.int64)
    np.cumsum(np.bincount(latent.numpy(), minlength=len(weights)), out=begins[1:])
    found = _at_pattern(weights, x, torch.from_numpy(begins), token[order])
    result = torch.empty_like(found)
    result[order] = found
    return result


def _at_pattern(
    rows: Float[Tensor, "n d"],
    columns: Float[Tensor, "tokens d"],
    begins: Int64[Tensor, "n_and_1"],
    column: Int64[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """`rows[r] . columns[c]` where row r of the pattern has a column c."""
    size = (len(rows), len(columns))
    empty = torch.zeros(len(column), dtype=rows.dtype)
    pattern = torch.sparse_csr_tensor(begins, column, empty, size=size, check_invariants=False)
    found: Tensor = torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=0.0)
    return found.values()


def _gathered(
    x: Float[Tensor, "tokens d"],
    weights: Float[Tensor, "n d"],
    token: Int64[Tensor, "pairs"],
    latent: Int64[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """The same by rows that are gathered, some at a time."""
    d = weights.shape[1]
    result = x.new_empty(len(token))
    step = max(1, _GATHERED_BYTES // (d * x.element_size()))
    for start in range(0, len(token), step):
        part = slice(start, start + step)
        rows = scratch("gathered weights", (len(latent[part]), d), x)
        torch.index_select(weights, 0, latent[part], out=rows)
        torch.sum(rows.mul_(x[token[part]]), -1, out=result[part])
    return result


@cache
def _has_pattern_product(dtype: torch.dtype) -> bool:
    """Whether torch has the product here, in this precision; its warning that sparse tensors are new is dropped."""
    one = torch.ones(1, 1, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _at_pattern(one, one, torch.tensor([0, 1]), torch.tensor([0])).item() == 1
        except (RuntimeError, NotImplementedError):
            return False
