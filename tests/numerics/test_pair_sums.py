"""Sums of pairs are exact: they equal rational sums rounded once, whatever the units, the order and the grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from jacobian_core.numerics import pair_sums
from jacobian_core.numerics.pair_digits import (
    PairDigits,
    added_up,
    highest_place,
    lowest_place,
    of_dropped,
    of_entries,
    rounded_sums,
)
from jacobian_core.numerics.pair_sums import PairRows, SumsInParts, sums_of_neighbours, together

CELLS = 7


Values = tuple[np.ndarray, np.ndarray]


def _values(seed: int, count: int = 4000, spread: float = 8.0) -> Values:
    """Cells and values of many sizes, of which every other one nearly cancels the one before."""
    draw = np.random.default_rng(seed)
    values = (draw.standard_normal(count) * np.exp(spread * draw.standard_normal(count))).astype(np.float32)
    values[1::2] = -values[::2] * draw.choice(np.float32([1, 1 + 2**-23, 0.5]), count // 2)
    cell = np.repeat(draw.integers(0, CELLS, count // 2), 2)
    return cell, values


def _exact(cell: np.ndarray, value: np.ndarray, power: int, magnitude: bool = False) -> list[float]:
    """Rational sums of the cells that occur; Python rounds a fraction to the nearest float, ties to even."""
    totals: dict[int, Fraction] = {}
    for c, v in zip(cell.tolist(), value.tolist(), strict=True):
        totals[c] = totals.get(c, Fraction(0)) + (abs(Fraction(v)) if magnitude else Fraction(v) ** power)
    return [float(totals[c]) for c in sorted(totals)]


def _same(one: PairRows, other: PairRows) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(PairRows))


def _sorted(cell: np.ndarray, value: np.ndarray) -> Values:
    order = np.argsort(cell, kind="stable")
    return cell[order], value[order]


def _taken(cell: np.ndarray, value: np.ndarray) -> PairRows:
    return sums_of_neighbours(*_sorted(cell, value))


def _in_parts(cell: np.ndarray, value: np.ndarray, cuts: Sequence[int], tokens: int | None = None) -> PairRows:
    sums = SumsInParts(CELLS, tokens or len(cell), float(np.abs(value).max(initial=0)))
    for a, b in pairwise([0, *cuts, len(cell)]):
        sums.add(*_sorted(cell[a:b], value[a:b]))
    return sums.sums()


def _digits(cell: np.ndarray, value: np.ndarray) -> PairDigits:
    return added_up([of_entries(cell, value)])


@pytest.mark.parametrize("bits", [52, 44, 22])
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
@pytest.mark.parametrize("count", [4000, 30, 14, 2])
def test_equal_to_rational_sums_rounded_once(
    monkeypatch: pytest.MonkeyPatch, bits: int, spread: float, count: int
) -> None:
    """Digits of any width, pairs of one, two and hundreds of entries; at once or in parts."""
    monkeypatch.setattr(pair_sums, "_EXACT_BITS", bits)
    cell, value = _values(1, count, spread)
    rows = _taken(cell, value)
    assert rows.cell.tolist() == sorted(set(cell.tolist()))
    assert rows.n_stored.tolist() == rows.n_coactive.tolist() == [int((cell == c).sum()) for c in rows.cell]
    assert rows.max_abs.tolist() == [float(np.abs(value[cell == c]).max()) for c in rows.cell]
    assert rows.sum.tolist() == _exact(cell, value, 1)
    assert rows.sum_abs.tolist() == _exact(cell, value, 1, magnitude=True)
    assert rows.sum_sq.tolist() == _exact(cell, value, 2)
    for cuts in ((), (1,), (count // 3, count // 3, count // 2)):
        for tokens in (count, 100 * count):
            assert _same(_in_parts(cell, value, cuts, tokens), rows)


def test_a_digit_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: with the first digit alone sums are other numbers."""
    cell, value = _values(1, spread=12.0)
    rows = _taken(cell, value)
    real = pair_sums._joined
    monkeypatch.setattr(pair_sums, "_joined", lambda digits, units: real(digits[:1], units))
    assert not np.array_equal(_taken(cell, value).sum_sq, rows.sum_sq)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e6, 1e18])
def test_any_scale(scale: float) -> None:
    cell, value = _values(2, 600, spread=2.0)
    value = (value * np.float32(scale)).astype(np.float32)
    rows = _taken(cell, value)
    assert rows.sum.tolist() == _exact(cell, value, 1)
    assert rows.sum_sq.tolist() == _exact(cell, value, 2)
    assert _same(_in_parts(cell, value, (7,)), rows)


@pytest.mark.parametrize("tokens", [1, 2, 3, 1 << 20, (1 << 20) + 1])
@pytest.mark.parametrize("value", [0.75, -1.0, np.float32(1) - np.float32(2**-24)])
def test_the_largest_values_fit(tokens: int, value: float) -> None:
    """Every token of the run at the largest |J|, of either sign."""
    cell, values = np.zeros(tokens, np.int32), np.full(tokens, value, np.float32)
    exact = Fraction(float(np.float32(value)))
    for rows in (_taken(cell, values), _in_parts(cell, values, ())):
        found = rows.sum[0], rows.sum_abs[0], rows.sum_sq[0], rows.n_stored[0]
        assert found == (float(exact * tokens), float(abs(exact) * tokens), float(exact * exact * tokens), tokens)


def test_negative_zero_is_zero() -> None:
    """The same bytes whether a sum is of one entry or of several, and however it was made."""
    for count in (1, 2, 3):
        cell, value = np.zeros(count, np.int64), np.full(count, -0.0, np.float32)
        for rows in (_taken(cell, value), _in_parts(cell, value, ()), rounded_sums(_digits(cell, value))):
            assert not np.signbit([rows.sum, rows.sum_abs, rows.sum_sq, rows.max_abs]).any()


