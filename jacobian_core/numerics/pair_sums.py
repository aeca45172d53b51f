"""Exact sums of J, |J| and J^2 of pairs whose entries are neighbours, each rounded to float64 once.

One or two entries need no more than float64's own rounding. Of three or more, values are cut into integer digits, each
a number of steps of a unit 2^bits times finer than the one before, and each digit is added on its own, until nothing is
left of any value. Integers add up to the same whatever their order and unit, and the sum of the digits is rounded at
its end: so any grouping of blocks, workers or threads, and sums of sums (`pair_digits.py`) give the same bits. Running
sums give those of any neighbours: 2 ns an entry and digit, where a hash table takes 250.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from jacobian_core.numerics.masses import added, added_some, changes

_EXACT_BITS = 52
"""A sum of digits has no more, so that it is a float64 exactly, and twice as large one too."""
_FEW = 8
"""Digits of less than one in so many values are added one by one."""


@dataclass(frozen=True)
class PairRows:
    """Sums of the pairs that have a stored entry, in ascending order of their cell."""

    cell: Shaped[np.ndarray, "pairs"]
    n_coactive: Int64[np.ndarray, "pairs"]
    n_stored: Int64[np.ndarray, "pairs"]
    sum: Float64[np.ndarray, "pairs"]
    sum_abs: Float64[np.ndarray, "pairs"]
    sum_sq: Float64[np.ndarray, "pairs"]
    max_abs: Float32[np.ndarray, "pairs"]


def together(parts: Sequence[PairRows]) -> PairRows:
    """All pairs of several parts, given in the order of their cells; of none, no pairs."""
    parts = parts or [sums_of_neighbours(np.zeros(0, np.int32), np.zeros(0, np.float32))]
    columns = [np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(PairRows)]
    return PairRows(*columns)


def sums_of_neighbours(
    cell: Shaped[np.ndarray, "entries"],
    value: Float32[np.ndarray, "entries"],
    n_coactive: Shaped[np.ndarray, "entries"] | None = None,
) -> PairRows:
    """The sums of entries in ascending order of their cells; `n_coactive` is that of each one's pair, if it is not
    the number of its entries."""
    starts = np.flatnonzero(changes(cell))
    n_stored = np.diff(starts, append=len(cell))
    largest = np.maximum.reduceat(np.abs(value), starts) if len(starts) else value
    exact = value.astype(np.float64)
    total = exact[starts] + 0.0  # -0.0 is a sum of nothing too
    magnitude, square = np.abs(total), np.square(total)
    two = np.flatnonzero(n_stored == 2)
    second = exact[starts[two] + 1]
    total[two] += second
    magnitude[two] += np.abs(second)
    square[two] += np.square(second)
    several = n_stored > 2
    more = np.flatnonzero(several)
    if len(more):
        of_pairs = exact[np.repeat(several, n_stored)]
        inner = np.cumsum(n_stored[more]) - n_stored[more]
        total[more], magnitude[more] = exact_sums(of_pairs, inner, magnitudes=True)
        (square[more],) = exact_sums(np.square(of_pairs), inner)
    coactive = n_stored if n_coactive is None else n_coactive[starts].astype(np.int64)
    return PairRows(cell[starts], coactive, n_stored, total, magnitude, square, largest)


def exact_sums(
    values: Float64[np.ndarray, "values"], starts: Int64[np.ndarray, "sums"], magnitudes: bool = False
) -> list[Float64[np.ndarray, "sums"]]:
    """Sums of neighbours, all values from one start to the next, rounded once; then, if asked for, of magnitudes."""
    longest = int(np.diff(starts, append=len(values)).max(initial=1))
    units = Units.of(longest, float(np.abs(values).max(initial=0.0)))
    return [_joined(digits, units) for digits in _digits(values, starts, units, magnitudes)]


@dataclass(frozen=True)
class Units:
    """The first digit counts steps of 2^(exponent - bits), each further one steps 2^bits times finer."""

    bits: int
    exponent: int

    @classmethod
    def of(cls, count: int, largest: float) -> Units:
        """Units in which so many values of at most `largest` can be added before a digit is full."""
        return cls(_EXACT_BITS - math.ceil(math.log2(max(count, 1))), math.frexp(largest)[1])


_Digits = list[Int64[np.ndarray, "sums"]]


def _digits(
    values: Float64[np.ndarray, "values"], starts: Int64[np.ndarray, "sums"], units: Units, magnitudes: bool = False
) -> list[_Digits]:
    """The digits of the sums of neighbours, the largest first; then, if asked for, those of magnitudes."""
    steps, at = _scaled(values, units.bits - units.exponent), None
    found: list[_Digits] = [[] for _ in range(1 + magnitudes)]
    while len(steps):
        whole = np.trunc(steps)
        digit = whole.astype(np.int64)
        for digits, number in zip(found, (digit, np.abs(digit)), strict=False):
            digits.append(added(number, starts) if at is None else added_some(at, number, starts))
        steps -= whole  # exact: both are parts of one significand
        some = np.flatnonzero(steps)
        if at is not None or len(some) * _FEW < len(steps):
            at, steps = some if at is None else at[some], steps[some]
        steps *= 2.0**units.bits
    return found


class SumsInParts:
    """Sums of a few pairs whose entries are more than can be sorted at once: by cell, 0 to `cells` - 1."""

    def __init__(self, cells: int, tokens: int, largest: float) -> None:
        self._n_stored, self._largest = np.zeros(cells, np.int64), np.zeros(cells, np.float32)
        self._units = (Units.of(tokens, largest), Units.of(tokens, largest * largest))
        self._sums: list[_Digits] = [[] for _ in range(3)]

    def add(self, cell: Shaped[np.ndarray, "entries"], value: Float32[np.ndarray, "entries"]) -> None:
        """Add entries in ascending order of their cells."""
        starts, exact = np.flatnonzero(changes(cell)), value.astype(np.float64)
        if not len(starts):
            return
        at = cell[starts]
        self._n_stored[at] += np.diff(starts, append=len(cell))
        self._largest[at] = np.maximum(self._largest[at], np.maximum.reduceat(np.abs(value), starts))
        found = _digits(exact, starts, self._units[0], magnitudes=True)
        found += _digits(np.square(exact), starts, self._units[1])
        for sums, digits in zip(self._sums, found, strict=True):
            sums.extend(np.zeros_like(self._n_stored) for _ in range(len(digits) - len(sums)))
            for total, digit in zip(sums, digits, strict=False):
                total[at] += digit

    def sums(self, n_coactive: Int64[np.ndarray, "cells"] | None = None) -> PairRows:
        """The pairs with an entry; `n_coactive` by cell, if it is not the number of entries."""
        cell = np.flatnonzero(self._n_stored)
        of_value, of_square = self._units
        total, magnitude, square = (
            _joined([digit[cell] for digit in digits], units)
            for digits, units in zip(self._sums, (of_value, of_value, of_square), strict=True)
        )
        n_stored = self._n_stored[cell]
        coactive = n_stored if n_coactive is None else n_coactive[cell]
        return PairRows(cell, coactive, n_stored, total, magnitude, square, self._largest[cell])


def _scaled(values: Float64[np.ndarray, "values"], exponent: int) -> Float64[np.ndarray, "values"]:
    """Values times 2^exponent, which may itself be too large for a float64."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


