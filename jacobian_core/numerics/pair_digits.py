"""Exact sums of J, |J| and J^2 by pair that can be added to others: for runs that keep nothing else of their entries.

As in `pair_sums.py` a value is cut into integer digits; here they have 32 bits and stand at the same places for any
values, so sums of any two runs of tokens are added digit by digit. Few pairs of a group of blocks occur more than a few
times, so rows are sorted by cell (16 bits at a time, 10 ns a row) and added up run by run, where accumulators for every
cell would be looked at for each group again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from jacobian_core.numerics.masses import changes
from jacobian_core.numerics.pair_sums import PairRows, rounded
from jacobian_core.numerics.radix import ascending_order

DIGIT_BITS = 32
"""A digit that was carried fits a signed integer of so many bits."""
_HALF = 1 << (DIGIT_BITS - 1)
_SIGNIFICAND_BITS = 24
"""Of a float32."""

Digits = dict[int, Int64[np.ndarray, "_"]]
"""The digits of numbers by place: one at place p counts steps of 2^(DIGIT_BITS * p)."""
Cells = Int64[np.ndarray, "rows"]


@dataclass(frozen=True)
class PairDigits:
    """Sums of pairs by cell, or what is to be added to such. The first rows, as many as there are digits, are sums of
    several entries, their `value` the largest |J|. Most pairs of a group of blocks have a single entry: the other rows
    have it as their `value`, or none.
    """

    cell: Cells
    n_coactive: Int64[np.ndarray, "rows"]
    n_stored: Int64[np.ndarray, "rows"]
    value: Float32[np.ndarray, "rows"]
    several: int = 0
    digits: tuple[Digits, Digits, Digits] = ({}, {}, {})
    """Of the sums of J, |J| and J^2."""


def of_entries(cell: Cells, value: Float32[np.ndarray, "rows"]) -> PairDigits:
    """Stored entries."""
    one = np.ones(len(cell), np.int64)
    return PairDigits(cell, one, one, value)


def of_dropped(coactive: Int64[np.ndarray, "coactive"], stored: Int64[np.ndarray, "stored"]) -> PairDigits:
    """What to add where only the `stored` ones of the `coactive` cells have an entry: the others are counted too."""
    rows = len(coactive) + len(stored)
    one = np.concatenate([np.ones(len(coactive), np.int64), -np.ones(len(stored), np.int64)])
    cell = np.concatenate([coactive, stored])
    return PairDigits(cell, one, np.zeros(rows, np.int64), np.zeros(rows, np.float32))


def digits_of(value: Float64[np.ndarray, "rows"]) -> Digits:
    """The digits of numbers, each of the number's sign; none at places where all are 0."""
    largest = float(np.abs(value).max(initial=0.0))
    digits: Digits = {}
    if not largest:
        return digits
    place = math.ceil(math.frexp(largest)[1] / DIGIT_BITS) - 1
    rest = value * 2.0 ** (-DIGIT_BITS * place)
    while rest.any():
        whole = np.trunc(rest)
        digits[place] = whole.astype(np.int64)
        rest = (rest - whole) * 2.0**DIGIT_BITS  # exact: both are parts of one significand
        place -= 1
    return digits


def lowest_place(smallest: float, square: bool) -> int:
    """The last place of numbers, or their squares, of which none but 0 is smaller."""
    last_bit = math.frexp(smallest)[1] - _SIGNIFICAND_BITS
    return (2 * last_bit if square else last_bit) // DIGIT_BITS


def highest_place(tokens: int, largest: float, square: bool) -> int:
    """The first place of sums over so many tokens."""
    exponent = math.frexp(largest)[1]
    bits = (2 * exponent if square else exponent) + math.ceil(math.log2(max(tokens, 1))) + 1
    return math.ceil(bits / DIGIT_BITS) - 1


def added_up(parts: Sequence[PairDigits]) -> PairDigits:
    """One row for each cell of these rows, its digits carried: sums of several entries, then others, by cell."""
    cell = _joined(parts, "cell")
    order = ascending_order(cell)
    cell = cell[order]
    starts = np.flatnonzero(changes(cell))
    lengths = np.diff(np.append(starts, len(cell)))
    n_coactive, n_stored, value = (_joined(parts, name)[order] for name in ("n_coactive", "n_stored", "value"))
    bring = _Rows(parts, order, np.repeat(np.arange(len(starts)), lengths), n_stored, value)
    of_cells, digits = bring.summed(lengths)
    n_coactive, total, single = (_totals(column, starts) for column in (n_coactive, n_stored, _single(n_stored, value)))
    several = total[of_cells] > 1
    first = of_cells[several]
    value = np.where(total == 1, single, 0).astype(np.float32)
    value[first] = np.maximum.reduceat(np.abs(bring.value), starts)[first] if len(starts) else 0
    rest = np.flatnonzero(total <= 1)
    rows = np.concatenate([first, rest])
    kept = [carried({place: digit[several] for place, digit in each.items()}) for each in digits]
    return PairDigits(
        cell[starts[rows]], n_coactive[rows], total[rows], value[rows], len(first), (kept[0], kept[1], kept[2])
    )


