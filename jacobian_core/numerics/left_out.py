"""How many pairs are above thresholds at each stage of a run, and how many were, had one batch been absent.

A jackknife needs the second for each batch. Most pairs have entries in few batches, so nothing is done for every pair
and batch: at first all pairs count with all of their entries against what each batch would need, and then only those
are corrected that a batch takes below a threshold; which these can be is told by the batch's size, without exact sums.

Sums are exact, so counts depend on no order, and are what `sql/macros/pair_share_reach.sql` finds. Entries come sorted
by pair, then in corpus order: a pair's entries of one batch are neighbours at every stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int8, Int32, Int64

from jacobian_core.numerics.masses import Masses, Steps, Sums, added, added_some, changes, levels
from jacobian_core.numerics.stretches import Stretches

_MARGIN = 2e-9
"""Relative: far above the rounding of a float64, and too little to let much through."""
_TINY = 1e-280


class LeftOutCounts:
    """Pairs whose mean, and whose largest, |J| is above each threshold: by stage and batch left out, or none at last.

    `add` takes all entries of some pairs. `entries` counts single ones.
    """

    def __init__(self, thresholds: Float64[np.ndarray, "thresholds"], stretches: Stretches, steps: Steps) -> None:
        (stages, batches), count = stretches.tokens.shape, len(thresholds)
        self._steps, self._batch = steps, stretches.batch.astype(np.int8)
        self._needed = [needed_sums(thresholds, tokens) for tokens in stretches.tokens]
        self.mean, self.largest = (np.zeros((stages, batches + 1, count), np.int64) for _ in range(2))
        self.entries = np.zeros(count, np.int64)

    def count_entries(self, level: Int8[np.ndarray, "entries"]) -> None:
        """Count single entries."""
        self.entries += _above(level, len(self.entries))

    def merge(self, other: LeftOutCounts) -> None:
        """Add the counts of other pairs."""
        self.mean += other.mean
        self.largest += other.largest
        self.entries += other.entries

    def add(self, masses: Masses) -> None:
        """Count these pairs, none of which was added before."""
        for stage in reversed(range(len(self._batch))):
            inside = self._batch[stage] >= 0
            if not inside.all():
                masses = masses.inside(inside)
            if len(masses.pair):
                groups = _Groups.of(masses, self._batch[stage], self._steps)
                self.mean[stage] += _means_above(groups, self._needed[stage])
                self.largest[stage] += _largest_above(groups, self.largest[stage].shape)


def needed_sums(
    thresholds: Float64[np.ndarray, "thresholds"], tokens: Int64[np.ndarray, "batches"]
) -> Float64[np.ndarray, "batches_and_none thresholds"]:
    """What a pair's sum must be above where each batch is left out, and at last where none is.

    Without a batch a sum is compared with threshold * tokens, rounded once; with all of them sum / tokens with the
    threshold, as `pair_means` has it: this is the largest sum that is not above.
    """
    whole = float(tokens.sum())
    bounds = thresholds * whole
    usual = thresholds > _TINY  # below, next to numbers that are no float64, a quotient says little of its dividend
    while (low := usual & (bounds / whole > thresholds)).any():
        bounds[low] = np.nextafter(bounds[low], -np.inf)
    while (high := usual & (np.nextafter(bounds, np.inf) / whole <= thresholds)).any():
        bounds[high] = np.nextafter(bounds[high], np.inf)
    return np.concatenate([thresholds * (whole - tokens)[:, None], bounds[None]])


@dataclass(frozen=True)
class _Groups:
    """What each batch adds to each pair, one pair after the other; `first` is where a pair begins."""

    batch: Int8[np.ndarray, "groups"]
    level: Int8[np.ndarray, "groups"]
    high: Int64[np.ndarray, "groups"]
    low: Int64[np.ndarray, "groups"]
    first: Int64[np.ndarray, "pairs"]
    steps: Steps

    @classmethod
    def of(cls, masses: Masses, batch_of: Int8[np.ndarray, "stretches"], steps: Steps) -> _Groups:
        batch, new_pair = batch_of[masses.stretch], changes(masses.pair)
        sums = Sums.of(masses, new_pair | changes(batch))
        first = np.flatnonzero(new_pair[sums.starts])
        return cls(batch[sums.starts], sums.level, sums.high, sums.low, first, steps)

    @cached_property
    def counts(self) -> Int64[np.ndarray, "pairs"]:
        """Batches with entries of each pair."""
        return np.diff(self.first, append=len(self.batch))

    @cached_property
    def pair(self) -> Int32[np.ndarray, "groups"]:
        """The number of each group's pair."""
        return np.repeat(np.arange(len(self.first), dtype=np.int32), self.counts)


