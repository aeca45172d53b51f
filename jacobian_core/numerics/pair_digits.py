"""Exact sums of J, |J| and J^2 by pair that can be added to others: for runs that keep nothing else of their entries.

As in `pair_sums.py` a value is cut into integer digits; here they have 32 bits and stand at the same places for any
values, so sums of any two runs of tokens are added digit by digit. Few pairs of a group of blocks occur more than a few
times, so rows are sorted by cell (16 bits at a time, 10 ns a row) and added up run by run, where accumulators for every
cell would be looked at for each group again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from jacobian_core.numerics.pair_sums import PairRows, rounded

DIGIT_BITS = 32
"""A digit that was carried fits a signed integer of so many bits."""
_HALF = 1 << (DIGIT_BITS - 1)
_SORTED_BITS = 16
_SIGNIFICAND_BITS = 24
"""Of a float32."""

Digits = dict[int, Int64[np.ndarray, "_"]]
"""The digits of numbers by place: one at place p counts steps of 2^(DIGIT_BITS * p)."""
Cells = Int64[np.ndarray, "rows"]


@dataclass(frozen=True)
class PairDigits:
    """Sums of pairs by cell, or what is to be added to such. A row of one stored entry has it as its `value`, and 0 as
    digits: most pairs of a group of blocks are such. Of any other row `value` is the largest |J|.
    """

    cell: Cells
    n_coactive: Int64[np.ndarray, "rows"]
    n_stored: Int64[np.ndarray, "rows"]
    value: Float32[np.ndarray, "rows"]
    sum: Digits = field(default_factory=dict)
    sum_abs: Digits = field(default_factory=dict)
    sum_sq: Digits = field(default_factory=dict)


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
    """One row for each cell of these rows, in ascending order, its digits carried."""
    cell = _joined([part.cell for part in parts])
    order = _order(cell)
    cell = cell[order]
    starts = np.flatnonzero(np.append(True, cell[1:] != cell[:-1])[: len(cell)])
    rows = _Rows(
        parts, order, starts, np.diff(np.append(starts, len(cell))),
        _joined([part.n_stored for part in parts])[order], _joined([part.value for part in parts])[order],
    )  # fmt: skip
    n_stored, value = rows.total(rows.n_stored), rows.values()
    digits = [_carried(found) for found in rows.digits()]
    lone = n_stored == 1  # beside pairs that were only coactive; its digits are its value's
    if bool((lone & (rows.lengths > 1)).any()):
        value = np.where(lone, rows.total(np.where(rows.n_stored == 1, rows.value, 0)), value)
        digits = [{place: np.where(lone, 0, digit) for place, digit in each.items()} for each in digits]
    n_coactive = rows.total(_joined([part.n_coactive for part in parts])[order])
    return PairDigits(cell[starts], n_coactive, n_stored, value, *digits)


def _joined(columns: Sequence[Any]) -> Any:
    return np.concatenate(columns) if columns else np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Rows:
    """Rows of some parts in the order of their cells; a run of the same cell begins at each of `starts`."""

    parts: Sequence[PairDigits]
    order: Int64[np.ndarray, "rows"]
    starts: Int64[np.ndarray, "cells"]
    lengths: Int64[np.ndarray, "cells"]
    n_stored: Int64[np.ndarray, "rows"]
    value: Float32[np.ndarray, "rows"]

    def total(self, column: Any) -> Any:
        """The sum of each run."""
        return np.add.reduceat(column, self.starts) if len(self.starts) else column

    def values(self) -> Float32[np.ndarray, "cells"]:
        """The value of a run of one row, the largest |J| of a longer one."""
        if not len(self.starts):
            return self.value
        return np.where(self.lengths > 1, np.maximum.reduceat(np.abs(self.value), self.starts), self.value[self.starts])

    def digits(self) -> list[Digits]:
        """The digits of the runs' sums of J, |J| and J^2."""
        several = np.flatnonzero(np.repeat(self.lengths, self.lengths) > 1)
        plain = self.n_stored[several] == 1
        exact = self.value[several][plain].astype(np.float64)
        total = digits_of(exact)
        added = [total, {place: np.abs(digit) for place, digit in total.items()}, digits_of(np.square(exact))]
        kept = [[part.sum for part in self.parts], [part.sum_abs for part in self.parts],
                [part.sum_sq for part in self.parts]]  # fmt: skip
        return [self._summed(of_parts, more, several, plain) for of_parts, more in zip(kept, added, strict=True)]

    def _summed(
        self, of_parts: list[Digits], more: Digits, several: Int64[np.ndarray, "some"], plain: Bool[np.ndarray, "some"]
    ) -> Digits:
        """The digits of one sum; `more` is what the `plain` ones among the rows of longer runs add."""
        found: Digits = {}
        longer = self.lengths > 1
        starts = np.cumsum(self.lengths[longer]) - self.lengths[longer]
        for place in {place for part in of_parts for place in part} | set(more):
            digit = np.zeros(len(self.starts), np.int64)
            rows = more[place] if bool(plain.all()) and place in more else np.zeros(len(several), np.int64)
            if rows is not more.get(place) and place in more:
                rows[plain] = more[place]
            if any(place in part for part in of_parts):
                column = _joined([
                    part[place] if place in part else np.zeros(len(each.cell), np.int64)
                    for part, each in zip(of_parts, self.parts, strict=True)
                ])[self.order]  # fmt: skip
                rows = rows + column[several]
                digit[~longer] = column[self.starts[~longer]]
            if len(starts):
                digit[longer] = np.add.reduceat(rows, starts)
            found[place] = digit
        return found


def _order(cell: Cells) -> Int64[np.ndarray, "rows"]:
    """What sorts the cells, by one stable pass (a radix sort, in numpy) for each 16 bits of the largest."""
    order = np.argsort((cell & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(_SORTED_BITS, int(cell.max(initial=0)).bit_length(), _SORTED_BITS):
        order = order[np.argsort((cell[order] >> shift & 0xFFFF).astype(np.uint16), kind="stable")]
    return order


def _carried(digits: Digits) -> Digits:
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


def rounded_sums(pairs: PairDigits) -> PairRows:
    """The pairs that have a stored entry, each sum rounded to float64 once. The digits must be carried."""
    some = np.flatnonzero(pairs.n_stored)
    value = pairs.value[some].astype(np.float64)
    plain = pairs.n_stored[some] == 1

    def numbers(digits: Digits, of_plain: Float64[np.ndarray, "pairs"]) -> torch.Tensor:
        terms = [
            torch.from_numpy(digits[place][some].astype(np.float64)).mul_(2.0 ** (DIGIT_BITS * place))
            for place in sorted(digits, reverse=True)
        ]
        total = rounded(terms).numpy() if terms else np.zeros(len(some))
        return torch.from_numpy(np.where(plain, of_plain, total))

    cell, n_coactive, n_stored, largest = (
        torch.from_numpy(column[some]) for column in (pairs.cell, pairs.n_coactive, pairs.n_stored, np.abs(pairs.value))
    )
    return PairRows(
        cell, n_coactive, n_stored, numbers(pairs.sum, value), numbers(pairs.sum_abs, np.abs(value)),
        numbers(pairs.sum_sq, np.square(value)), largest,
    )  # fmt: skip
