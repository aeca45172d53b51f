"""From the rows of a block to entries that can be added to sums (`numerics/pair_digits.py`), in any order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from jacobian_core.numerics.pair_digits import PairDigits, of_dropped, of_entries
from jacobian_core.pairs.rows import BlockRows, Codes, Rows


def entries_of(block: BlockRows, outs: range, n_in: int) -> Iterator[PairDigits]:
    """A block's entries of these output latents; cells begin with the first of them."""
    codes = block.codes() if block.facts.thresholded else None
    for rows in block.strip(outs):
        cell = cells_of(rows, outs.start, n_in)
        yield of_entries(cell, rows.value)
        if codes is not None:
            yield of_dropped(_coactive(rows, outs.start, n_in, codes), cell)


def _coactive(rows: Rows, first: int, n_in: int, codes: Codes) -> Int64[np.ndarray, "coactive"]:
    """The cells of all input latents that are active with these rows' output latents."""
    row_cell = (rows.out_latent.astype(np.int64) - first) * n_in
    cells: Int64[np.ndarray, "coactive"] = np.repeat(row_cell, codes.counts(rows.token)) + codes.of(rows.token)
    return cells


def cells_of(rows: Rows, first: int, n_in: int) -> Int64[np.ndarray, "entries"]:
    """The cell of each entry in a strip that begins with output latent `first`."""
    cells: Int64[np.ndarray, "entries"] = (
        np.repeat((rows.out_latent.astype(np.int64) - first) * n_in, rows.lengths) + rows.in_latent
    )
    return cells