def _means_above(
    groups: _Groups, needed: Float64[np.ndarray, "batches_and_none thresholds"]
) -> Int64[np.ndarray, "batches_and_none thresholds"]:
    """Pairs whose sum is above what it needs to be, without each batch and with all."""
    some = np.flatnonzero(groups.low)
    all_high, all_low = added(groups.high, groups.first), added_some(some, groups.low[some], groups.first)
    total, count = groups.steps.sums(all_high, all_low), needed.shape[1]
    surely, perhaps = (levels(total, bound) for bound in (needed.max(0), needed.min(0)))
    varies = surely != perhaps
    open_ = np.sort(total[varies])
    found = _above(surely[~varies], count) + len(open_) - np.searchsorted(open_, needed, "right")
    # A batch changes a pair only if its mass reaches from the pair's sum down to a bound below it.
    below = np.append(-np.inf, needed.max(0))[perhaps]
    slack = total - below - _MARGIN * total
    mass = groups.steps.sums(groups.high, groups.low)
    changed = np.flatnonzero(mass >= np.repeat(slack, groups.counts))
    pair, batch = groups.pair[changed], groups.batch[changed]
    before, of_batch = surely[pair], np.flatnonzero(varies[pair])
    before[of_batch] = _levels_of(total[pair[of_batch]], batch[of_batch], needed)
    rest = groups.steps.sums(all_high[pair] - groups.high[changed], all_low[pair] - groups.low[changed])
    after, more = np.zeros(len(pair), np.int8), np.flatnonzero(rest)  # no sum of nothing is above a threshold
    after[more] = _levels_of(rest[more], batch[more], needed)
    found -= _above_by_batch(before, batch, needed.shape) - _above_by_batch(after, batch, needed.shape)
    return found


def _largest_above(groups: _Groups, shape: tuple[int, ...]) -> Int64[np.ndarray, "batches_and_none thresholds"]:
    """Pairs whose largest |J| is above, without each batch and with all."""
    level = groups.level
    of_pair = np.maximum.reduceat(level, groups.first)
    at_top = np.flatnonzero((level == np.repeat(of_pair, groups.counts)) & (level > 0))
    pair = groups.pair[at_top]
    new = changes(pair)
    alone = new & np.append(new[1:], True)[: len(new)]  # the only batch of its pair at this level
    at_top, pair = at_top[alone], pair[alone]
    without = level.copy()
    without[at_top] = 0
    batch, second = groups.batch[at_top], np.maximum.reduceat(without, groups.first)[pair]
    fewer = _above_by_batch(of_pair[pair], batch, shape) - _above_by_batch(second, batch, shape)
    found: Int64[np.ndarray, "batches_and_none thresholds"] = _above(of_pair, shape[1]) - fewer
    return found


def _levels_of(
    values: Float64[np.ndarray, "values"],
    batch: Int8[np.ndarray, "values"],
    needed: Float64[np.ndarray, "batches_and_none thresholds"],
) -> Int8[np.ndarray, "values"]:
    """The same, each against the bounds of its batch."""
    level, perhaps = (levels(values, bound) for bound in (needed.max(0), needed.min(0)))
    open_ = np.flatnonzero(level != perhaps)
    level[open_] = (values[open_, None] > needed[batch[open_]]).sum(1, dtype=np.int8)
    return level


def _above(level: Int8[np.ndarray, "values"], count: int) -> Int64[np.ndarray, "thresholds"]:
    """How many values are above each of `count` thresholds."""
    found: Int64[np.ndarray, "thresholds"] = np.bincount(level, minlength=count + 1)[:0:-1].cumsum()[::-1]
    return found


def _above_by_batch(
    level: Int8[np.ndarray, "values"], batch: Int8[np.ndarray, "values"], shape: tuple[int, ...]
) -> Int64[np.ndarray, "batches_and_none thresholds"]:
    batches, count = shape
    cells = np.bincount(batch * np.int16(count + 1) + level, minlength=batches * (count + 1))
    by_level = cells.reshape(batches, count + 1)[:, :0:-1]
    found: Int64[np.ndarray, "batches_and_none thresholds"] = by_level.cumsum(1)[:, ::-1]
    return found
