"""What a token, an entry and a pair cost, and from that what any number of tokens costs.

Entries, bytes of entries and computing grow with the tokens. Pairs do not: most of them are seen early, the rare ones
ever later, and there are no more than n_out x n_in. Their number follows `possible * (1 - exp(-a * tokens^b))`, a and b
being fitted to a short run's first half and whole. Fitting is all that is modelled; costs are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_ENTRY_WEIGHT, _PAIR_WEIGHT = 85.0, 250.0
"""Nanoseconds of an entry and of a pair in the sums at a run's end (two cores): only their ratio is used."""


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
    """What a run takes: rows, bytes in the lake, seconds of this machine by step."""

    tokens: int
    entries: float
    pairs: float
    entry_bytes: float
    pair_bytes: float
    other_bytes: float
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
class UnitCosts:
    """Measured costs: seconds to start, and of a token; of all sums and checks for the measured entries and pairs."""

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

    def cost(self, tokens: int) -> Cost:
        """What a run of so many tokens takes."""
        entries, pairs = tokens * self.entries_per_token, self.growth.at(tokens)
        measured = self.growth.tokens * self.entries_per_token
        weight = _ENTRY_WEIGHT * entries + _PAIR_WEIGHT * pairs
        measured_weight = _ENTRY_WEIGHT * measured + _PAIR_WEIGHT * self.growth.pairs
        checked = entries <= self.checks_max_entries
        return Cost(
            tokens=tokens, entries=entries, pairs=pairs, entry_bytes=entries * self.bytes_per_entry,
            pair_bytes=pairs * self.bytes_per_pair, other_bytes=tokens * self.bytes_per_token + self.fixed_bytes,
            seconds={
                "start": self.start_seconds,
                "compute": tokens * self.seconds_per_token,
                "sums": self.sum_seconds * (weight / measured_weight if measured_weight else 1.0),
                "checks": self.check_seconds * max(1.0, entries / measured if checked and measured else 0.0),
            },
        )  # fmt: skip