def test_coactive_counts_and_parts_of_pairs() -> None:
    """Counts that are given by entry; pairs of several parts side by side."""
    cell, value = np.array([1, 1, 4]), np.float32([0.5, 0.25, -1])
    rows = sums_of_neighbours(cell, value, np.array([5, 5, 9]))
    assert (rows.n_coactive.tolist(), rows.n_stored.tolist(), rows.sum.tolist()) == ([5, 9], [2, 1], [0.75, -1.0])
    parts = SumsInParts(CELLS, 3, 1.0)
    parts.add(cell, value)
    assert _same(parts.sums(np.array([0, 5, 0, 0, 9, 0, 2])), rows)
    assert _same(together([sums_of_neighbours(cell[:2], value[:2]), sums_of_neighbours(cell[2:], value[2:])]),
                 sums_of_neighbours(cell, value))  # fmt: skip
    assert len(together([]).cell) == 0


def test_ties_are_decided_by_what_follows() -> None:
    """1 + 2^-53 is half-way between two float64s: it goes to the even one unless something follows, however small."""
    for follows, expected in ((0.0, 1.0), (2.0**-120, 1 + 2.0**-52), (-(2.0**-120), 1.0)):
        for sign in (1.0, -1.0):
            values = np.float32([1.0, 2.0**-53, follows]) * np.float32(sign)
            cell = np.zeros(3, np.int64)
            assert _taken(cell, values).sum.tolist() == [sign * expected]
            assert rounded_sums(_digits(cell, values)).sum.tolist() == [sign * expected]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [10, 40, 4000])
def test_sums_of_sums_in_any_grouping(seed: int, count: int) -> None:
    """Cut at random and added up in several levels: the bits of sums of all entries."""
    cell, value = _values(seed, count, spread=10.0)
    whole = _taken(cell, value)
    cuts = sorted(np.random.default_rng(seed).integers(1, len(cell), 6).tolist())
    parts = [_digits(cell[a:b], value[a:b]) for a, b in pairwise([0, *cuts, len(cell)]) if b > a]
    for groups in ([parts], [parts[:2], parts[2:]], [[part] for part in reversed(parts)]):
        assert _same(rounded_sums(added_up([added_up(group) for group in groups])), whole)
    twice = np.concatenate([cell[: cuts[0]], cell]), np.concatenate([value[: cuts[0]], value])
    beside = rounded_sums(added_up([parts[0], of_entries(cell, value)]))  # sums and single entries, side by side
    assert _same(beside, _taken(*twice))


def test_a_lost_digit_is_noticed() -> None:
    """The sibling: without its second digit a sum is another number."""
    cell, value = _values(1, spread=12.0)
    part = _digits(cell, value)
    total, magnitude, square = part.digits
    assert len(square) > 3
    lost = max(square) - 1
    cut = replace(part, digits=(total, magnitude, {p: d for p, d in square.items() if p != lost}))
    assert not np.array_equal(rounded_sums(cut).sum_sq, rounded_sums(part).sum_sq)
    assert np.array_equal(rounded_sums(cut).sum, rounded_sums(part).sum)


def test_digits_stay_where_files_have_columns() -> None:
    """After additions each digit fits 32 bits, between the places that are known from the sizes of the values."""
    for largest in (1e-20, 0.99, 1.0, 3e5):
        value = np.float32([largest, -largest / 3, 1e-7 * largest, largest, largest])
        part = _digits(np.zeros(5, np.int64), value)
        tokens = 5
        for _ in range(40):
            part, tokens = added_up([part, part, part]), 3 * tokens
        for digits, square in zip(part.digits, (False, False, True), strict=True):
            assert all(-(2**31) <= int(d.min()) <= int(d.max()) < 2**31 for d in digits.values())
            low, high = lowest_place(float(np.abs(value).min()), square), highest_place(tokens, float(value[0]), square)
            assert low <= min(digits) <= max(digits) <= high
        exact = [Fraction(v) * 3**40 for v in value.tolist()]
        assert rounded_sums(part).sum.tolist() == [float(sum(exact))]
        assert rounded_sums(part).sum_sq.tolist() == [float(sum(v * v / 3**40 for v in exact))]


def test_pairs_that_are_only_coactive_are_kept_for_other_sums() -> None:
    """A pair whose entry was dropped here may have one elsewhere: its tokens count then."""
    at, one = np.array([2]), np.float32([0.5])
    here = added_up([of_entries(at, one), of_dropped(np.array([2, 3, 3]), at)])
    assert (here.cell.tolist(), here.n_coactive.tolist(), here.n_stored.tolist()) == ([2, 3], [1, 2], [1, 0])
    found = rounded_sums(added_up([of_entries(np.array([3]), np.float32([-0.25])), here]))
    assert (found.cell.tolist(), found.n_coactive.tolist(), found.n_stored.tolist()) == ([2, 3], [1, 3], [1, 1])
    assert (found.sum.tolist(), found.max_abs.tolist()) == ([0.5, -0.25], [0.5, 0.25])
    assert rounded_sums(here).cell.tolist() == [2]


def test_nothing_adds_up_to_nothing() -> None:
    empty = of_entries(np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert len(added_up([empty, empty]).cell) == len(rounded_sums(added_up([empty])).cell) == 0
    zero = added_up([of_entries(np.array([4, 4]), np.zeros(2, np.float32))])
    assert (zero.n_stored.tolist(), rounded_sums(zero).sum_abs.tolist()) == ([2], [0.0])
