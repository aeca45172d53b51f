"""|J| as integers, entry by entry or summed over neighbours, and how many thresholds it is above.

Integers add up to the same in any order. Running sums give those of any neighbours: they may wrap around, differences
do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, Int32, Int64, Shaped, UInt8

_MOST_BITS, _SUM_BITS, _SMALLEST = 48, 62, 1e-30


@dataclass(frozen=True)
class Steps:
    """|J| counts steps of 2^(exponent - 2 bits), the run's largest |J| being at most 2^exponent.

    The upper integer counts 2^bits of them, and has room for the sum over all tokens of the run.
    """

    bits: int
    exponent: int

    @classmethod
    def of(cls, tokens: int, largest: float) -> Steps:
        """Those of a run, as `sql/macros/j_steps.sql` has them."""
        bits = min(_MOST_BITS, _SUM_BITS - math.ceil(math.log2(max(tokens, 1))))
        return cls(bits, math.ceil(math.log2(max(largest, _SMALLEST))))

    @property
    def upper(self) -> float:
        """What one of the upper integer stands for."""
        return 2.0 ** (self.exponent - self.bits)

    def sums(self, high: Int64[np.ndarray, "sums"], low: Int64[np.ndarray, "sums"]) -> Float64[np.ndarray, "sums"]:
        """Sums of |J|, rounded to float64."""
        found = high * self.upper  # rounded once, as it is a power of two
        some = np.flatnonzero(low)
        if len(some):
            high, low = high[some], low[some]
            carry = (low + (1 << (self.bits - 1))) >> self.bits
            high, low = high + carry, low - (carry << self.bits)
            rest = (high & 0x7FFFFFFF) * 2.0**self.bits + low
            found[some] = ((high >> 31) * 2.0 ** (self.bits + 31) + rest) * (self.upper * 2.0**-self.bits)
        return found


@dataclass(frozen=True)
class Masses:
    """What entries add to pairs, by pair, then stretch: the level of |J|, and |J| in two limbs.

    The level is how many thresholds it is above. The lower limb, mostly 0, is `low` at the numbers `low_at`.
    """

    pair: Int32[np.ndarray, "masses"]
    stretch: UInt8[np.ndarray, "masses"]
    level: Int8[np.ndarray, "masses"]
    high: Int64[np.ndarray, "masses"]
    low_at: Int64[np.ndarray, "some"]
    low: Int64[np.ndarray, "some"]

    def inside(self, of_stretch: Bool[np.ndarray, "stretches"]) -> Masses:
        """Those of some stretches."""
        index = np.flatnonzero(of_stretch[self.stretch])
        kept = of_stretch[self.stretch[self.low_at]]
        low_at = np.searchsorted(index, self.low_at[kept])
        return Masses(
            self.pair[index], self.stretch[index], self.level[index], self.high[index], low_at, self.low[kept]
        )

    @classmethod
    def together(cls, parts: Sequence[Masses]) -> Masses:
        """Those of several parts of the corpus, given in its order."""
        pair = np.concatenate([part.pair for part in parts])
        order = np.argsort(pair, kind="stable")
        before = np.cumsum([0, *(len(part.pair) for part in parts)])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        low_at = place[np.concatenate([part.low_at + start for part, start in zip(parts, before, strict=False)])]
        ascending = np.argsort(low_at)
        stretch, level, high = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("stretch", "level", "high")
        )
        low = np.concatenate([part.low for part in parts])[ascending]
        return cls(pair[order], stretch, level, high, low_at[ascending], low)

    def summed(self) -> Masses:
        """One for each pair and stretch."""
        sums = Sums.of(self, changes(self.pair) | changes(self.stretch))
        low_at = np.flatnonzero(sums.low)
        at = sums.starts
        return Masses(self.pair[at], self.stretch[at], sums.level, sums.high, low_at, sums.low[low_at])


def masses_of(
    pair: Int32[np.ndarray, "entries"],
    stretch: UInt8[np.ndarray, "entries"],
    magnitude: Float32[np.ndarray, "entries"],
    thresholds: Float64[np.ndarray, "thresholds"],
    steps: Steps,
) -> Masses:
    """Single entries with their |J|."""
    scale = np.float64(1 / steps.upper)
    high = (magnitude * scale).astype(np.int64)
    # A float32 has 24 digits: one of at least 2^24 has none in the lower integer.
    low_at = np.flatnonzero((magnitude < np.float32(2.0**24 * steps.upper)) & (magnitude > 0))
    rest = (magnitude[low_at] * scale - high[low_at]) * 2.0**steps.bits
    level = levels(magnitude, _float32_below(thresholds))
    return Masses(pair, stretch, level, high, low_at, np.ceil(rest).astype(np.int64))


@dataclass(frozen=True)
class Sums:
    """Neighbours summed; `starts` is where each of them begins."""

    starts: Int64[np.ndarray, "sums"]
    level: Int8[np.ndarray, "sums"]
    high: Int64[np.ndarray, "sums"]
    low: Int64[np.ndarray, "sums"]

    @classmethod
    def of(cls, masses: Masses, new: Bool[np.ndarray, "masses"]) -> Sums:
        """The sums of masses, a `new` one beginning where that is true."""
        starts = np.flatnonzero(new)
        low = added_some(masses.low_at, masses.low, starts)
        return cls(starts, np.maximum.reduceat(masses.level, starts), added(masses.high, starts), low)


def levels(
    values: Shaped[np.ndarray, "values"], bounds: Shaped[np.ndarray, "thresholds"]
) -> Int8[np.ndarray, "values"]:
    """How many of the ascending bounds each value is strictly greater than."""
    level = np.zeros(len(values), np.int8)
    for bound in bounds:
        level += values > bound
    return level


def _float32_below(thresholds: Float64[np.ndarray, "thresholds"]) -> Float32[np.ndarray, "thresholds"]:
    """The largest float32 that is not greater: a float32 is above the one exactly where it is above the other."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def changes(values: Shaped[np.ndarray, "values"]) -> Bool[np.ndarray, "values"]:
    """Where a run of equal values begins."""
    found = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=found[1:])
    return found


def added(values: Int64[np.ndarray, "values"], starts: Int64[np.ndarray, "sums"]) -> Int64[np.ndarray, "sums"]:
    """Sums of neighbours, of all values from one start to the next."""
    running: Int64[np.ndarray, "sums"] = np.cumsum(values)[np.append(starts[1:], len(values)) - 1]
    running[1:] -= running[:-1].copy()
    return running


def added_some(
    at: Int64[np.ndarray, "some"], values: Int64[np.ndarray, "some"], starts: Int64[np.ndarray, "sums"]
) -> Int64[np.ndarray, "sums"]:
    """The same where all values but those `at` some numbers are 0."""
    found = np.zeros(len(starts), np.int64)
    np.add.at(found, np.searchsorted(starts, at, "right") - 1, values)
    return found
