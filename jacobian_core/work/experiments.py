"""The experiments of a chunk: its sampled pairs changed in every asked way, and some of them traced.

What is sampled is decided by hashes of ids (`strata.py`), so this is a function of the chunk alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacobian_core.config import InterventionConfig
from jacobian_core.numerics.function_shapes import trace
from jacobian_core.numerics.interventions import Effects, KindValues, change_latents, values_after
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState
from jacobian_core.numerics.strata import PairSample, StrataPlan, all_pairs, chosen_tokens, stratified_pairs
from jacobian_core.work.tables import interventions_table, shapes_table

_TRACED_AT_ONCE = 256
_SHAPE_SEED = 0x51A9E5


@dataclass(frozen=True)
class Chunk:
    """A chunk of tokens with everything known of it: ids (numpy and device), codes, J and K."""

    token_ids: Int64[np.ndarray, "tokens"]
    state: SandwichState
    J: Float[Tensor, "tokens k_out k_in"]
    K: Float[Tensor, "tokens k_out k_in"]

    def device_ids(self) -> Int64[Tensor, "tokens"]:
        """The token ids on the device of the codes."""
        return torch.from_numpy(self.token_ids).to(self.J.device)

    def at(self, tensor: Float[Tensor, "tokens k_out k_in"], pairs: PairSample) -> Float[Tensor, "pairs"]:
        """The elements of J or K that belong to pairs."""
        return tensor[pairs.token, pairs.out_slot, pairs.in_slot]


def wanted(settings: InterventionConfig) -> bool:
    """Whether any experiment is asked for."""
    return bool(settings.kinds) or settings.shape_token_share > 0


def run_experiments(sandwich: Sandwich, chunk: Chunk, settings: InterventionConfig) -> dict[str, pa.Table]:
    """`interventions` and `function_shapes` of a chunk."""
    tables: dict[str, pa.Table] = {}
    if settings.kinds:
        pairs = _pairs(chunk, settings)
        before = chunk.state.inputs.value[pairs.token, pairs.in_slot]
        values = KindValues(settings.set_values, settings.scale_factors, settings.sweep_points, settings.sweep_max)
        effects: list[tuple[str, Effects]] = [
            (kind, change_latents(sandwich, chunk.state, pairs, after))
            for kind in settings.kinds
            for after in values_after(kind, before, values)
        ]
        sample = (pairs, chunk.at(chunk.J, pairs), chunk.at(chunk.K, pairs))
        tables["interventions"] = interventions_table(chunk.token_ids, chunk.state, sample, effects)
    if settings.shape_token_share > 0:
        tables["function_shapes"] = _shapes(sandwich, chunk, settings)
    return tables


def _plan(settings: InterventionConfig, share: float, seed: int) -> StrataPlan:
    return StrataPlan(settings.strata, settings.per_stratum, share, seed)


def _pairs(chunk: Chunk, settings: InterventionConfig) -> PairSample:
    ids, share = chunk.device_ids(), settings.token_share
    tokens = chosen_tokens(ids, share, settings.seed)
    if settings.pairs == "all":
        return all_pairs(chunk.state.outputs, chunk.state.inputs, tokens, share)
    codes = (chunk.state.inputs, chunk.state.outputs)
    return stratified_pairs(chunk.J, codes, ids, tokens, _plan(settings, share, settings.seed))


def _shapes(sandwich: Sandwich, chunk: Chunk, settings: InterventionConfig) -> pa.Table:
    ids, share = chunk.device_ids(), settings.shape_token_share
    tokens = chosen_tokens(ids, share, settings.seed ^ _SHAPE_SEED)
    codes = (chunk.state.inputs, chunk.state.outputs)
    pairs = stratified_pairs(chunk.J, codes, ids, tokens, _plan(settings, share, settings.seed ^ _SHAPE_SEED))
    tables = []
    for start in range(0, max(1, len(pairs.token)), _TRACED_AT_ONCE):
        rows = slice(start, start + _TRACED_AT_ONCE)
        part = PairSample(pairs.token[rows], pairs.out_slot[rows], pairs.in_slot[rows], pairs.weight[rows])
        shapes = trace(sandwich, chunk.state, part, settings.shape_points)
        sample = (part, chunk.at(chunk.J, part))
        tables.append(shapes_table(chunk.token_ids, chunk.state, sample, shapes, settings.shape_points))
    return pa.concat_tables(tables)