def _joined(digits: _Digits, units: Units) -> Float64[np.ndarray, "sums"]:
    """Numbers from their digits, rounded once."""
    for number in range(len(digits) - 1, 0, -1):
        _carry(digits[number - 1], digits[number], units.bits)
    unit = units.exponent - units.bits
    return rounded([_scaled(digit.astype(np.float64), unit - units.bits * n) for n, digit in enumerate(digits)])


def _carry(into: Int64[np.ndarray, "sums"], digit: Int64[np.ndarray, "sums"], bits: int) -> None:
    """Bring a digit to between -2^(bits - 1) and 2^(bits - 1), the rest to the one before it."""
    carried = (digit + (1 << (bits - 1))) >> bits
    into += carried
    digit -= carried << bits


def rounded(terms: list[Float64[np.ndarray, "sums"]]) -> Float64[np.ndarray, "sums"]:
    """Sums of terms to the nearest float64, ties to even. Each term is at most half of the unit of those before it."""
    total, *others = terms
    error, rest = np.zeros_like(total), np.zeros_like(total)
    for number, term in enumerate(others):
        if number == 0:
            total, error = _two_sum(total, term)
            continue
        some = np.flatnonzero(term)
        if not len(some):
            continue
        t, e, r, x = total[some], error[some], rest[some], term[some]
        exact = e == 0  # else the total is decided, but for ties
        added_, lost = _two_sum(t, x)
        rest[some] = np.where(exact | (r != 0), r, x)
        total[some], error[some] = np.where(exact, added_, t), np.where(exact, lost, e)
    # Half-way cases were rounded to even as if nothing followed; what follows decides them.
    some = np.flatnonzero(error * rest > 0)
    if len(some):
        twice = 2 * error[some]
        further = total[some] + twice
        total[some] = np.where(further - total[some] == twice, further, total[some])
    return total


def _two_sum(
    large: Float64[np.ndarray, "sums"], small: Float64[np.ndarray, "sums"]
) -> tuple[Float64[np.ndarray, "sums"], Float64[np.ndarray, "sums"]]:
    """The rounded sum, and exactly what was lost, where `large` is 0 or the larger of the two."""
    total = large + small
    return total, small - (total - large)
