"""What output latents do when one input latent is changed and everything else is held (DESIGN section 3).

A change of `s_j` by `delta` moves the hidden pre-activations by `delta * D[j]`, so the MLP is evaluated anew at
`z + delta D[j]` without decoding. Two things are computed for each changed latent:

* the change of a pre-activation, `sum_h E[i,h] (phi(z_h + delta D[j,h]) - phi(z_h))`, in float64: the differences that
  matter at J about 0 are far below the round-off of two float32 outputs subtracted;
* the output SAE's selection: a TopK SAE encodes the new MLP output in full, exact, at the price of one token's
  encoding; with thresholds a latent's own pre-activation decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jacobian_core.numerics.codes import Threshold
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState
from jacobian_core.numerics.strata import PairSample

_VARIANTS_AT_ONCE = 64
_DENSE_RATIO = 8
_FLOATS_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Effects:
    """What happened to one output latent (a row) when one input latent was set to `in_after`.

    `pre_change` is the change of the output's pre-activation; `out_after` is its activation with the selection redone.
    """

    in_before: Float[Tensor, "changes"]
    in_after: Float[Tensor, "changes"]
    out_before: Float[Tensor, "changes"]
    out_after: Float[Tensor, "changes"]
    pre_change: Float[Tensor, "changes"]
    left_selection: Bool[Tensor, "changes"]


def change_latents(
    sandwich: Sandwich, state: SandwichState, pairs: PairSample, in_after: Float[Tensor, "pairs"]
) -> Effects:
    """Set the input latent of each pair to `in_after` and see what its output latent does.

    Pairs that share a token, an input latent and a value share one evaluation of the MLP.
    """
    in_before = state.inputs.value[pairs.token, pairs.in_slot]
    out_before = state.outputs.value[pairs.token, pairs.out_slot]
    variants, variant_of = _variants(state, pairs, in_after)
    left = torch.empty(len(pairs.token), dtype=torch.bool, device=in_after.device)
    pre_change = torch.empty(len(pairs.token), dtype=torch.float64, device=in_after.device)
    order = torch.argsort(variant_of, stable=True)
    bounds = torch.searchsorted(variant_of[order], torch.arange(0, len(variants.token) + 1, device=order.device))
    step = max(1, _FLOATS_AT_ONCE // (sandwich.outputs.latents + sandwich.mlp.d_state))
    for start in range(0, len(variants.token), step):
        stop = min(start + step, len(variants.token))
        rows = order[int(bounds[start]) : int(bounds[stop])]
        part = _Variants(variants.token[start:stop], variants.latent[start:stop], variants.delta[start:stop])
        z = state.z[part.token]
        out_latent = state.outputs.index[pairs.token[rows], pairs.out_slot[rows]]
        local = variant_of[rows] - start
        left[rows] = _leaves(sandwich, _moved(sandwich, z, part), local, out_latent)
        pre_change[rows] = _pre_change(sandwich, (z, part), local, out_latent)
    stays = (out_before.double() + pre_change).clamp(min=0).to(out_before.dtype)
    # The float64 change decides where the float32 encoding and it disagree on a pre-activation at its threshold.
    left = left | (stays <= _floor(sandwich, state, pairs))
    return Effects(in_before, in_after, out_before, torch.where(left, 0, stays), pre_change, left)


@dataclass(frozen=True)
class _Variants:
    """Distinct changes: one input latent of one token moved by `delta`."""

    token: Int64[Tensor, "variants"]
    latent: Int64[Tensor, "variants"]
    delta: Float[Tensor, "variants"]


def _moved(sandwich: Sandwich, z: Float[Tensor, "variants d_state"], changes: _Variants) -> Tensor:
    """The hidden pre-activations after each change, in the precision of `z`."""
    return z + changes.delta.to(z.dtype)[:, None] * sandwich.kernel.D[changes.latent].to(z.dtype)


def _floor(sandwich: Sandwich, state: SandwichState, pairs: PairSample) -> Tensor:
    """What each pair's output activation must exceed to be active, whatever the other latents do."""
    selection = sandwich.outputs.selection
    if isinstance(selection, Threshold):
        return selection.threshold[state.outputs.index[pairs.token, pairs.out_slot]]
    return torch.zeros((), device=state.z.device)


def _variants(
    state: SandwichState, pairs: PairSample, in_after: Float[Tensor, "pairs"]
) -> tuple[_Variants, Int64[Tensor, "pairs"]]:
    """The distinct changes behind the rows, and which of them each row sees."""
    values, value_of = torch.unique(in_after.double(), return_inverse=True)
    k_in, count = state.inputs.index.shape[1], max(1, len(values))
    key = (pairs.token * k_in + pairs.in_slot) * count + value_of
    distinct, variant_of = torch.unique(key, return_inverse=True)
    token, slot = distinct // (k_in * count), distinct // count % k_in
    delta = values[distinct % count] - state.inputs.value[token, slot].double()
    if state.scale is not None:
        delta = delta * state.scale[token, 0]
    return _Variants(token, state.inputs.index[token, slot], delta.to(state.z.dtype)), variant_of


