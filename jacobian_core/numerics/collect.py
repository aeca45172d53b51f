"""From a chunk's J on its device to columns on the host: the entries, and the codes that the tables show.

On a CPU everything is there already. A device compacts first (`gpu/compaction.py`), so only what is stored crosses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from jacobian_core.numerics.codes import Codes
from jacobian_core.numerics.coo import Entries, Thresholds, to_entries
from jacobian_core.numerics.state import SandwichState


@dataclass(frozen=True)
class Collected:
    """A chunk on the host."""

    entries: Entries
    inputs: Codes
    outputs: Codes


@runtime_checkable
class Collector(Protocol):
    """Brings chunks to the host."""

    def collect(
        self,
        J: Float[Tensor, "tokens k_out k_in"],
        K: Float[Tensor, "tokens k_out k_in"] | None,
        state: SandwichState,
        thresholds: Thresholds,
    ) -> Collected:
        """The stored entries and the codes of a chunk. FloatingPointError if an entry is not finite."""
        ...


class HostCollector:
    """For what is on the host already."""

    def collect(
        self,
        J: Float[Tensor, "tokens k_out k_in"],
        K: Float[Tensor, "tokens k_out k_in"] | None,
        state: SandwichState,
        thresholds: Thresholds,
    ) -> Collected:
        """See `Collector`."""
        entries = to_entries(J, K, state.outputs, state.inputs, thresholds)
        return Collected(entries, state.inputs, state.outputs)
