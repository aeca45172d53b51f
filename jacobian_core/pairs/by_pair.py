"""Entries of many blocks sorted by pair, then in corpus order, from the rows that the blocks left.

Rows come block by block, each with its entries' input latents in ascending order. They are brought together by output
latent, which moves whole rows, and then each output latent's entries, a few thousand that stay in the cache, are sorted
by input latent: numpy sorts 16-bit numbers by radix, stably, 12 ns an entry, where sorting 64-bit keys takes 60 to 120.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int32, Int64, Shaped, UInt8, UInt64

from jacobian_core.pairs.rows import COACTIVE_AS_ONE, Codes, Rows

PASS_ENTRIES = 150_000
"""Entries that are worked on at once, or those of one output latent: what fits the cache. 1,000,000 take
longer by a third."""
_NARROW = 1 << 16


@dataclass(frozen=True)
class SortedEntries:
    """Entries by pair, (out_latent - first) * n_in + in_latent, then in corpus order.

    `n_coactive`, that of the entry's pair, is there if entries were dropped.
    """

    pair: Int32[np.ndarray, "entries"]
    stretch: UInt8[np.ndarray, "entries"]
    value: Float32[np.ndarray, "entries"]
    n_coactive: Int64[np.ndarray, "entries"] | None


@dataclass(frozen=True)
class _Part:
    """Rows of one block, with the stretch of each one's token and, if entries were dropped, the tokens' codes."""

    rows: Rows
    stretch: UInt8[np.ndarray, "rows"]
    codes: Codes | None

    def coactive(self) -> tuple[Int64[np.ndarray, "rows"], Shaped[np.ndarray, "coactive"]]:
        """How many input latents are active at each row's token, and these."""
        if self.codes is None:
            return self.rows.lengths.astype(np.int64), self.rows.in_latent
        return self.codes.counts(self.rows.token), self.codes.of(self.rows.token)


class RowsByPair:
    """Rows in corpus order until they are taken by pair; `room` is the memory of what waits, in entries."""

    def __init__(self, outs: range, n_in: int) -> None:
        self._outs, self._n_in = outs, n_in
        self._parts: list[_Part] = []
        self.room = 0

    def add(self, rows: Rows, stretch: UInt8[np.ndarray, "rows"], codes: Codes | None = None) -> None:
        """Add rows of later tokens."""
        self._parts.append(_Part(rows, stretch, codes))
        coactive = 0 if codes is None else int(codes.counts(rows.token).sum())
        self.room += max(len(rows.value), coactive // COACTIVE_AS_ONE)

    def take(self) -> Iterator[SortedEntries]:
        """All entries, some output latents at a time; there are none afterwards."""
        parts, self._parts, self.room = self._parts, [], 0
        if not parts:
            return
        out = np.concatenate([part.rows.out_latent for part in parts]) - np.uint32(self._outs.start)
        order = np.argsort(out.astype(np.uint16) if len(self._outs) <= _NARROW else out, kind="stable")
        lengths = np.concatenate([part.rows.lengths for part in parts]).astype(np.int64)
        rows = _Lists(lengths, out, order, len(self._outs))
        payload = _Payload(
            self._latents([part.rows.in_latent for part in parts]),
            np.concatenate([part.rows.value for part in parts]).view(np.uint32),
            np.concatenate([part.stretch for part in parts]).astype(np.uint64)[order] << np.uint64(32),
        )
        active = None
        if any(part.codes is not None for part in parts):
            counts, latents = zip(*(part.coactive() for part in parts), strict=True)
            active = _Active(self._latents(latents), _Lists(np.concatenate(counts), out, order, len(self._outs)))
        del parts
        for first, last in _passes(rows.ends):
            yield self._sorted(payload, rows, active, range(first, last))

    def _latents(self, parts: Sequence[Shaped[np.ndarray, "_"]]) -> Shaped[np.ndarray, "_"]:
        return np.concatenate(parts).astype(np.uint16 if self._n_in <= _NARROW else np.uint32, copy=False)

    def _sorted(self, payload: _Payload, rows: _Lists, active: _Active | None, of_pass: range) -> SortedEntries:
        index = rows.members(of_pass)
        in_latent, packed = payload.in_latent[index], payload.bits[index].astype(np.uint64)
        packed |= np.repeat(payload.tags[rows.rows(of_pass)], rows.lengths[rows.rows(of_pass)])
        pair = np.empty(len(index), np.int32)
        coactive = None if active is None else np.empty(len(index), np.int64)
        cuts = (rows.ends[of_pass.start : of_pass.stop + 1] - rows.ends[of_pass.start]).tolist()
        for out, (start, end) in zip(of_pass, pairwise(cuts), strict=True):
            if start < end:
                own = in_latent[start:end]
                order = np.argsort(own, kind="stable")
                own = own[order]
                np.add(own, out * self._n_in, out=pair[start:end], dtype=np.int32)
                packed[start:end] = packed[start:end][order]
                if active is not None and coactive is not None:
                    coactive[start:end] = active.counts(out, self._n_in)[own]
        value = packed.astype(np.uint32).view(np.float32)
        return SortedEntries(pair, (packed >> np.uint64(32)).astype(np.uint8), value, coactive)


class _Lists:
    """Lists of numbers, one for each row, that lie one after the other; and the rows in the order of output latents."""

    def __init__(
        self, lengths: Int64[np.ndarray, "rows"], out: Shaped[np.ndarray, "rows"], order: Int64[np.ndarray, "rows"],
        outs: int,
    ) -> None:  # fmt: skip
        self._starts, self.lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
        self.ends = np.append(0, np.cumsum(np.bincount(out, lengths, outs).astype(np.int64)))
        self._row_ends = np.append(0, np.cumsum(np.bincount(out, minlength=outs)))

    def rows(self, outs: range) -> slice:
        """The rows of some output latents, in order."""
        return slice(int(self._row_ends[outs.start]), int(self._row_ends[outs.stop]))

    def members(self, outs: range) -> Int64[np.ndarray, "members"]:
        """Where the members of their lists are, row by row."""
        starts, lengths = self._starts[self.rows(outs)], self.lengths[self.rows(outs)]
        found: Int64[np.ndarray, "members"] = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        found += np.arange(len(found))
        return found


@dataclass(frozen=True)
class _Payload:
    """Input latents, and the bits of the values, of all entries; the stretch (above 32 bits) of the rows in order."""

    in_latent: Shaped[np.ndarray, "entries"]
    bits: Shaped[np.ndarray, "entries"]
    tags: UInt64[np.ndarray, "rows"]


@dataclass(frozen=True)
class _Active:
    """The input latents that are active at the rows' tokens."""

    latent: Shaped[np.ndarray, "coactive"]
    lists: _Lists

    def counts(self, out: int, n_in: int) -> Int64[np.ndarray, "n_in"]:
        """At how many tokens each input latent is active together with an output latent."""
        return np.bincount(self.latent[self.lists.members(range(out, out + 1))], minlength=n_in)


def _passes(ends: Int64[np.ndarray, "outs_plus_1"]) -> Sequence[tuple[int, int]]:
    """Output latents that are worked on at once, as pairs of first and last + 1."""
    found, first = [], 0
    while first < len(ends) - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + PASS_ENTRIES, "right")) - 1)
        if ends[last] > ends[first]:
            found.append((first, last))
        first = last
    return found
