"""Exact sums of J, |J| and J^2 for every cell of a strip of the (out_latent x in_latent) matrix.

A value is cut into two integers, `high * 2^bits + low` steps of a unit that is a power of two, and each is added on its
own. Integers add up to the same whatever their order, so any grouping of blocks, workers or threads gives the same
bits. `bits` leaves room for every token of the run in each of the two; the unit is then 2^(2 bits) times finer than the
run's largest |J|: 1e-28 of it for 24,000 tokens, 1e-19 for 10^9, below what float32 can tell from rounding.

Entries arrive output latent by output latent, so what is written to at a time is a row of the strip, and stays in the
cache: 25 ns an entry for all sums on one core, where a hash table takes 250. The price: every cell of the strip is
looked at once at its end, used or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

_LIMB_BITS = 62
_SMALLEST = 1e-30
"""What the largest |J| of a run counts as at least, so that squares of units stay finite."""

BYTES_PER_CELL = 2 * 3 * 8 + 2 * 8 + 4
"""Memory of the accumulators."""


@dataclass(frozen=True)
class Units:
    """How values become integers: bits of the lower one, and the powers of two that J and J^2 are multiplied by."""

    bits: int
    value: float
    square: float


def units_of(tokens: int, largest: float) -> Units:
    """Units in which the sums over `tokens` values of at most `largest` fit; as `sql/marts/pair_stats.sql` has them."""
    bits = _LIMB_BITS - math.ceil(math.log2(max(tokens, 1)))
    exponent = math.ceil(math.log2(max(largest, _SMALLEST)))
    return Units(bits, 2.0 ** (2 * bits - exponent), 2.0 ** (2 * bits - 2 * exponent))


class _Sum:
    """One exact sum a cell."""

    def __init__(self, cells: int, bits: int, unit: float) -> None:
        self._high, self._low = torch.zeros(cells, dtype=torch.int64), torch.zeros(cells, dtype=torch.int64)
        self._bits, self._unit = bits, unit

    def add(self, cell: Int64[Tensor, "entries"], value: Float64[Tensor, "entries"]) -> None:
        steps = value * self._unit
        high = torch.trunc(steps * 2.0**-self._bits)
        low = (steps - high * 2.0**self._bits).round_()  # exact: both are parts of one significand
        self._high.scatter_add_(0, cell, high.long())
        some = torch.nonzero(low).flatten()  # a float32 near the largest has all of its digits in the higher one
        if len(some):
            self._low.scatter_add_(0, cell[some], low[some].long())

    def take(self, cells: Int64[Tensor, "cells"]) -> Float64[Tensor, "cells"]:
        """The sums, rounded to float64 once (or a second time, by half of the last digit); they are 0 afterwards."""
        high, low = _taken(self._high, cells), _taken(self._low, cells)
        carry = (low + (1 << (self._bits - 1))) >> self._bits  # to the nearest, so that what is left is small
        high, low = high + carry, low - (carry << self._bits)
        upper, lower = high >> 31, high & 0x7FFFFFFF
        rest = lower.double() * 2.0**self._bits + low.double()
        return (upper.double() * 2.0 ** (self._bits + 31) + rest) / self._unit


def _taken(values: Shaped[Tensor, "all"], cells: Int64[Tensor, "cells"]) -> Shaped[Tensor, "cells"]:
    """Some values, which are 0 afterwards."""
    found = values.index_select(0, cells)
    values.index_fill_(0, cells, 0)
    return found


@dataclass(frozen=True)
class PairRows:
    """The pairs of a strip that have a stored entry, in ascending order of their cell."""

    cell: Int64[Tensor, "pairs"]
    n_coactive: Int64[Tensor, "pairs"]
    n_stored: Int64[Tensor, "pairs"]
    sum: Float64[Tensor, "pairs"]
    sum_abs: Float64[Tensor, "pairs"]
    sum_sq: Float64[Tensor, "pairs"]
    max_abs: Float32[Tensor, "pairs"]


class StripSums:
    """Accumulators of a strip: cell = (out_latent - first) * width + in_latent. `add` takes entries in any order.

    Only cells that were used are set back for the next strip, so memory is touched for the first time once a run.
    """

    def __init__(self, cells: int, units: Units) -> None:
        self._sum, self._sum_abs = (_Sum(cells, units.bits, units.value) for _ in range(2))
        self._sum_sq = _Sum(cells, units.bits, units.square)
        self._n_stored = torch.zeros(cells, dtype=torch.int64)
        self._n_dropped: Int64[Tensor, "cells"] | None = None
        self._max_abs = torch.zeros(cells, dtype=torch.float32)

    def add(self, cell: Int64[Tensor, "entries"], value: Float32[Tensor, "entries"]) -> None:
        """Add stored entries."""
        exact, magnitude = value.double(), value.abs()
        self._sum.add(cell, exact)
        self._sum_abs.add(cell, magnitude.double())
        self._sum_sq.add(cell, exact.square())
        self._n_stored.scatter_add_(0, cell, torch.ones_like(cell))
        self._max_abs.scatter_reduce_(0, cell, magnitude, "amax")

    def add_coactive(self, cell: Int64[Tensor, "coactive"], stored: Int64[Tensor, "entries"]) -> None:
        """Say that these cells were coactive where only the `stored` ones of them have an entry."""
        if self._n_dropped is None:
            self._n_dropped = torch.zeros_like(self._n_stored)
        self._n_dropped.scatter_add_(0, cell, torch.ones_like(cell))
        self._n_dropped.scatter_add_(0, stored, -torch.ones_like(stored))

    def take(self) -> PairRows:
        """The pairs with a stored entry; everything is 0 afterwards.

        A sum of magnitudes is never below its largest term, not even where that is below the unit.
        """
        cell = torch.nonzero(self._n_stored).flatten()
        n_stored, largest = _taken(self._n_stored, cell), _taken(self._max_abs, cell)
        n_coactive = n_stored if self._n_dropped is None else n_stored + self._n_dropped[cell]
        if self._n_dropped is not None:
            self._n_dropped.zero_()
        return PairRows(
            cell, n_coactive, n_stored, self._sum.take(cell),
            torch.maximum(self._sum_abs.take(cell), largest.double()),
            torch.maximum(self._sum_sq.take(cell), largest.double().square()), largest,
        )  # fmt: skip
