"""Sums of pairs are exact: they equal rational sums rounded once, whatever the units, the order and the grouping."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from jacobian_core.numerics import pair_sums
from jacobian_core.numerics.pair_sums import PairDigits, PairRows, StripSums, Units, grid_units, units_of

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
    sums = StripSums(CELLS, grid_units(len(cell), float(value.abs().max())))
    sums.add(cell, value)
    return sums.take_digits()


@pytest.mark.parametrize("units", ["run", "grid", "coarse"])
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_equal_to_rational_sums_rounded_once(units: str, spread: float) -> None:
    cell, value = _values(1, spread=spread)
    largest = float(value.abs().max())
    made = {"run": units_of(len(cell), largest), "grid": grid_units(len(cell), largest)}
    rows = _taken(cell, value, made.get(units, Units(9, made["run"].value, made["run"].square)))
    assert rows.cell.tolist() == list(range(CELLS))
    assert rows.sum.tolist() == _exact(cell, value, 1)
    assert rows.sum_abs.tolist() == _exact(cell, value, 1, magnitude=True)
    assert rows.sum_sq.tolist() == _exact(cell, value, 2)


def test_ties_are_decided_by_what_follows() -> None:
    """1 + 2^-53 is half-way between two float64s: it goes to the even one unless something follows, however small."""
    for follows, expected in ((0.0, 1.0), (2.0**-120, 1 + 2.0**-52), (-(2.0**-120), 1.0)):
        for sign in (1.0, -1.0):
            values = torch.tensor([1.0, 2.0**-53, follows]) * sign
            for units in (units_of(3, 1.0), grid_units(3, 1.0)):
                assert _taken(torch.zeros(3, dtype=torch.int64), values, units).sum.tolist() == [sign * expected]


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_sums_in_any_grouping(seed: int) -> None:
    """Cut at random, added up in two levels in units of their own: the bits of one sum over everything."""
    cell, value = _values(seed, spread=10.0)
    whole = _taken(cell, value, units_of(len(cell), float(value.abs().max())))
    cuts = sorted(np.random.default_rng(seed).integers(1, len(cell), 6).tolist())
    bounds = [0, *cuts, len(cell)]
    parts = [_digits(cell[a:b], value[a:b]) for a, b in pairwise(bounds) if b > a]
    units = grid_units(len(cell), float(value.abs().max()))
    for groups in ([parts], [parts[:2], parts[2:]], [[part] for part in reversed(parts)]):
        final = StripSums(CELLS, units)
        for group in groups:
            merged = StripSums(CELLS, units)
            for part in group:
                merged.add_sums(part)
            final.add_sums(merged.take_digits())
        assert _same(final.take(), whole)
        assert len(final.take().cell) == 0


def test_a_lost_last_digit_is_noticed() -> None:
    """The sibling: digits that are cut off after the second one do not give these sums."""
    cell, value = _values(1, spread=12.0)
    part = _digits(cell, value)
    assert len(part.sum_sq) > 3
    lowest = min(part.sum_sq)
    cut = PairDigits(**{**vars(part), "sum_sq": {p: d for p, d in part.sum_sq.items() if p != lowest}})
    sums = StripSums(CELLS, grid_units(len(cell), float(value.abs().max())))
    sums.add_sums(cut)
    found = sums.take_digits().sum_sq
    assert found.keys() != part.sum_sq.keys()


def test_digits_fit_what_they_are_kept_in() -> None:
    for tokens in (1, 1000, 10**10):
        for largest in (1e-20, 0.99, 1.0, 3e5):
            sums = StripSums(1, grid_units(tokens, largest))
            sums.add(torch.zeros(1, dtype=torch.int64), torch.tensor([largest]))
            taken = sums.take_digits()
            for digits in (taken.sum, taken.sum_abs, taken.sum_sq):
                for digit in digits.values():
                    # As many such sums as there are tokens still fit into the first digit.
                    assert -(2**31) <= int(digit.min()) <= int(digit.max()) < 2**31
            top = max(taken.sum_sq)
            units = grid_units(tokens, largest)
            assert tokens * largest**2 <= 2.0 ** (units.square - 1)
            assert top < units.square // pair_sums.GRID_BITS


def test_a_full_digit_is_carried_before_it_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, value = _values(2, count=600)
    expected = _taken(cell, value, units_of(600, float(value.abs().max())))
    monkeypatch.setattr(pair_sums, "_GRID_ADDITIONS", 8)
    sums = StripSums(CELLS, grid_units(600, float(value.abs().max())))
    for start in range(0, 600, 5):
        sums.add(cell[start : start + 5], value[start : start + 5])
    assert _same(sums.take(), expected)


def test_pairs_that_are_only_coactive_are_kept_for_other_sums() -> None:
    """A pair whose entry was dropped here may have one elsewhere: its tokens count then."""
    units = grid_units(4, 1.0)
    here, there = StripSums(CELLS, units), StripSums(CELLS, units)
    here.add(torch.tensor([2]), torch.tensor([0.5]))
    here.add_coactive(torch.tensor([2, 3, 3]), torch.tensor([2]))
    taken = here.take_digits()
    assert (taken.cell.tolist(), taken.n_coactive.tolist(), taken.n_stored.tolist()) == ([2, 3], [1, 2], [1, 0])
    there.add(torch.tensor([3]), torch.tensor([0.25]))
    there.add_sums(taken)
    found = there.take()
    assert (found.cell.tolist(), found.n_coactive.tolist(), found.n_stored.tolist()) == ([2, 3], [1, 3], [1, 1])
    assert len(there.take_digits().cell) == 0
