"""Exact sums of J over tokens for active outputs and every input latent (scope 'all_inputs').

A token's active rows of J against all inputs are one GEMM, `(rows * slopes) D^T`, added to accumulators and
forgotten. Sums are kept as 64-bit integers in a fixed unit, so they do not depend on the order of tokens, blocks or
workers: any grouping of the same chunks gives the same bits. The unit leaves room for 2^20 tokens of the largest J that
the weights allow, about 1e-11 for usual ones. `partial_sums.py` keeps and merges them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.config import AllInputsConfig, RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.model.affine import Affine
from jacobian_core.numerics.device import PairTotals
from jacobian_core.numerics.jacobian import JacobianKernel
from jacobian_core.numerics.partial_sums import Partial, Units, keep_largest
from jacobian_core.numerics.precision import kept, operand
from jacobian_core.numerics.scratch import scratch
from jacobian_core.numerics.state import SandwichState

BYTES_PER_PAIR = 3 * 8 + 4 + 4
GROUP_TOKENS = 1 << 20
"""Tokens of one partial sum for which its integers can't overflow."""
_INTEGER_BITS = 62
_ROWS_FLOATS = 4 << 20
"""Elements of J that are made at once: some hundred rows, so that D is read seldom."""
_CACHED_FLOATS = 128 << 10
"""Elements of J that are added at once: in float64 a megabyte, which stays in a core's cache."""
_ROOM = 256.0


def bound(kernel: JacobianKernel) -> float:
    """Larger |J[i, j]| are refused: `max_i |E_i| max_j |D_j| max |phi'|`, by Cauchy and Schwarz.

    The largest |phi'| is taken on a grid of pre-activations; beyond it all known activation functions are straight or
    flat. Three factors have no bound of their own, and are taken as `_ROOM`: the derivative of ReLU^2, the linear path
    of a gated MLP, and what a norm (behind the MLP or around the input SAE) divides by.
    """
    neurons = kernel.mlp.neurons
    z = torch.linspace(-32, 32, 4097, dtype=torch.float64)
    slope = float(neurons.activation.first(z).abs().max())
    lengths = kernel.E.double().norm(dim=1).max() * kernel.D.double().norm(dim=1).max()
    unbounded = neurons.activation.name == "relu_squared"
    open_ended = unbounded or neurons.channels > 1 or kernel.mlp.norm is not None or kernel.input_norm
    room = _ROOM if open_ended else 1.0
    return max(float(lengths) * slope * room, torch.finfo(torch.float32).tiny)


def units(kernel: JacobianKernel) -> Units:
    """Powers of two that keep `GROUP_TOKENS` of the largest possible J within 62 bits."""
    room = _INTEGER_BITS - math.log2(GROUP_TOKENS)
    largest = math.log2(bound(kernel))
    return Units(2.0 ** math.floor(room - largest), 2.0 ** math.floor(room - 2 * largest))


