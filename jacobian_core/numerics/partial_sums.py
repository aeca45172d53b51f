"""Sums over the tokens of a group of blocks, for every input latent (scope 'all_inputs'): kept as files, and merged.

They are integers in a fixed unit (`all_inputs.py` makes them), merged in two limbs: exact for any number of groups, and
rounded to float64 at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from jacobian_core.lake.paths import LakePath


@dataclass(frozen=True)
class Units:
    """What one step of the integer sums is worth: J and J^2 are multiplied by these and rounded."""

    value: float
    square: float


@dataclass(frozen=True)
class Partial:
    """Sums over some tokens for the output latents `out_latent` (rows) and all input latents."""

    out_latent: Int64[Tensor, "rows"]
    n_out_active: Int64[Tensor, "rows"]
    n_coactive: Int32[Tensor, "rows n_in"]
    sum: Int64[Tensor, "rows n_in"]
    sum_abs: Int64[Tensor, "rows n_in"]
    sum_sq: Int64[Tensor, "rows n_in"]
    max_abs: Float32[Tensor, "rows n_in"]


def save_partial(partial: Partial, path: LakePath) -> None:
    """Keep a partial sum as safetensors; the file appears whole or not at all."""
    from safetensors.torch import save

    from jacobian_core.lake.files import write_atomic

    write_atomic(path, save({f.name: getattr(partial, f.name).contiguous() for f in fields(Partial)}))


def load_partial(path: LakePath) -> Partial:
    """A kept partial sum."""
    from safetensors.torch import load_file

    from jacobian_core.lake.files import on_disk

    with on_disk(path) as copy:
        return Partial(**load_file(str(copy)))


class ExactSum:
    """A sum of int64 tensors that can't overflow: the low 32 bits and the rest are added apart."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._low = torch.zeros(shape, dtype=torch.int64)
        self._high = torch.zeros(shape, dtype=torch.int64)

    def add(self, rows: Int64[Tensor, "rows"], value: Int64[Tensor, "rows n_in"]) -> None:
        """Add to some rows; exact for 2^31 additions."""
        self._low.index_add_(0, rows, value & 0xFFFFFFFF)
        self._high.index_add_(0, rows, value >> 32)

    def scaled(self, unit: float) -> Float[Tensor, "rows n_in"]:
        """The sum over the unit (a power of two), rounded once or twice to float64."""
        carry = self._low >> 32
        high, low = self._high + carry, self._low & 0xFFFFFFFF
        return (high.double() * 2.0**32 + low.double()) / unit


@dataclass(frozen=True)
class PairSums:
    """Merged sums of some output latents: float64 sums, and counts of tokens."""

    out_latent: Int64[Tensor, "rows"]
    n_out_active: Int64[Tensor, "rows"]
    n_coactive: Int64[Tensor, "rows n_in"]
    sum: Float[Tensor, "rows n_in"]
    sum_abs: Float[Tensor, "rows n_in"]
    sum_sq: Float[Tensor, "rows n_in"]
    max_abs: Float32[Tensor, "rows n_in"]


def merge(partials: list[Partial], rows: range, n_in: int, unit: Units) -> PairSums:
    """The sums over all partial sums for the output latents in `rows` that were ever active.

    A sum of magnitudes is never below its largest term, not even where that is below the unit.
    """
    shape = (len(rows), n_in)
    total, total_abs, total_sq = ExactSum(shape), ExactSum(shape), ExactSum(shape)
    n_out = torch.zeros(len(rows), dtype=torch.int64)
    n_coactive = torch.zeros(shape, dtype=torch.int64)
    max_abs = torch.zeros(shape)
    for part in partials:
        inside = (part.out_latent >= rows.start) & (part.out_latent < rows.stop)
        at = part.out_latent[inside] - rows.start
        n_out.index_add_(0, at, part.n_out_active[inside])
        n_coactive.index_add_(0, at, part.n_coactive[inside].long())
        total.add(at, part.sum[inside])
        total_abs.add(at, part.sum_abs[inside])
        total_sq.add(at, part.sum_sq[inside])
        keep_largest(max_abs, at, part.max_abs[inside])
    seen = torch.nonzero(n_out).flatten()
    largest = max_abs.double()[seen]
    count = n_out[seen][:, None].double()
    # Rounding to the unit must not take the sums out of what any n numbers obey.
    sum_abs = torch.maximum(total_abs.scaled(unit.value)[seen], largest).minimum(count * largest)
    sum_sq = torch.maximum(total_sq.scaled(unit.square)[seen], largest.square())
    sum_sq = torch.maximum(sum_sq, sum_abs.square() / count).minimum(sum_abs * largest)
    return PairSums(
        seen + rows.start, n_out[seen], n_coactive[seen], total.scaled(unit.value)[seen].clamp(-sum_abs, sum_abs),
        sum_abs, sum_sq, max_abs[seen],
    )  # fmt: skip


def keep_largest(
    into: Float32[Tensor, "rows n_in"], row: Int64[Tensor, "more"], value: Float32[Tensor, "more n_in"]
) -> None:
    """Raise some rows to `value` where that is larger; a row can come several times."""
    into.scatter_reduce_(0, row[:, None].expand_as(value), value, "amax")
