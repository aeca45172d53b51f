"""Sums of pairs are exact: they equal rational sums rounded once, whatever the units, the order and the grouping."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from jacobian_core.numerics.pair_digits import (
    PairDigits,
    added_up,
    highest_place,
    lowest_place,
    of_dropped,
    of_entries,
    rounded_sums,
)
from jacobian_core.numerics.pair_sums import PairRows, StripSums, Units, units_of

CELLS = 7


def _values(seed: int, count: int = 4000, spread: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells and values of many sizes, of which every other one nearly cancels the one before."""
    draw = np.random.default_rng(seed)
    values = (draw.standard_normal(count) * np.exp(spread * draw.standard_normal(count))).astype(np.float32)
    values[1::2] = -values[::2] * draw.choice(np.float32([1, 1 + 2**-23, 0.5]), count // 2)
    cell = np.repeat(draw.integers(0, CELLS, count // 2), 2)
    return torch.from_numpy(cell), torch.from_numpy(values)


def _exact(cell: torch.Tensor, value: torch.Tensor, power: int, magnitude: bool = False) -> list[float]:
    """Rational sums by cell; Python rounds a fraction to the nearest float, ties to even."""
    totals = [Fraction(0)] * CELLS
    for c, v in zip(cell.tolist(), value.tolist(), strict=True):
        totals[c] += abs(Fraction(v)) if magnitude else Fraction(v) ** power
    return [float(total) for total in totals]


def _same(one: PairRows, other: PairRows) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(PairRows))


def _taken(cell: torch.Tensor, value: torch.Tensor, units: Units) -> PairRows:
    sums = StripSums(CELLS, units)
    sums.add(cell, value)
    return sums.take()


def _digits(cell: torch.Tensor, value: torch.Tensor) -> PairDigits:
    return added_up([of_entries(cell.numpy(), value.numpy())])


@pytest.mark.parametrize("bits", [48, 40, 9])
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_equal_to_rational_sums_rounded_once(bits: int, spread: float) -> None:
    cell, value = _values(1, spread=spread)
    units = units_of(len(cell), float(value.abs().max()))
    rows = _taken(cell, value, Units(bits, units.value, units.square))
    assert rows.cell.tolist() == list(range(CELLS))
    assert rows.sum.tolist() == _exact(cell, value, 1)
    assert rows.sum_abs.tolist() == _exact(cell, value, 1, magnitude=True)
    assert rows.sum_sq.tolist() == _exact(cell, value, 2)


def test_ties_are_decided_by_what_follows() -> None:
    """1 + 2^-53 is half-way between two float64s: it goes to the even one unless something follows, however small."""
    for follows, expected in ((0.0, 1.0), (2.0**-120, 1 + 2.0**-52), (-(2.0**-120), 1.0)):
        for sign in (1.0, -1.0):
            values = torch.tensor([1.0, 2.0**-53, follows]) * sign
            cell = torch.zeros(3, dtype=torch.int64)
            assert _taken(cell, values, units_of(3, 1.0)).sum.tolist() == [sign * expected]
            assert rounded_sums(_digits(cell, values)).sum.tolist() == [sign * expected]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [10, 40, 4000])
def test_sums_of_sums_in_any_grouping(seed: int, count: int) -> None:
    """Cut at random and added up in several levels: the bits of accumulators that saw every entry."""
    cell, value = _values(seed, count, spread=10.0)
    whole = _taken(cell, value, units_of(len(cell), float(value.abs().max())))
    cuts = sorted(np.random.default_rng(seed).integers(1, len(cell), 6).tolist())
    parts = [_digits(cell[a:b], value[a:b]) for a, b in pairwise([0, *cuts, len(cell)]) if b > a]
    for groups in ([parts], [parts[:2], parts[2:]], [[part] for part in reversed(parts)]):
        assert _same(rounded_sums(added_up([added_up(group) for group in groups])), whole)
    entries = of_entries(cell.numpy(), value.numpy())
    twice = torch.cat([cell[: cuts[0]], cell]), torch.cat([value[: cuts[0]], value])
    beside = rounded_sums(added_up([parts[0], entries]))  # sums and single entries, side by side
    assert _same(beside, _taken(*twice, units_of(2 * count, float(value.abs().max()))))


def test_a_lost_digit_is_noticed() -> None:
    """The sibling: without its second digit a sum is another number."""
    cell, value = _values(1, spread=12.0)
    part = _digits(cell, value)
    total, magnitude, square = part.digits
    assert len(square) > 3
    lost = max(square) - 1
    cut = replace(part, digits=(total, magnitude, {p: d for p, d in square.items() if p != lost}))
    assert not torch.equal(rounded_sums(cut).sum_sq, rounded_sums(part).sum_sq)
    assert torch.equal(rounded_sums(cut).sum, rounded_sums(part).sum)


def test_digits_stay_where_files_have_columns() -> None:
    """After additions each digit fits 32 bits, between the places that are known from the sizes of the values."""
    for largest in (1e-20, 0.99, 1.0, 3e5):
        value = torch.tensor([largest, -largest / 3, 1e-7 * largest, largest, largest])
        part = _digits(torch.zeros(5, dtype=torch.int64), value)
        tokens = 5
        for _ in range(40):
            part, tokens = added_up([part, part, part]), 3 * tokens
        for digits, square in zip(part.digits, (False, False, True), strict=True):
            assert all(-(2**31) <= int(d.min()) <= int(d.max()) < 2**31 for d in digits.values())
            low, high = lowest_place(float(value.abs().min()), square), highest_place(tokens, float(value[0]), square)
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
