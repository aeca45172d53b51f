"""What a token, an entry and a pair cost, and from that what any number of tokens costs.

Entries, bytes of entries and computing grow with the tokens. Pairs do not: most of them are seen early, the rare ones
ever later, and there are no more than n_out x n_in. Their number follows `possible * (1 - exp(-a * tokens^b))`, a and b
being fitted to a short run's first half and whole. Fitting is all that is modelled; costs are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

_ENTRY_WEIGHT, _PAIR_WEIGHT = 40.0, 250.0
"""Nanoseconds of a sorted entry and of a pair in the sums at a run's end (two cores): only their ratio is used."""
_MERGED_BYTES, _ROW_BYTES = 14.0, 6.5
"""Bytes of a pair in merged sums, and of an entry in rows, that are in the work folder while a run goes on."""


@dataclass(frozen=True)
class PairGrowth:
    """Pairs with an entry after two numbers of tokens, and how many pairs there can be."""

    half_tokens: int
    half_pairs: int
    tokens: int
    pairs: int
    possible: int

    def at(self, tokens: float) -> float:
        """Pairs with an entry after `tokens` tokens."""
        if not self.pairs:
            return 0.0
        if self.pairs >= self.possible:
            return float(self.possible)
        reached = self._depth(self.pairs)
        return -self.possible * math.expm1(-reached * (tokens / self.tokens) ** self._exponent(reached))

    def _depth(self, pairs: int) -> float:
        return -math.log1p(-pairs / self.possible)

    def _exponent(self, reached: float) -> float:
        """1 while every token brings as many new pairs as the one before, less where they repeat."""
        if not 0 < self.half_pairs < self.pairs or not 0 < self.half_tokens < self.tokens:
            return 1.0
        slope = math.log(reached / self._depth(self.half_pairs)) / math.log(self.tokens / self.half_tokens)
        return min(1.0, slope)


@dataclass(frozen=True)
class Cost:
    """What a run takes: rows, bytes in the lake and at most in its work folder, seconds of this machine by step."""

    tokens: int
    entries: float
    pairs: float
    entry_bytes: float
    pair_bytes: float
    other_bytes: float
    work_bytes: float
    seconds: dict[str, float]

    @property
    def bytes(self) -> float:
        """All parts of the run."""
        return self.entry_bytes + self.pair_bytes + self.other_bytes

    @property
    def total_seconds(self) -> float:
        """All steps, one after the other."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Merging:
    """How a run that does not keep entries merges on its way: `fan_in` files into one, from blocks of so many tokens.

    Groups end with a shard: each of `shards`, of equal size, is a file in the end. What merging the last groups of a
    shard takes is left out.
    """

    block_tokens: float
    fan_in: int
    shards: int = 1

    def levels(self, tokens: float) -> Iterator[float]:
        """Tokens of a group of each level that a run of so many tokens comes to."""
        group = self.block_tokens * self.fan_in
        while group <= tokens / self.shards:
            yield group
            group *= self.fan_in

    def weight(self, tokens: float, growth: PairGrowth, entries_per_token: float, reads: tuple[float, float]) -> float:
        """What all merges weigh; `reads` are the weights of an entry that is read, and of a pair that is written."""
        entry, pair = reads
        total, read = 0.0, self.block_tokens * self.fan_in * entries_per_token
        for group in self.levels(tokens):
            written = growth.at(group)
            total += tokens / group * (entry * read + pair * written)
            read = self.fan_in * written
        return total

    def most_bytes(self, tokens: float, growth: PairGrowth, entries_per_token: float) -> float:
        """The most that lies in the work folder: a file less than are merged, of every level."""
        of_shard = tokens / self.shards
        rows = min(of_shard, self.block_tokens * (self.fan_in - 1)) * entries_per_token * _ROW_BYTES
        merged = sum(min(self.fan_in - 1, of_shard // group) * growth.at(group) for group in self.levels(tokens))
        return rows + (merged + self.ended(tokens, growth)) * _MERGED_BYTES

    def ended(self, tokens: float, growth: PairGrowth) -> float:
        """Pairs in the files of all shards but the last one."""
        return (self.shards - 1) * growth.at(tokens / self.shards)


@dataclass(frozen=True)
class UnitCosts:
    """Measured costs: seconds to start (importing and loading), seconds that the first blocks took longer, seconds of a
    token; of all sums and checks for the measured entries and pairs.

    `merging` is None where entries are kept.
    """

    growth: PairGrowth
    entries_per_token: float
    bytes_per_token: float
    bytes_per_entry: float
    bytes_per_pair: float
    fixed_bytes: float
    start_seconds: float
    seconds_per_token: float
    sum_seconds: float
    check_seconds: float
    checks_max_entries: int
    merging: Merging | None = None
    warm_up_seconds: float = 0.0

    def cost(self, tokens: int) -> Cost:
        """What a run of so many tokens takes."""
        entries, pairs = tokens * self.entries_per_token, self.growth.at(tokens)
        measured = self.growth.tokens * self.entries_per_token
        summed = _ENTRY_WEIGHT * measured + _PAIR_WEIGHT * self.growth.pairs
        checked = entries <= self.checks_max_entries
        merges, weight, work_bytes = self._sums(tokens, entries, pairs)
        seconds = {
            "start": self.start_seconds,
            "warm-up": self.warm_up_seconds,
            "compute": tokens * self.seconds_per_token,
            "sums": self.sum_seconds * (weight / summed if summed else 1.0),
            "checks": self.check_seconds * max(1.0, entries / measured if checked and measured else 0.0),
        }
        if self.merging is not None:
            seconds["merges"] = self.sum_seconds * (merges / summed if summed else 0.0)
        return Cost(
            tokens=tokens, entries=entries, pairs=pairs, entry_bytes=entries * self.bytes_per_entry,
            pair_bytes=pairs * self.bytes_per_pair, other_bytes=tokens * self.bytes_per_token + self.fixed_bytes,
            work_bytes=work_bytes, seconds=seconds,
        )  # fmt: skip

    def _sums(self, tokens: int, entries: float, pairs: float) -> tuple[float, float, float]:
        """Weights of merges on the way and of the sums at the end, and the most bytes in the work folder."""
        last = _PAIR_WEIGHT * pairs
        if self.merging is None:
            return 0.0, _ENTRY_WEIGHT * entries + last, entries * _ROW_BYTES
        weights = (_ENTRY_WEIGHT, _PAIR_WEIGHT)
        merges = self.merging.weight(tokens, self.growth, self.entries_per_token, weights)
        left = tokens / self.merging.shards % (self.merging.block_tokens * self.merging.fan_in) * self.entries_per_token
        merged = sum(self.growth.at(group) for group in self.merging.levels(tokens))
        merged += self.merging.ended(tokens, self.growth)
        return (
            merges, _ENTRY_WEIGHT * (left + merged) + last,
            self.merging.most_bytes(tokens, self.growth, self.entries_per_token),
        )  # fmt: skip
