"""COO columns made on the device: prefix sums give every stored pair its place, one scatter a column puts it there.

Boolean indexing would make the host wait once a column, for its length. Here columns are as long as there are pairs
until the number of stored ones is known, which is waited for once; only what is stored then crosses to the host,
indices as int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from jacobian_core.model.transfer import Transfer
from jacobian_core.numerics.codes import Codes
from jacobian_core.numerics.collect import Collected
from jacobian_core.numerics.coo import Entries, Thresholds, every_pair, kept_pairs
from jacobian_core.numerics.state import SandwichState


@dataclass(frozen=True)
class Kept:
    """A chunk's pairs side by side, which of them are stored, and each token's totals by their names in `Entries`."""

    flat: Float[Tensor, "tokens pairs"]
    keep: Bool[Tensor, "tokens pairs"]
    totals: dict[str, Tensor]

    @property
    def finite(self) -> Bool[Tensor, ""]:
        """Whether every entry is finite, on the device."""
        return torch.isfinite(self.totals["abs_sum_total"]).all()


def kept_of(J: Float[Tensor, "tokens k_out k_in"], out: Codes, in_: Codes, thresholds: Thresholds) -> Kept:
    """What of a chunk is stored; totals are over all entries, before any threshold."""
    tokens, k_out, k_in = J.shape
    active = (out.active[:, :, None] & in_.active[:, None, :]).flatten(1)
    flat = J.flatten(1)
    magnitude = torch.where(active, flat, 0).abs()
    exact = magnitude.double()
    keep = kept_pairs(active, magnitude, thresholds)
    totals = {
        "total": active.sum(1),
        "stored": keep.sum(1),
        "abs_sum_total": exact.sum(1),
        "abs_sum_stored": torch.where(keep, exact, 0).sum(1),
        "sq_sum_total": exact.square().sum(1),
        "abs_max": magnitude.amax(1) if k_out * k_in else magnitude.new_zeros(tokens),
    }
    return Kept(flat, keep, totals)


class DeviceCollector:
    """Compacts on the device, then copies beside the computation; see `Collector`."""

    def __init__(self, device: torch.device | str) -> None:
        self._transfer = Transfer(device)

    def collect(
        self,
        J: Float[Tensor, "tokens k_out k_in"],
        K: Float[Tensor, "tokens k_out k_in"] | None,
        state: SandwichState,
        thresholds: Thresholds,
    ) -> Collected:
        """The stored entries and the codes of a chunk. FloatingPointError if an entry is not finite."""
        kept = kept_of(J, state.outputs, state.inputs, thresholds)
        place = places(kept.keep)
        columns = {"value": kept.flat} | ({} if K is None else {"second_derivative": K.flatten(1)})
        columns |= dict(zip(("out_latent", "in_latent"), every_pair(state.outputs, state.inputs), strict=True))
        packed = {name: pack(column, place) for name, column in columns.items()}
        small = kept.totals | _codes("inputs", state.inputs) | _codes("outputs", state.outputs)
        begun = self._transfer.download(small | {"finite": kept.finite})
        few = begun.wait()
        if not bool(few.pop("finite")):
            raise FloatingPointError("a Jacobian entry is not finite")
        count = int(few["stored"].sum())
        host = self._transfer.download({name: column[:count] for name, column in packed.items()}).wait()
        second = host.pop("second_derivative", None)
        entries = Entries(second_derivative=second, **host, **{name: few[name] for name in kept.totals})
        return Collected(entries, _host_codes("inputs", few), _host_codes("outputs", few))


def places(keep: Bool[Tensor, "tokens pairs"]) -> Int64[Tensor, "flat"]:
    """Where each pair goes in a column of the kept ones; all others go to one place behind the last."""
    flat = keep.flatten()
    return torch.where(flat, flat.cumsum(0) - 1, len(flat))


def pack(column: Num[Tensor, "*pairs"], place: Int64[Tensor, "flat"]) -> Num[Tensor, "some"]:
    """The kept elements of a column side by side; what follows them is noise."""
    return column.new_empty(len(place) + 1).scatter_(0, place, column.flatten())


def _codes(side: str, codes: Codes) -> dict[str, Tensor]:
    return {f"{side}.{name}": getattr(codes, name) for name in ("index", "value", "margin")}


def _host_codes(side: str, columns: dict[str, Tensor]) -> Codes:
    return Codes(*(columns[f"{side}.{name}"] for name in ("index", "value", "margin")))
