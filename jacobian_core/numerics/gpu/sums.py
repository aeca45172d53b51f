"""Sums of J over tokens by the Triton kernel: rows of J are held back until there are many, then grouped by latent.

A product over the tokens of one output latent is only quick where there are many of them, and a chunk of 512 tokens has
one or two for each of 16384 latents. So what J needs of a token (its slopes) is kept until `HELD_BYTES` of it have
gathered. Sums of whole steps do not depend on how tokens were grouped.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.numerics.device import PairTotals
from jacobian_core.numerics.precision import Precision

HELD_BYTES = 512 << 20
BLOCK_TOKENS, BLOCK_IN, BLOCK_MLP, GROUP, WARPS = 64, 128, 32, 8, 8
"""Compiled for Hopper, four warps would keep 1.2 KB a thread in memory; eight keep less than 0.1 KB, or none."""


class LatentSums:
    """Adds rows of J to totals; see `RowSums`. `E` begins at the totals' first row."""

    def __init__(
        self,
        E: Float[Tensor, "rows d_mlp"],
        D: Float[Tensor, "n_in d_state"],
        channels: int,
        precision: Precision,
        into: PairTotals,
    ) -> None:
        self._E, self._D, self._channels, self._precision, self._into = E, D, channels, precision, into
        self._unit = torch.tensor([into.value_unit, into.square_unit], dtype=torch.float64, device=D.device)
        self._slopes: list[Tensor] = []
        self._token: list[Tensor] = []
        self._row: list[Tensor] = []
        self._held = 0

    def add(
        self,
        slopes: Float[Tensor, "tokens d_state"],
        token: Int64[Tensor, "active"],
        row: Int64[Tensor, "active"],
    ) -> None:
        """Hold a chunk's rows of J until they are worth a launch."""
        self._slopes.append(slopes)
        self._token.append(token + self._held)
        self._row.append(row)
        self._held += len(slopes)
        if self._held * slopes.shape[1] * slopes.element_size() >= HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Add all that is held back."""
        if not self._slopes:
            return
        row, order = torch.sort(torch.cat(self._row), stable=True)
        if len(row):
            self._launch(torch.cat(self._slopes), torch.cat(self._token)[order], row)
        self._slopes, self._token, self._row, self._held = [], [], [], 0

    def _launch(
        self,
        slopes: Float[Tensor, "tokens d_state"],
        token: Int64[Tensor, "active"],
        row: Int64[Tensor, "active"],
    ) -> None:
        """Add rows of J that are sorted by row; the longest segments go first, so that none is begun last."""
        from jacobian_core.numerics.gpu.sums_kernel import latent_sums

        rows, tokens = torch.unique_consecutive(row, return_counts=True)
        start = tokens.cumsum(0) - tokens
        tokens, longest = torch.sort(tokens, descending=True, stable=True)
        rows, start = rows[longest], start[longest]
        into, n_in = self._into, self._D.shape[0]
        tiles = -(-n_in // BLOCK_IN)
        with torch.cuda.device_of(self._D):  # type: ignore[no-untyped-call]
            latent_sums[(len(rows) * tiles,)](
                self._E, self._D, slopes, token, rows, start, tokens, self._unit,
                into.sum, into.sum_abs, into.sum_sq, into.max_abs,
                len(rows), n_in, self._E.shape[1], tiles,
                CHANNELS=self._channels, PRECISION=self._precision, GROUP=GROUP,
                BLOCK_TOKENS=BLOCK_TOKENS, BLOCK_IN=BLOCK_IN, BLOCK_MLP=BLOCK_MLP, num_warps=WARPS,
            )  # fmt: skip
