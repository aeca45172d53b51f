"""A block's entries once more, output latent first: what the sums of pairs are made from.

Published entries stand token by token, as they were computed. The sums of a pair need all of its entries, so each block
also leaves its entries sorted by output latent in the run's work folder, until the run is published (`sorting.py`). A
file holds record batches of about 32,000 entries, and says which output latent each begins with, so that a strip of
output latents is read from any number of blocks without reading the rest.

A file carries the digest of the entries that it was made of, and counts only for a block whose marker names the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64, UInt32

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.resources import cache_folder

VERSION = 1
HEADER = b"jacobian_flows.rows"
ROWS_SUFFIX, CODES_SUFFIX = ".arrow", "-codes.arrow"


@dataclass(frozen=True)
class Rows:
    """Entries of some output latents in one block, by output latent, then token.

    A row is one active output latent at one token (an ordinal in its block); `lengths` is how many entries it has,
    which may be none where entries were dropped.
    """

    out_latent: UInt32[np.ndarray, "rows"]
    token: Int32[np.ndarray, "rows"]
    lengths: Int32[np.ndarray, "rows"]
    in_latent: Int64[np.ndarray, "entries"]
    value: Float32[np.ndarray, "entries"]


@dataclass(frozen=True)
class Codes:
    """The active input latents of a block's tokens, one after the other; token t has those in offsets[t:t+2]."""

    offsets: Int64[np.ndarray, "tokens_plus_1"]
    latent: Int64[np.ndarray, "active"]

    def counts(self, token: Int32[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
        """How many input latents are active at each of these tokens."""
        found: Int64[np.ndarray, "rows"] = self.offsets[token + 1] - self.offsets[token]
        return found

    def of(self, token: Int32[np.ndarray, "rows"]) -> Int64[np.ndarray, "coactive"]:
        """The active input latents of these tokens, one token after the other."""
        counts = self.counts(token)
        shift = self.offsets[token] - (np.cumsum(counts) - counts)
        found: Int64[np.ndarray, "coactive"] = self.latent[np.repeat(shift, counts) + np.arange(int(counts.sum()))]
        return found


class BlockRows:
    """The rows of one block in its open file; see `open_rows`."""

    def __init__(self, path: Path, header: dict[str, Any], reader: Any) -> None:
        self._path, self._header, self._reader = path, header, reader
        self._firsts = np.array(header["first_out_latents"], np.int64)

    @property
    def widths(self) -> tuple[int, int]:
        """One more than the largest output and input latent."""
        out, in_ = self._header["widths"]
        return int(out), int(in_)

    @property
    def largest(self) -> float:
        """The largest stored |J|."""
        return float(self._header["largest"])

    @property
    def thresholded(self) -> bool:
        """Whether entries of the block were dropped; only then it has `codes`."""
        return bool(self._header["thresholded"])

    def strip(self, outs: range) -> Iterator[Rows]:
        """The rows of these output latents, a record batch at a time."""
        start = max(int(np.searchsorted(self._firsts, outs.start, "left")) - 1, 0)
        stop = int(np.searchsorted(self._firsts, outs.stop, "left"))
        for number in range(start, stop):
            rows = _rows(self._reader.get_batch(number), outs)
            if len(rows.out_latent):
                yield rows

    def codes(self) -> Codes:
        """The active input latents of every token."""
        path = self._path.with_name(self._path.name.removesuffix(ROWS_SUFFIX) + CODES_SUFFIX)
        with pa.OSFile(str(path), "r") as file, pa.ipc.open_file(file) as reader:
            lists: Any = reader.get_batch(0).column("in_latent")
            return Codes(lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy().astype(np.int64))


def _rows(batch: Any, outs: range) -> Rows:
    out = batch.column("out_latent").to_numpy()
    wanted = slice(*np.searchsorted(out, [outs.start, outs.stop]))
    inputs, values = batch.column("in_latent"), batch.column("value")
    offsets = inputs.offsets.to_numpy()
    entries = slice(offsets[wanted.start], offsets[wanted.stop])
    return Rows(
        out[wanted], batch.column("token").to_numpy()[wanted], np.diff(offsets[wanted.start : wanted.stop + 1]),
        inputs.values.to_numpy()[entries].astype(np.int64), values.values.to_numpy()[entries].copy(),
    )  # fmt: skip


def rows_folder(lake: Lake, run_id: str) -> Path:
    """Where the rows of a run in progress are kept: its work folder, or this machine's cache for a lake in a store."""
    work = lake.work_folder(run_id)
    return work / "pairs" if isinstance(work, Path) else cache_folder() / "pairs" / run_id


@contextmanager
def open_rows(folder: Path, marker: BlockMarker) -> Iterator[BlockRows | None]:
    """The rows of a block; None where there is no file, or one that was not made of these entries."""
    path = folder / f"{marker.block_id}{ROWS_SUFFIX}"
    with ExitStack() as held:
        try:
            file = held.enter_context(pa.OSFile(str(path), "r"))
            reader = pa.ipc.open_file(file)
            header = json.loads((reader.schema.metadata or {}).get(HEADER, b"{}"))
        except (OSError, pa.ArrowException, ValueError):
            header = {}
        digest = marker.parts["jacobian_entries"].sha256
        known = header.get("version") == VERSION and header.get("entries_sha256") == digest
        yield BlockRows(path, header, reader) if known else None
