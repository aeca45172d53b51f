"""What a device's own kernels can do for the Jacobian: the seam between the formulas and `numerics/gpu`.

Where a `JacobianKernel` carries such products they are used, and its own batched products otherwise; nothing else needs
to know which. They exist for MLPs without a norm behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float32, Int64
from torch import Tensor


@dataclass(frozen=True)
class PairTotals:
    """The running sums over tokens of some output latents (rows) and all input latents, added to in place.

    J and J^2 are multiplied by `value_unit` and `square_unit` (powers of two) and rounded to whole steps.
    """

    sum: Int64[Tensor, "rows n_in"]
    sum_abs: Int64[Tensor, "rows n_in"]
    sum_sq: Int64[Tensor, "rows n_in"]
    max_abs: Float32[Tensor, "rows n_in"]
    value_unit: float
    square_unit: float


@runtime_checkable
class RowSums(Protocol):
    """Adds rows of J to totals; may hold rows back until `flush`."""

    def add(
        self,
        slopes: Float[Tensor, "tokens d_state"],
        token: Int64[Tensor, "active"],
        row: Int64[Tensor, "active"],
    ) -> None:
        """Add J of each (token, row) against all input latents."""
        ...

    def flush(self) -> None:
        """Add what was held back."""
        ...


@runtime_checkable
class DeviceProducts(Protocol):
    """Products over gathered rows of E and D, formed on a device without keeping the gathered rows."""

    def first(
        self,
        slopes: Float[Tensor, "tokens d_state"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
    ) -> Float[Tensor, "tokens k_out k_in"]:
        """J of every selected pair."""
        ...

    def second(
        self,
        curvatures: Float[Tensor, "tokens d_state"],
        out_index: Int64[Tensor, "tokens k_out"],
        in_index: Int64[Tensor, "tokens k_in"],
    ) -> Float[Tensor, "tokens k_out k_in"]:
        """The second derivative of every selected pair."""
        ...

    def row_sums(self, into: PairTotals, first_row: int) -> RowSums:
        """What adds rows of J to totals whose first row is output latent `first_row`."""
        ...