def tile_rows(n_out: int, tiles: int, tile: int) -> range:
    """The output latents of one of `tiles` nearly equal tiles."""
    return range(n_out * tile // tiles, n_out * (tile + 1) // tiles)


def accumulator_bytes(n_out: int, n_in: int, tiles: int) -> int:
    """Memory of the accumulators on the device."""
    return math.ceil(n_out / tiles) * n_in * BYTES_PER_PAIR


def refuse_too_large(n_out: int, n_in: int, settings: AllInputsConfig) -> None:
    """ConfigError where the accumulators do not fit; it names the number of tiles that would."""
    needed = accumulator_bytes(n_out, n_in, settings.tiles)
    if needed > settings.max_memory_bytes:
        tiles = math.ceil(accumulator_bytes(n_out, n_in, 1) / settings.max_memory_bytes)
        raise ConfigError(
            f"scope 'all_inputs' needs {needed / 2**30:.2f} GiB of accumulators for {n_out} x {n_in} latents, more "
            f"than all_inputs.max_memory_bytes = {settings.max_memory_bytes / 2**30:.2f} GiB.",
            f"Set all_inputs.tiles={tiles} (each tile is one more pass over the text), or allow more memory.",
        )


def check_settings(config: RunConfig, n_out: int, n_in: int) -> None:
    """ConfigError where the accumulators do not fit in memory, or a group can hold too many tokens for its integers."""
    if config.jacobian.scope != "all_inputs":
        return
    refuse_too_large(n_out, n_in, config.all_inputs)
    # A block closes with the document that fills it, so it can be twice as large with documents of a context each.
    largest = config.corpus.block_tokens + config.corpus.context_tokens
    if config.corpus.packing == "document" and config.all_inputs.group_blocks * largest > GROUP_TOKENS:
        raise ConfigError(
            f"all_inputs.group_blocks = {config.all_inputs.group_blocks} blocks of up to {largest} tokens are more "
            f"than the {GROUP_TOKENS} tokens of a partial sum.",
            f"Set all_inputs.group_blocks={GROUP_TOKENS // largest} or less.",
        )


class Accumulator:
    """Sums of one tile of output latents. `add` takes chunks in any order; `partial` is what has been added."""

    def __init__(self, kernel: JacobianKernel, rows: range) -> None:
        device, shape, unit = kernel.E.device, (len(rows), kernel.D.shape[0]), units(kernel)
        self._kernel, self._rows = kernel, rows
        self._n_out = torch.zeros(len(rows), dtype=torch.int64, device=device)
        self._n_coactive = torch.zeros(shape, dtype=torch.int32, device=device)
        total, total_abs, total_sq = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(3))
        max_abs = torch.zeros(shape, dtype=torch.float32, device=device)
        self._totals = PairTotals(total, total_abs, total_sq, max_abs, unit.value, unit.square)
        self._sums = None if kernel.device is None else kernel.device.row_sums(self._totals, rows.start)
        self._times_directions = None  # else the device's kernels round and multiply
        if self._sums is None:
            self._times_directions = Affine.of(operand(kept(kernel.D, kernel.precision), kernel.precision), None)
        self._tokens = 0

    @torch.no_grad()
    def add(self, state: SandwichState) -> None:
        """Add a chunk of tokens. OverflowError beyond `GROUP_TOKENS` tokens."""
        self._tokens += state.z.shape[0]
        if self._tokens > GROUP_TOKENS:
            raise OverflowError(f"a partial sum holds at most {GROUP_TOKENS} tokens")
        mine = (state.outputs.index >= self._rows.start) & (state.outputs.index < self._rows.stop)
        token, slot = torch.nonzero(state.outputs.active & mine, as_tuple=True)
        row = state.outputs.index[token, slot] - self._rows.start
        self._n_out.index_add_(0, row, torch.ones_like(row))
        slopes = self._kernel.slopes(state)
        if self._sums is not None:
            self._sums.add(slopes, token, row)
        if self._times_directions is not None:
            self._add(state, slopes, token, row, self._times_directions)
        self._count_coactive(state, token, row)

    def _add(
        self,
        state: SandwichState,
        slopes: Float[Tensor, "tokens d_state"],
        token: Int64[Tensor, "active"],
        row: Int64[Tensor, "active"],
        times_directions: Affine,
    ) -> None:
        kernel = self._kernel
        step = max(1, _ROWS_FLOATS // kernel.D.shape[0])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            rows = kept(kernel.rows(state, token[part], row[part] + self._rows.start), kernel.precision)
            read = rows.repeat(1, kernel.mlp.neurons.channels) * slopes[token[part]]
            J = times_directions(operand(read, kernel.precision))
            few = max(1, _CACHED_FLOATS // J.shape[1])
            for some in range(0, len(J), few):
                self._add_rows(row[part][some : some + few], J[some : some + few])

    def _add_rows(self, row: Int64[Tensor, "active"], J: Float[Tensor, "active n_in"]) -> None:
        into, shape = self._totals, tuple(J.shape)
        exact, steps = scratch("J", shape, J.new_empty(0, dtype=torch.float64)), scratch("steps", shape, into.sum)
        exact.copy_(J).mul_(into.value_unit).round_()
        into.sum.index_add_(0, row, steps.copy_(exact))
        into.sum_abs.index_add_(0, row, steps.abs_())
        exact.copy_(J).square_().mul_(into.square_unit).round_()
        into.sum_sq.index_add_(0, row, steps.copy_(exact))
        keep_largest(into.max_abs, row, J.abs().float())

    def _count_coactive(
        self, state: SandwichState, token: Int64[Tensor, "active"], row: Int64[Tensor, "active"]
    ) -> None:
        active = state.inputs.active[token]
        pair = (row[:, None] * self._kernel.D.shape[0] + state.inputs.index[token])[active]
        self._n_coactive.view(-1).index_add_(0, pair, torch.ones_like(pair, dtype=torch.int32))

    def partial(self) -> Partial:
        """The rows of output latents that were active at least once, on the CPU.

        FloatingPointError where a |J| is larger than `bound`, so that the integers may have overflowed.
        """
        if self._sums is not None:
            self._sums.flush()
        totals = self._totals
        largest = float(totals.max_abs.max()) if totals.max_abs.numel() else 0.0
        if not largest <= bound(self._kernel):
            raise FloatingPointError(f"|J| = {largest:.3g} is not finite, or too large for scope 'all_inputs'")
        seen = torch.nonzero(self._n_out).flatten()

        def rows(tensor: Tensor) -> Tensor:
            return tensor[seen].cpu()

        return Partial(
            (seen + self._rows.start).cpu(), rows(self._n_out), rows(self._n_coactive), rows(totals.sum),
            rows(totals.sum_abs), rows(totals.sum_sq), rows(totals.max_abs),
        )  # fmt: skip
