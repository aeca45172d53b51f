"""Sums by pair over a group of blocks, in a file: what takes the place of their rows where entries are not kept.

Sums are exact (digits of 32 bits at fixed places, `numerics/pair_digits.py`), so files can be summed again, in any
grouping. A file is a record batch for every few output latents, in their order, so that a strip is read without the
rest. Its columns are lists of different lengths, one a batch, as pairs with a single entry have no digits. The digits'
places are fixed before the first batch is written, by the sizes of the values. LZ4 takes 13 bytes a pair, zstd 11, in
twice the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from jacobian_core.errors import LakeError
from jacobian_core.numerics.pair_digits import Digits, PairDigits, highest_place, lowest_place
from jacobian_core.pairs.rows import HEADER, LATENTS_HEADER, Facts

SUMS_SUFFIX = ".sums"
VERSION = 1
_BATCH_CELLS = 1 << 20
_MOST_INT32 = (1 << 31) - 1
_SUMS = ("sum", "sum_abs", "sum_sq")


class SumsFile:
    """An open file of sums; see `open_sums`."""

    def __init__(self, header: dict[str, Any], reader: Any) -> None:
        self._header, self._reader = header, reader

    @property
    def facts(self) -> Facts:
        """What is known of the summed entries."""
        return Facts.of(self._header)

    @property
    def latents(self) -> bytes:
        """The sums of active latents, packed; empty where these are kept."""
        return bytes((self._reader.schema.metadata or {}).get(LATENTS_HEADER, b""))

    def pairs(self, outs: range, n_in: int) -> Iterator[PairDigits]:
        """The pairs of these output latents; cells begin with the first of them."""
        step, width = int(self._header["batch_outs"]), self.facts.widths[1]
        for number in range(outs.start // step, min(-(-outs.stop // step), self._reader.num_record_batches)):
            found = _pairs(self._reader.get_batch(number))
            out, in_ = np.divmod(found.cell, width)
            out += number * step - outs.start
            found = replace(found, cell=out * n_in + in_)
            inside = (out >= 0) & (out < len(outs))
            yield found if bool(inside.all()) else _some(found, inside)


@contextmanager
def open_sums(path: Path) -> Iterator[SumsFile]:
    """Open a file of sums; LakeError where it can't be read."""
    try:
        with pa.OSFile(str(path), "r") as file, pa.ipc.open_file(file) as reader:
            header = json.loads((reader.schema.metadata or {}).get(HEADER, b"{}"))
            if header.get("version") != VERSION:
                raise ValueError("it has another version")
            yield SumsFile(header, reader)
    except (OSError, pa.ArrowException, ValueError) as error:
        problem = f"{path}: the sums can't be read ({error})."
        raise LakeError(problem, "Remove the file and start the same command again.") from error


def _pairs(batch: Any) -> PairDigits:
    """The rows of a batch, its columns being lists of their own lengths; cells begin with the batch."""

    def column(name: str) -> Int64[np.ndarray, "rows"]:
        found: Int64[np.ndarray, "rows"] = batch.column(name).values.to_numpy().astype(np.int64)
        return found

    digits: tuple[Digits, Digits, Digits] = ({}, {}, {})
    for of, each in zip(_SUMS, digits, strict=True):
        each.update(
            {int(name[len(of) + 1 :]): column(name) for name in batch.schema.names if name.startswith(f"{of}@")}
        )
    n_stored = column("n_stored")
    n_coactive = column("n_coactive") if "n_coactive" in batch.schema.names else n_stored
    several = batch.column("several")[0].as_py()
    return PairDigits(column("cell"), n_coactive, n_stored, batch.column("value").values.to_numpy(), several, digits)


def _some(pairs: PairDigits, wanted: Bool[np.ndarray, "rows"]) -> PairDigits:
    several = wanted[: pairs.several]
    of_sum, of_abs, of_sq = ({place: digit[several] for place, digit in each.items()} for each in pairs.digits)
    return PairDigits(
        pairs.cell[wanted], pairs.n_coactive[wanted], pairs.n_stored[wanted], pairs.value[wanted], int(several.sum()),
        (of_sum, of_abs, of_sq),
    )  # fmt: skip


class SumsWriter:
    """Writes the sums of entries with these facts into an open file, strip by strip in their order.

    A strip is `outs` output latents, the last one less. `latents` are the sums of active latents, packed.
    """

    def __init__(self, file: Any, facts: Facts, latents: bytes = b"") -> None:
        self.outs = max(1, _BATCH_CELLS // facts.widths[1])
        self._n_in = facts.widths[1]
        header = {"version": VERSION, "batch_outs": self.outs, **facts.record()}
        self._schema = _schema(facts, {HEADER: json.dumps(header).encode(), LATENTS_HEADER: latents})
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(file, self._schema, options=options)

    def write(self, pairs: PairDigits) -> None:
        """Write the next strip."""
        columns: dict[str, Any] = {
            "cell": pairs.cell, "n_coactive": pairs.n_coactive, "n_stored": pairs.n_stored, "value": pairs.value
        }  # fmt: skip
        for name, digits in zip(_SUMS, pairs.digits, strict=True):
            columns |= {f"{name}@{place}": digit for place, digit in digits.items()}
        if unknown := [name for name in columns if "@" in name and name not in self._schema.names]:
            raise OverflowError(f"sums have digits at {unknown}, where none were expected")
        none = np.zeros(pairs.several, np.int32)
        arrays = [pa.array([pairs.several], pa.int32())]
        arrays += [_list(columns.get(field.name, none), field.type) for field in list(self._schema)[1:]]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file; the file itself stays open."""
        self._writer.close()


def _list(column: Any, of_type: Any) -> Any:
    """A column as a single list."""
    lists: Any = pa.ListArray
    values = pa.array(column).cast(of_type.value_type)
    return lists.from_arrays(pa.array([0, len(column)], pa.int32()), values)


def _schema(facts: Facts, metadata: dict[bytes | str, bytes | str]) -> pa.Schema:
    """The columns of sums; `n_coactive` only where it is not `n_stored`, and a column for each digit that can be."""
    counts = pa.int32() if facts.tokens <= _MOST_INT32 else pa.int64()
    fields: list[tuple[str, Any]] = [
        ("cell", pa.uint32()),
        *([("n_coactive", counts)] if facts.thresholded else []),
        ("n_stored", counts),
        ("value", pa.float32()),
    ]
    for name in _SUMS if facts.largest else ():
        square = name == "sum_sq"
        places = range(highest_place(facts.tokens, facts.largest, square), lowest_place(facts.smallest, square) - 1, -1)
        fields += [(f"{name}@{place}", pa.int32()) for place in places]
    lists = [("several", pa.int32()), *((name, pa.list_(of)) for name, of in fields)]
    return pa.schema(lists, metadata=metadata)
