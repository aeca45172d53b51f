"""Exact sums of J, |J| and J^2 for every cell of a strip of the (out_latent x in_latent) matrix.

A value is cut into integer digits, each a number of steps of a unit 2^bits times finer than the one before, and each
digit is added on its own, until nothing is left of the value. Integers add up to the same whatever their order, and the
sum is rounded to float64 once, at its end: so any grouping of blocks, workers or threads, any units, and sums of sums
give the same bits. Nearly every value ends with its second digit; memory of the others is taken where one needs it.

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
_MOST_BITS = 48
"""Digits are at most this wide, so that a balanced one is a float64 exactly."""
_LONG = 1 << 52
"""First digits from here on are cut in two before they become float64s."""
_SMALLEST = 1e-30
"""What the largest |J| of a run counts as at least, so that squares of units stay finite."""


@dataclass(frozen=True)
class Units:
    """How values become digits: their bits, and the exponents of two that |J| and J^2 stay below."""

    bits: int
    value: int
    square: int


def units_of(tokens: int, largest: float) -> Units:
    """Units in which `tokens` values of at most `largest` can be added before a digit is full."""
    bits = min(_MOST_BITS, _LIMB_BITS - math.ceil(math.log2(max(tokens, 1))))
    exponent = math.ceil(math.log2(max(largest, _SMALLEST)))
    return Units(bits, exponent, 2 * exponent)


class _Sum:
    """One exact sum a cell: a tensor for each digit, the largest first."""

    def __init__(self, cells: int, bits: int, exponent: int) -> None:
        self._cells, self.bits, self.exponent = cells, bits, exponent
        self._digits: list[Int64[Tensor, "all"]] = []

    def digit(self, number: int) -> Int64[Tensor, "all"]:
        """The digit of every cell, 0 where it was not used yet."""
        while len(self._digits) <= number:
            self._digits.append(torch.zeros(self._cells, dtype=torch.int64))
        return self._digits[number]

    def _take(self, cell: Int64[Tensor, "cells"]) -> list[Int64[Tensor, "cells"]]:
        """Balanced digits of some cells, the largest first; they are 0 afterwards."""
        digits = [_taken(digit, cell) for digit in (self._digits or [self.digit(0)])]
        for number in range(len(digits) - 1, 0, -1):
            _carry(digits[number - 1], digits[number], self.bits)
        return digits

    def take(self, cell: Int64[Tensor, "cells"]) -> Float64[Tensor, "cells"]:
        """The sums of some cells, each rounded to float64 once; they are 0 afterwards."""
        digits, unit = self._take(cell), 2.0 ** (self.exponent - self.bits)
        if len(cell) and max(map(abs, torch.aminmax(digits[0]))) >= _LONG:
            digits, unit = [torch.zeros_like(digits[0]), *digits], unit * 2.0**self.bits
            _carry(digits[0], digits[1], self.bits)
        return rounded([digit.double().mul_(unit * 2.0 ** (-self.bits * n)) for n, digit in enumerate(digits)])


def _add(
    cell: Int64[Tensor, "entries"], value: Float64[Tensor, "entries"], into: _Sum, magnitudes: _Sum | None = None
) -> None:
    """Add values to a sum and their magnitudes, which have the same digits, to another one of the same units."""
    steps, number = value * 2.0 ** (into.bits - into.exponent), 0
    while len(cell):
        whole = torch.trunc(steps)
        digit = whole.long()
        into.digit(number).scatter_add_(0, cell, digit)
        if magnitudes is not None:
            magnitudes.digit(number).scatter_add_(0, cell, digit.abs_())
        steps = steps.sub_(whole)  # exact: both are parts of one significand
        some = torch.nonzero(steps).flatten()
        cell, steps, number = cell[some], steps[some].mul_(2.0**into.bits), number + 1


def _carry(into: Int64[Tensor, "cells"], digit: Int64[Tensor, "cells"], bits: int) -> None:
    """Bring a digit to between -2^(bits - 1) and 2^(bits - 1), the rest to the one before it."""
    carried = (digit + (1 << (bits - 1))) >> bits
    into += carried
    digit -= carried << bits


def rounded(terms: list[Float64[Tensor, "cells"]]) -> Float64[Tensor, "cells"]:
    """Sums of terms to the nearest float64, ties to even. Each term is at most half of the unit of those before it."""
    total, *others = terms
    error, rest = torch.zeros_like(total), torch.zeros_like(total)
    for number, term in enumerate(others):
        if number == 0:
            total, error = _two_sum(total, term)
            continue
        some = torch.nonzero(term).flatten()
        if not len(some):
            continue
        t, e, r, x = total[some], error[some], rest[some], term[some]
        exact = e == 0  # else the total is decided, but for ties
        added, lost = _two_sum(t, x)
        rest[some] = torch.where(exact | (r != 0), r, x)
        total[some], error[some] = torch.where(exact, added, t), torch.where(exact, lost, e)
    # Half-way cases were rounded to even as if nothing followed; what follows decides them.
    some = torch.nonzero(error * rest > 0).flatten()
    if len(some):
        twice = 2 * error[some]
        further = total[some] + twice
        total[some] = torch.where(further - total[some] == twice, further, total[some])
    return total


def _two_sum(
    large: Float64[Tensor, "cells"], small: Float64[Tensor, "cells"]
) -> tuple[Float64[Tensor, "cells"], Float64[Tensor, "cells"]]:
    """The rounded sum, and exactly what was lost, where `large` is 0 or the larger of the two."""
    total = large + small
    return total, small - (total - large)


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
        _add(cell, exact, self._sum, self._sum_abs)
        _add(cell, exact.square(), self._sum_sq)
        self._n_stored.scatter_add_(0, cell, torch.ones_like(cell))
        self._max_abs.scatter_reduce_(0, cell, magnitude, "amax")

    def add_coactive(self, cell: Int64[Tensor, "coactive"], stored: Int64[Tensor, "entries"]) -> None:
        """Say that these cells were coactive where only the `stored` ones of them have an entry."""
        if self._n_dropped is None:
            self._n_dropped = torch.zeros_like(self._n_stored)
        self._n_dropped.scatter_add_(0, cell, torch.ones_like(cell))
        self._n_dropped.scatter_add_(0, stored, -torch.ones_like(stored))

    def take(self) -> PairRows:
        """The pairs with a stored entry; everything is 0 afterwards."""
        cell = torch.nonzero(self._n_stored).flatten()
        n_stored, largest = _taken(self._n_stored, cell), _taken(self._max_abs, cell)
        n_coactive = n_stored if self._n_dropped is None else n_stored + self._n_dropped[cell]
        if self._n_dropped is not None:
            self._n_dropped.zero_()
        return PairRows(
            cell, n_coactive, n_stored, self._sum.take(cell), self._sum_abs.take(cell), self._sum_sq.take(cell), largest
        )
