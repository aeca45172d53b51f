"""From tensors of a chunk to the lake's tables: columns as the contracts order and type them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64
from numpy.typing import NDArray
from torch import Tensor

from jacobian_core.contracts import (
    FUNCTION_SHAPES,
    INTERVENTIONS,
    JACOBIAN_ENTRIES,
    LATENTS,
    POSITION_BITS,
    TOKENS,
    Table,
)
from jacobian_core.numerics.codes import Codes
from jacobian_core.numerics.coo import Entries
from jacobian_core.numerics.function_shapes import SHAPES, Shapes
from jacobian_core.numerics.interventions import Effects
from jacobian_core.numerics.state import SandwichState
from jacobian_core.numerics.strata import PairSample

TokenIds = Int64[np.ndarray, "tokens"]


def make_table(table: Table, columns: dict[str, Any]) -> pa.Table:
    """Columns (numpy or Arrow arrays; None for all null) as an Arrow table with exactly the contract's schema."""
    schema = table.schema()
    rows = next(len(values) for values in columns.values() if values is not None)
    arrays = [
        pa.nulls(rows, field.type) if columns[field.name] is None else pa.array(columns[field.name]).cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def entries_table(token_ids: TokenIds, entries: Entries, second: bool = True) -> pa.Table:
    """`jacobian_entries` of a chunk; without `second` no second derivatives, whatever the entries carry."""
    derivatives = entries.second_derivative if second else None
    return make_table(
        JACOBIAN_ENTRIES,
        {
            "token_id": np.repeat(token_ids, _numpy(entries.stored)),
            "out_latent": _numpy(entries.out_latent),
            "in_latent": _numpy(entries.in_latent),
            "value": _numpy(entries.value),
            "second_derivative": None if derivatives is None else _numpy(derivatives),
        },
    )


def tokens_table(
    token_ids: TokenIds,
    vocab_ids: Int32[np.ndarray, "tokens"],
    texts: pa.StringArray,
    codes: tuple[Codes, Codes],
    entries: Entries,
) -> pa.Table:
    """`tokens` of a chunk; `texts` is the text of every vocabulary id, `codes` those of the input and output SAE."""
    in_codes, out_codes = codes
    return make_table(
        TOKENS,
        {
            "token_id": token_ids,
            "document_id": token_ids >> POSITION_BITS,
            "position": token_ids & ((1 << POSITION_BITS) - 1),
            "vocab_id": vocab_ids,
            "text": texts.take(pa.array(vocab_ids)),
            "in_active": _numpy(in_codes.counts()),
            "out_active": _numpy(out_codes.counts()),
            "entries_total": _numpy(entries.total),
            "entries_stored": _numpy(entries.stored),
            "abs_sum_total": _numpy(entries.abs_sum_total),
            "abs_sum_stored": _numpy(entries.abs_sum_stored),
            "sq_sum_total": _numpy(entries.sq_sum_total),
            "abs_max": _numpy(entries.abs_max),
        },
    )


def latents_table(token_ids: TokenIds, in_codes: Codes, out_codes: Codes) -> pa.Table:
    """`latents` of a chunk: of each token the active input latents, then the active output latents."""
    sides = ((in_codes, 0), (out_codes, 1))
    token = np.concatenate([np.nonzero(_numpy(codes.active))[0] for codes, _ in sides])
    side = np.concatenate([np.full(int(codes.active.sum()), number, np.int8) for codes, number in sides])
    # Each side is sorted by (token, latent); a stable sort by token alone interleaves them in key order.
    order = np.argsort(token, kind="stable")

    def both(name: str) -> NDArray[Any]:
        return np.concatenate([_numpy(getattr(codes, name))[_numpy(codes.active)] for codes, _ in sides])[order]

    return make_table(
        LATENTS,
        {
            "token_id": token_ids[token[order]],
            "side": pa.DictionaryArray.from_arrays(side[order], ["in", "out"]),
            "latent": both("index"),
            "activation": both("value"),
            "margin": both("margin"),
        },
    )


def _pair_columns(token_ids: TokenIds, state: SandwichState, pairs: PairSample) -> dict[str, Any]:
    """The key columns and the weight of sampled pairs."""
    return {
        "token_id": token_ids[_numpy(pairs.token)],
        "out_latent": _numpy(state.outputs.index[pairs.token, pairs.out_slot]),
        "in_latent": _numpy(state.inputs.index[pairs.token, pairs.in_slot]),
        "weight": _numpy(pairs.weight),
    }


def interventions_table(
    token_ids: TokenIds,
    state: SandwichState,
    sample: tuple[PairSample, Tensor, Tensor],
    effects: list[tuple[str, Effects]],
) -> pa.Table:
    """`interventions` of a chunk, sorted by its key.

    `sample` is the pairs with their J and second derivative; `effects` are what each kind did to all of them.
    """
    pairs, value, second = sample
    shared = _pair_columns(token_ids, state, pairs) | {"value": _numpy(value), "second_derivative": _numpy(second)}
    parts = [
        make_table(
            INTERVENTIONS,
            shared
            | {
                "kind": pa.repeat(kind, len(pairs.token)),
                "in_before": _numpy(found.in_before),
                "in_after": _numpy(found.in_after),
                "out_before": _numpy(found.out_before),
                "out_after": _numpy(found.out_after),
                "pre_change": _numpy(found.pre_change),
                "left_selection": _numpy(found.left_selection),
            },
        )
        for kind, found in effects
    ]
    merged = pa.concat_tables([INTERVENTIONS.schema().empty_table(), *parts])
    return merged.sort_by([(name, "ascending") for name in INTERVENTIONS.key]).combine_chunks()


def shapes_table(
    token_ids: TokenIds, state: SandwichState, sample: tuple[PairSample, Tensor], shapes: Shapes, points: int
) -> pa.Table:
    """`function_shapes` of a chunk; `sample` is the pairs with their J."""
    pairs, value = sample
    names = pa.array(SHAPES)
    return make_table(
        FUNCTION_SHAPES,
        _pair_columns(token_ids, state, pairs)
        | {
            "value": _numpy(value),
            "in_before": _numpy(shapes.in_before),
            "in_max": _numpy(shapes.in_max),
            "points": np.full(len(pairs.token), points, np.int16),
            "out_range": _numpy(shapes.out_range),
            "linear_residual": _numpy(shapes.linear_residual),
            "jumprelu_residual": _numpy(shapes.jumprelu_residual),
            "shape": names.take(pa.array(_numpy(shapes.shape))),
            "shape_scale_free": names.take(pa.array(_numpy(shapes.shape_scale_free))),
        },
    )
