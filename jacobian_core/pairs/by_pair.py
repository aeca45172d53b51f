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

from jacobian_core.pairs.rows import Rows

PASS_ENTRIES = 300_000
"""Entries that are worked on at once, or those of one output latent: what fits the cache. 100,000 or 1,000,000 take
longer by a third."""
_NARROW = 1 << 16


@dataclass(frozen=True)
class SortedEntries:
    """Entries by pair, (out_latent - first) * n_in + in_latent, then in corpus order."""

    pair: Int32[np.ndarray, "entries"]
    stretch: UInt8[np.ndarray, "entries"]
    magnitude: Float32[np.ndarray, "entries"]


class RowsByPair:
    """Rows in corpus order, with the stretch of each row's token, until they are taken by pair."""

    def __init__(self, outs: range, n_in: int) -> None:
        self._outs, self._n_in = outs, n_in
        self._rows: list[tuple[Rows, UInt8[np.ndarray, "rows"]]] = []
        self.entries = 0

    def add(self, rows: Rows, stretch: UInt8[np.ndarray, "rows"]) -> None:
        """Add rows of later tokens."""
        self._rows.append((rows, stretch))
        self.entries += len(rows.value)

    def take(self) -> Iterator[SortedEntries]:
        """All entries, some output latents at a time; there are none afterwards."""
        rows, self._rows, self.entries = self._rows, [], 0
        if not rows:
            return
        out = np.concatenate([part.out_latent for part, _ in rows]) - np.uint32(self._outs.start)
        lengths = np.concatenate([part.lengths for part, _ in rows]).astype(np.int64)
        payload = _Payload(
            np.concatenate([part.in_latent for part, _ in rows]).astype(
                np.uint16 if self._n_in <= _NARROW else np.uint32
            ),
            np.concatenate([part.value for part, _ in rows]).view(np.uint32),
        )
        tags = np.concatenate([stretch for _, stretch in rows]).astype(np.uint64) << np.uint64(32)
        order = np.argsort(out.astype(np.uint16) if len(self._outs) <= _NARROW else out, kind="stable")
        starts = (np.cumsum(lengths) - lengths)[order]
        ends = np.append(0, np.cumsum(np.bincount(out, lengths, len(self._outs)).astype(np.int64)))
        row_ends = np.append(0, np.cumsum(np.bincount(out, minlength=len(self._outs))))
        for first, last in _passes(ends):
            which = slice(row_ends[first], row_ends[last])
            of_pass = _Pass(starts[which], lengths[order[which]], tags[order[which]], ends[first : last + 1])
            yield self._sorted(payload, of_pass, first)

    def _sorted(self, payload: _Payload, of_pass: _Pass, first: int) -> SortedEntries:
        index = of_pass.entries()
        in_latent, packed = payload.in_latent[index], payload.bits[index].astype(np.uint64)
        packed |= np.repeat(of_pass.tags, of_pass.lengths)
        pair = np.empty(len(index), np.int32)
        cuts = (of_pass.ends - of_pass.ends[0]).tolist()
        for number, (start, end) in enumerate(pairwise(cuts)):
            if start < end:
                own = in_latent[start:end]
                order = np.argsort(own, kind="stable")
                np.add(own[order], (first + number) * self._n_in, out=pair[start:end], dtype=np.int32)
                packed[start:end] = packed[start:end][order]
        magnitude = np.abs(packed.astype(np.uint32).view(np.float32))
        return SortedEntries(pair, (packed >> np.uint64(32)).astype(np.uint8), magnitude)


@dataclass(frozen=True)
class _Payload:
    """Input latents, and the bits of the values, of all entries."""

    in_latent: Shaped[np.ndarray, "entries"]
    bits: Shaped[np.ndarray, "entries"]


@dataclass(frozen=True)
class _Pass:
    """Rows of some output latents: where each one's entries begin, how many, its stretch (above 32 bits); `ends` are
    those of the output latents."""

    starts: Int64[np.ndarray, "rows"]
    lengths: Int64[np.ndarray, "rows"]
    tags: UInt64[np.ndarray, "rows"]
    ends: Int64[np.ndarray, "outs_plus_1"]

    def entries(self) -> Int64[np.ndarray, "entries"]:
        """The numbers of their entries, row by row."""
        before = np.cumsum(self.lengths) - self.lengths
        found: Int64[np.ndarray, "entries"] = np.repeat(self.starts - before, self.lengths)
        found += np.arange(len(found))
        return found


def _passes(ends: Int64[np.ndarray, "outs_plus_1"]) -> Sequence[tuple[int, int]]:
    """Output latents that are worked on at once, as pairs of first and last + 1."""
    found, first = [], 0
    while first < len(ends) - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + PASS_ENTRIES, "right")) - 1)
        if ends[last] > ends[first]:
            found.append((first, last))
        first = last
    return found
