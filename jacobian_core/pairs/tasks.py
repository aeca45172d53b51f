"""The blocks of a run cut into tasks: ranges of output latents with about as many entries each.

A task's memory is that of its entries, so that of a run's sums does not depend on how long the run is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.pairs.by_pair import RowsByPair
from jacobian_core.pairs.rows import Facts, opened_rows

_ENTRIES_A_BLOCK = 20_000
"""A task has so many for each block, whose file it opens, but between the next two. Each takes 12 bytes of memory, and
150 while its pair is summed (`by_pair.PASS_ENTRIES`)."""
_LEAST_ENTRIES, _MOST_ENTRIES = 300_000, 2_000_000
_TASK_PAIRS = (1 << 31) - 1
PART_ENTRIES = 200_000
"""An output latent with more is a task of its own, and summed in parts."""


@dataclass(frozen=True)
class RunRows:
    """The rows of a run's blocks, and the stretch of each of their tokens (0 where it is not asked for)."""

    folder: Path
    blocks: Sequence[BlockMarker]
    facts: Facts
    stretch: Sequence[UInt8[np.ndarray, "_"]] | None = None

    @property
    def n_in(self) -> int:
        """The width of the matrix: one more than the largest input latent."""
        return self.facts.widths[1]

    @property
    def task_entries(self) -> int:
        """About how many entries a task has."""
        return min(max(_LEAST_ENTRIES, _ENTRIES_A_BLOCK * len(self.blocks)), _MOST_ENTRIES)

    def tasks(self) -> Iterator[range]:
        """The output latents in ranges of about as many entries; one that has more than `PART_ENTRIES` is alone."""
        n_out = self.facts.widths[0]
        entries = np.zeros(n_out, np.int64)
        for marker in self.blocks:
            with opened_rows(self.folder, marker) as block:
                entries += block.room_by_out(n_out)
        before = np.append(0, np.cumsum(entries))
        large = np.append(np.flatnonzero(entries > PART_ENTRIES), n_out)
        first, most = 0, max(1, _TASK_PAIRS // self.n_in)
        while first < n_out:
            last = int(np.searchsorted(before, before[first] + self.task_entries, "right")) - 1
            next_large = int(large[np.searchsorted(large, first)])
            last = max(first + 1, min(last, first + most, next_large))
            yield range(first, last)
            first = last

    def read(self, outs: range) -> Iterator[tuple[RowsByPair, bool]]:
        """The rows of a task and True; of an output latent that has too many those of some tokens after others', and
        False until the last."""
        rows = RowsByPair(outs, self.n_in)
        for number, marker in enumerate(self.blocks):
            with opened_rows(self.folder, marker) as block:
                codes = block.codes() if block.facts.thresholded else None
                for part in block.strip(outs):
                    stretch = np.zeros(len(part.token), np.uint8)
                    if self.stretch is not None:
                        stretch = self.stretch[number][part.token]
                    rows.add(part, stretch, codes)
            if len(outs) == 1 and rows.room > PART_ENTRIES:
                yield rows, False
        yield rows, True

    def coactive(self, out: int) -> Int64[np.ndarray, "n_in"]:
        """At how many tokens each input latent is active together with an output latent."""
        found = np.zeros(self.n_in, np.int64)
        for marker in self.blocks:
            with opened_rows(self.folder, marker) as block:
                codes = block.codes() if block.facts.thresholded else None
                for part in block.strip(range(out, out + 1)):
                    latents = part.in_latent if codes is None else codes.of(part.token)
                    found += np.bincount(latents, minlength=self.n_in)
        return found