def _leaves(
    sandwich: Sandwich,
    moved: Float[Tensor, "variants d_state"],
    variant: Int64[Tensor, "rows"],
    out_latent: Int64[Tensor, "rows"],
) -> Bool[Tensor, "rows"]:
    """Whether each row's output latent is pushed out of the selection by others after its variant's change."""
    if isinstance(sandwich.outputs.selection, Threshold):
        return torch.zeros_like(out_latent, dtype=torch.bool)
    codes = sandwich.outputs.encode(sandwich.mlp.output(moved))
    found = (codes.index[variant] == out_latent[:, None]) & codes.active[variant]
    return ~found.any(1)


def _pre_change(
    sandwich: Sandwich,
    at: tuple[Float[Tensor, "variants d_state"], _Variants],
    variant: Int64[Tensor, "rows"],
    out_latent: Int64[Tensor, "rows"],
) -> Float[Tensor, "rows"]:
    """The exact change of each row's pre-activation, float64."""
    z, changes = at[0].double(), at[1]
    kernel, mlp = sandwich.kernel, sandwich.mlp
    values = mlp.neurons.values
    before, after = values(z), values(_moved(sandwich, z, changes))
    if mlp.norm is None:
        readers, change = kernel.E, after - before
    else:
        W_out, b_out = mlp.W_out.double(), mlp.b_out.double()
        m, m_after = before @ W_out + b_out, after @ W_out + b_out
        readers, change = kernel.norm_readers(), m_after / mlp.norm.divisor(m_after) - m / mlp.norm.divisor(m)
    return _read(readers, change, variant, out_latent)


def _read(
    readers: Float[Tensor, "n_out width"],
    change: Float[Tensor, "variants width"],
    variant: Int64[Tensor, "rows"],
    out_latent: Int64[Tensor, "rows"],
) -> Float[Tensor, "rows"]:
    """What the output latent of each row reads of its variant's change, float64; `variant` ascends."""
    result = change.new_empty(len(variant))
    starts = torch.arange(0, len(change) + _VARIANTS_AT_ONCE, _VARIANTS_AT_ONCE, device=variant.device)
    bounds = torch.searchsorted(variant, starts).tolist()
    for number, (start, stop) in enumerate(pairwise(bounds)):
        rows, first = slice(start, stop), number * _VARIANTS_AT_ONCE
        moved = change[first : first + _VARIANTS_AT_ONCE]
        result[rows] = _read_few(readers, moved, variant[rows] - first, out_latent[rows])
    return result


def _read_few(
    readers: Float[Tensor, "n_out width"],
    change: Float[Tensor, "variants width"],
    variant: Int64[Tensor, "rows"],
    out_latent: Int64[Tensor, "rows"],
) -> Float[Tensor, "rows"]:
    """The same for the variants of a few tokens.

    Where every change is seen by many latents, as when all pairs are asked for, the product of all changes with all
    latents costs less than gathering a row for each pair, though most of it is not asked for.
    """
    latents, slot = torch.unique(out_latent, return_inverse=True)
    if len(latents) * len(change) <= _DENSE_RATIO * len(variant):
        return (change @ readers[latents].double().T)[variant, slot]
    return (readers[out_latent].double() * change[variant]).sum(1)


def values_after(kind: str, before: Float[Tensor, "pairs"], settings: KindValues) -> list[Float[Tensor, "pairs"]]:
    """The activations that an intervention of `kind` gives a latent whose own is `before`."""

    def constant(value: float) -> Float[Tensor, "pairs"]:
        return torch.full_like(before, value)

    sweep = torch.linspace(0, settings.sweep_max, settings.sweep_points, dtype=torch.float64).tolist()
    makers: dict[str, Callable[[], list[Float[Tensor, "pairs"]]]] = {
        "ablate": lambda: [constant(0.0)],
        "unit": lambda: [before - 1],
        "set": lambda: [constant(value) for value in settings.set_values],
        "scale": lambda: [before * factor for factor in settings.scale_factors],
        "sweep": lambda: [constant(value) for value in sweep],
    }
    return makers[kind]()


@dataclass(frozen=True)
class KindValues:
    """The activations, factors and points of the kinds 'set', 'scale' and 'sweep'."""

    set_values: tuple[float, ...]
    scale_factors: tuple[float, ...]
    sweep_points: int
    sweep_max: float