def _joined(parts: Sequence[PairDigits], name: str) -> Any:
    """A column of all parts: the rows that are sums of several entries first."""
    columns = [(getattr(part, name), part.several) for part in parts]
    return np.concatenate([*(column[:n] for column, n in columns), *(column[n:] for column, n in columns)])


def _totals(column: Any, starts: Int64[np.ndarray, "runs"]) -> Any:
    return np.add.reduceat(column, starts) if len(starts) else column


def _single(n_stored: Int64[np.ndarray, "rows"], value: Float32[np.ndarray, "rows"]) -> Float64[np.ndarray, "rows"]:
    """The values of rows of one entry, 0 of others: a cell with one entry in all has it as their sum."""
    return np.where(n_stored == 1, value, 0).astype(np.float64)


@dataclass(frozen=True)
class _Rows:
    """Rows of some parts in the order of their cells, each with the number of its cell."""

    parts: Sequence[PairDigits]
    order: Int64[np.ndarray, "rows"]
    number: Int64[np.ndarray, "rows"]
    n_stored: Int64[np.ndarray, "rows"]
    value: Float32[np.ndarray, "rows"]

    def summed(self, lengths: Int64[np.ndarray, "cells"]) -> tuple[Int64[np.ndarray, "sums"], list[Digits]]:
        """The cells that have digits, by number, and these: of rows that are sums, and of entries not alone there."""
        has_digits = self.order < sum(part.several for part in self.parts)
        rows = np.flatnonzero(has_digits | ((self.n_stored == 1) & (lengths > 1)[self.number]))
        number, is_sum = self.number[rows], has_digits[rows]
        starts = np.flatnonzero(changes(number))
        exact = self.value[rows[~is_sum]].astype(np.float64)
        total = digits_of(exact)
        entries = [total, {place: np.abs(digit) for place, digit in total.items()}, digits_of(np.square(exact))]
        source = self.order[rows[is_sum]]
        return number[starts], [
            self._added(of, more, (is_sum, source, starts)) for of, more in zip(range(3), entries, strict=True)
        ]

    def _added(self, of: int, entries: Digits, rows: tuple[Any, Any, Any]) -> Digits:
        """One kind of sum: digits of rows that are sums, from `source`, and of those that are entries, run by run."""
        is_sum, source, starts = rows
        found: Digits = {}
        for place in {place for part in self.parts for place in part.digits[of]} | set(entries):
            digit = np.zeros(len(is_sum), np.int64)
            if len(source):
                zero = [np.zeros(0 if place in part.digits[of] else part.several, np.int64) for part in self.parts]
                columns = [part.digits[of].get(place, none) for part, none in zip(self.parts, zero, strict=True)]
                digit[is_sum] = np.concatenate(columns)[source]
            if place in entries:
                digit[~is_sum] = entries[place]
            found[place] = _totals(digit, starts)
        return found


def carried(digits: Digits) -> Digits:
    """The same numbers with digits between -2^31 and 2^31; none where all are 0."""
    found: Digits = {}
    place, carry = min(digits, default=0), None
    while carry is not None or any(left >= place for left in digits):
        digit = digits.get(place)
        digit = carry if digit is None else digit if carry is None else digit + carry
        carry = None
        if digit is not None:
            above = (digit + _HALF) >> DIGIT_BITS
            found[place] = digit - (above << DIGIT_BITS)
            carry = above if above.any() else None
        place += 1
    return {place: digit for place, digit in found.items() if digit.any()}


def rounded_digits(digits: Digits, rows: int) -> Float64[np.ndarray, "rows"]:
    """Numbers from their digits, which must be carried, each rounded to float64 once."""
    terms = [digits[place] * 2.0 ** (DIGIT_BITS * place) for place in sorted(digits, reverse=True)]
    return rounded(terms) if terms else np.zeros(rows)


def rounded_sums(pairs: PairDigits) -> PairRows:
    """The pairs that have a stored entry in the order of their cells, each sum rounded to float64 once.

    The digits must be carried.
    """
    some = np.flatnonzero(pairs.n_stored)  # all that are sums of several, and more
    some = some[np.argsort(pairs.cell[some], kind="stable")]
    alone = pairs.value[pairs.several :].astype(np.float64) + 0.0  # -0.0 is a sum of nothing too

    def numbers(digits: Digits, of_entries: Float64[np.ndarray, "alone"]) -> Float64[np.ndarray, "pairs"]:
        found: Float64[np.ndarray, "pairs"] = np.concatenate([rounded_digits(digits, pairs.several), of_entries])[some]
        return found

    of_sum, of_abs, of_sq = pairs.digits
    return PairRows(
        pairs.cell[some], pairs.n_coactive[some], pairs.n_stored[some], numbers(of_sum, alone),
        numbers(of_abs, np.abs(alone)), numbers(of_sq, np.square(alone)), np.abs(pairs.value[some]),
    )  # fmt: skip
