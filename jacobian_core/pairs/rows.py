"""A block's entries once more, output latent first: what the sums of pairs are made from.

Published entries stand token by token, as they were computed. The sums of a pair need all of its entries, so each block
also leaves its entries sorted by output latent in the run's work folder, until the run is published (`sorting.py`). A
file holds record batches of about 32,000 entries, and says which output latent each begins with, so that a strip of
output latents is read from any number of blocks without reading the rest.

A file carries the digest of the entries that it was made of, and counts only for a block whose marker names the same.
Of a run that does not keep entries these files are all there is of the entries, until groups of blocks are summed
(`levels.py`): they are placed before the block's marker, and named by their digest, so that none replaces another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64, Shaped, UInt32

from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.resources import cache_folder

VERSION = 2
HEADER = b"jacobian_flows.rows"
LATENTS_HEADER = b"jacobian_flows.latents"
"""Where a file of a run that does not keep active latents has their sums (`latent_bytes.py`)."""
ROWS_SUFFIX, CODES_SUFFIX = ".arrow", "-codes.arrow"
DIGEST_DIGITS = 12
COACTIVE_AS_ONE = 4
"""So many coactive pairs take the memory of one entry while they are counted."""


@dataclass(frozen=True)
class Facts:
    """What is known of entries without reading them: how many tokens they are of, the sizes of |J|, widths.

    Widths are one more than the largest output and input latent; `smallest` is that of values other than 0.
    """

    tokens: int = 0
    largest: float = 0.0
    smallest: float = math.inf
    widths: tuple[int, int] = (0, 1)
    thresholded: bool = False

    def __or__(self, other: Facts) -> Facts:
        """The facts of both together."""
        return Facts(
            self.tokens + other.tokens, max(self.largest, other.largest), min(self.smallest, other.smallest),
            (max(self.widths[0], other.widths[0]), max(self.widths[1], other.widths[1])),
            self.thresholded or other.thresholded,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """As a header has them."""
        return {name: value for name, value in asdict(self).items() if value != math.inf}

    @classmethod
    def of(cls, header: dict[str, Any]) -> Facts:
        """From a header that has them among others."""
        return cls(
            header["tokens"], header["largest"], header.get("smallest", math.inf), tuple(header["widths"]),
            header["thresholded"],
        )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Entries of some output latents in one block, by output latent, then token.

    A row is one active output latent at one token (an ordinal in its block); `lengths` is how many entries it has,
    which may be none where entries were dropped.
    """

    out_latent: UInt32[np.ndarray, "rows"]
    token: Int32[np.ndarray, "rows"]
    lengths: Int32[np.ndarray, "rows"]
    in_latent: Shaped[np.ndarray, "entries"]
    value: Float32[np.ndarray, "entries"]


@dataclass(frozen=True)
class Codes:
    """The active input latents of a block's tokens, one after the other; token t has those in offsets[t:t+2]."""

    offsets: Int32[np.ndarray, "tokens_plus_1"]
    latent: Shaped[np.ndarray, "active"]

    def counts(self, token: Int32[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
        """How many input latents are active at each of these tokens."""
        found: Int64[np.ndarray, "rows"] = (self.offsets[token + 1] - self.offsets[token]).astype(np.int64)
        return found

    def of(self, token: Int32[np.ndarray, "rows"]) -> Shaped[np.ndarray, "coactive"]:
        """The active input latents of these tokens, one token after the other."""
        counts = self.counts(token)
        shift = self.offsets[token] - (np.cumsum(counts) - counts)
        found: Shaped[np.ndarray, "coactive"] = self.latent[np.repeat(shift, counts) + np.arange(int(counts.sum()))]
        return found


class BlockRows:
    """The rows of one block in its open file; see `open_rows`."""

    def __init__(self, path: Path, header: dict[str, Any], reader: Any) -> None:
        self._path, self._header, self._reader = path, header, reader
        self._firsts = np.array(header["first_out_latents"], np.int64)

    @property
    def facts(self) -> Facts:
        """What is known of the block's entries; only if some were dropped (`thresholded`) it has `codes`."""
        return Facts.of(self._header)

    @property
    def latents(self) -> bytes:
        """The sums of the block's active latents, packed; empty where these are kept."""
        return bytes((self._reader.schema.metadata or {}).get(LATENTS_HEADER, b""))

    def room_by_out(self, n_out: int) -> Int64[np.ndarray, "n_out"]:
        """How many entries each output latent has, or as many as its coactive pairs take the memory of."""
        stored, coactive = np.zeros(n_out, np.int64), np.zeros(n_out, np.int64)
        codes = self.codes() if self.facts.thresholded else None
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            out, counts = batch.column("out_latent").to_numpy(), np.diff(batch.column("in_latent").offsets.to_numpy())
            stored += np.bincount(out, counts, n_out).astype(np.int64)
            if codes is not None:
                counts = codes.counts(batch.column("token").to_numpy())
                coactive += np.bincount(out, counts, n_out).astype(np.int64)
        return np.maximum(stored, coactive // COACTIVE_AS_ONE)

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
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:  # few tokens of it are looked at
            lists: Any = reader.get_batch(0).column("in_latent")
            return Codes(lists.offsets.to_numpy(), lists.values.to_numpy())


def _rows(batch: Any, outs: range) -> Rows:
    """Copies, so that no more of the batch is held than these."""
    out = batch.column("out_latent").to_numpy()
    wanted = slice(*np.searchsorted(out, [outs.start, outs.stop]))
    inputs, values = batch.column("in_latent"), batch.column("value")
    offsets = inputs.offsets.to_numpy()
    entries = slice(offsets[wanted.start], offsets[wanted.stop])
    return Rows(
        out[wanted].copy(), batch.column("token").to_numpy()[wanted].copy(),
        np.diff(offsets[wanted.start : wanted.stop + 1]),
        inputs.values.to_numpy()[entries].copy(), values.values.to_numpy()[entries].copy(),
    )  # fmt: skip


def rows_folder(lake: Lake, run_id: str) -> Path:
    """Where the rows of a run in progress are kept: its work folder, or this machine's cache for a lake in a store."""
    work = lake.work_folder(run_id)
    return work / "pairs" if isinstance(work, Path) else cache_folder() / "pairs" / run_id


def rows_name(marker: BlockMarker) -> str:
    """What the files of a block's rows are called, without their suffixes."""
    digest = marker.entries_sha256
    return marker.block_id if digest is None else f"{marker.block_id}-{digest[:DIGEST_DIGITS]}"


@contextmanager
def open_rows(folder: Path, marker: BlockMarker) -> Iterator[BlockRows | None]:
    """The rows of a block; None where there is no file, or one that was not made of these entries."""
    path = folder / f"{rows_name(marker)}{ROWS_SUFFIX}"
    with ExitStack() as held:
        try:
            file = held.enter_context(pa.OSFile(str(path), "r"))
            reader = pa.ipc.open_file(file)
            header = json.loads((reader.schema.metadata or {}).get(HEADER, b"{}"))
        except (OSError, pa.ArrowException, ValueError):
            header = {}
        known = header.get("version") == VERSION and header.get("entries_sha256") == marker.entries_digest
        yield BlockRows(path, header, reader) if known else None


@contextmanager
def opened_rows(folder: Path, marker: BlockMarker) -> Iterator[BlockRows]:
    """The rows of a block, which must be there; LakeError where they are not."""
    with open_rows(folder, marker) as rows:
        if rows is None:
            problem = f"{folder}: the rows of block {marker.block_id} are gone, or were changed meanwhile."
            raise LakeError(problem, "Start the same command again.")
        yield rows
