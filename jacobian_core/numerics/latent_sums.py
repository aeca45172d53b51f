"""Exact sums of activations and margins by latent that can be added to others: for runs that keep no codes.

Numbers are cut into integer digits as in `pair_digits.py`. There are few latents and many tokens, so rows are counted
into accumulators, a digit at a time: exact, as a float64 holds the sum of 2^20 digits of 33 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped

from jacobian_core.numerics.pair_digits import Digits, carried, digits_of, rounded_digits

_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class LatentSums:
    """Sums by latent, or what is to be added to such; `key` is 2 * latent, and 1 more on the output side."""

    key: Int64[np.ndarray, "rows"]
    n_tokens: Int64[np.ndarray, "rows"]
    largest: Float32[np.ndarray, "rows"]
    activation: Digits
    margin: Digits

    @property
    def is_out(self) -> Bool[np.ndarray, "rows"]:
        """Whether a row is of the output side."""
        return (self.key & 1).astype(bool)

    @property
    def latent(self) -> Int64[np.ndarray, "rows"]:
        """The latents of the rows."""
        return self.key >> 1

    def sums(self) -> tuple[Float64[np.ndarray, "rows"], Float64[np.ndarray, "rows"]]:
        """The sums of activations and of margins, each rounded once. The digits must be carried."""
        rows = len(self.key)
        return rounded_digits(self.activation, rows), rounded_digits(self.margin, rows)


def of_codes(
    is_out: Bool[np.ndarray, "rows"],
    latent: Shaped[np.ndarray, "rows"],
    activation: Float32[np.ndarray, "rows"],
    margin: Float32[np.ndarray, "rows"],
) -> LatentSums:
    """Active latents of tokens, each a row of its own."""
    return LatentSums(
        latent.astype(np.int64) << 1 | is_out, np.ones(len(latent), np.int64), activation,
        digits_of(activation.astype(np.float64)), digits_of(margin.astype(np.float64)),
    )  # fmt: skip


def added_up(parts: Sequence[LatentSums]) -> LatentSums:
    """One row for each latent of these rows, by key, its digits carried."""
    key = np.concatenate([np.zeros(0, np.int64), *(part.key for part in parts)])
    present = np.flatnonzero(np.bincount(key))
    place_of = np.zeros(int(key.max(initial=0)) + 1, np.int64)
    place_of[present] = np.arange(len(present))
    row = place_of[key]
    largest = np.zeros(len(present), np.float32)
    np.maximum.at(largest, row, np.concatenate([np.zeros(0, np.float32), *(part.largest for part in parts)]))

    def total(columns: Sequence[Int64[np.ndarray, "_"]]) -> Int64[np.ndarray, "latents"]:
        return _totals(row, np.concatenate([np.zeros(0, np.int64), *columns]), len(present))

    def digits(of: Sequence[Digits]) -> Digits:
        none = [np.zeros(len(part.key), np.int64) for part in parts]
        places = {place for each in of for place in each}
        return carried({p: total([each.get(p, zero) for each, zero in zip(of, none, strict=True)]) for p in places})

    return LatentSums(
        present, total([part.n_tokens for part in parts]), largest, digits([part.activation for part in parts]),
        digits([part.margin for part in parts]),
    )  # fmt: skip


def _totals(row: Int64[np.ndarray, "rows"], column: Int64[np.ndarray, "rows"], rows: int) -> Int64[np.ndarray, "sums"]:
    """The sums of a column's numbers by row."""
    found = np.zeros(rows, np.int64)
    for start in range(0, len(row), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        found += np.bincount(row[some], column[some], rows).astype(np.int64)
    return found
