"""The schema of every table of the lake, written once.

Writers, readers, DuckDB comments, checks and the README's data dictionary all derive from `TABLES`. A change here is a
change of the contract: raise the table's `version` and say in the CHANGELOG what happens to older lakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Encoding = Literal["dictionary", "byte_stream_split", "delta"]

_TYPES: dict[str, pa.DataType] = {
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
}


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type by name, unit ('' for a plain number), meaning, and what a valid value is.

    A float must be finite wherever it is not null; `minimum` and `allowed` narrow that further.
    """

    name: str
    type: str
    unit: str
    description: str
    nullable: bool = False
    minimum: float | None = None
    allowed: tuple[str, ...] = ()
    encoding: Encoding = "dictionary"


@dataclass(frozen=True)
class Table:
    """One table: a row is one `grain`; rows are unique in `key` and, inside a part, sorted by it."""

    name: str
    grain: str
    key: tuple[str, ...]
    version: int
    description: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """The column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}")

    def schema(self) -> pa.Schema:
        """The Arrow schema, with the table's name and contract version as its metadata."""
        fields = [pa.field(c.name, _TYPES[c.type], nullable=c.nullable) for c in self.columns]
        metadata: dict[bytes | str, bytes | str] = {
            "jacobian_flows.table": self.name,
            "jacobian_flows.version": str(self.version),
        }
        return pa.schema(fields, metadata=metadata)


_TOKEN_ID = Column(
    "token_id", "int64", "", "shard index, row and position of the token in the corpus: document_id * 2^24 + position",
    minimum=0, encoding="delta",
)  # fmt: skip
_OUT = Column("out_latent", "uint32", "", "latent of the output SAE (on the MLP's output)")
_IN = Column("in_latent", "uint32", "", "latent of the input SAE (on the MLP's input)")
_SPLIT: Encoding = "byte_stream_split"

TOKENS = Table(
    "tokens", "one analysed token", ("token_id",), 1,
    "The tokens that were analysed, with exact totals of their Jacobian entries before any threshold.",
    (
        _TOKEN_ID,
        Column("document_id", "int64", "", "the token's document", minimum=0, encoding="delta"),
        Column("position", "int32", "tokens", "position in its document, BOS being 0", minimum=1),
        Column("vocab_id", "int32", "", "id in the model's vocabulary", minimum=0),
        Column("text", "string", "", "the token as text; bytes that are not UTF-8 alone show as U+FFFD"),
        Column("in_active", "int16", "latents", "active input latents", minimum=0),
        Column("out_active", "int16", "latents", "active output latents", minimum=0),
        Column("entries_total", "int32", "entries", "in_active * out_active: entries before thresholds", minimum=0),
        Column("entries_stored", "int32", "entries", "entries that pass the thresholds: those in pair_stats and, "
               "if the run keeps entries, in jacobian_entries", minimum=0),
        Column("abs_sum_total", "float64", "", "sum of |J| over all entries", minimum=0, encoding=_SPLIT),
        Column("abs_sum_stored", "float64", "", "sum of |J| over these entries", minimum=0, encoding=_SPLIT),
        Column("sq_sum_total", "float64", "", "sum of J^2 over all entries", minimum=0, encoding=_SPLIT),
        Column("abs_max", "float32", "", "largest |J| of all entries, 0 if none", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

DOCUMENTS = Table(
    "documents", "one document", ("document_id",), 1,
    "The documents that hold at least one analysed token.",
    (
        Column("document_id", "int64", "", "shard index * 2^27 + row", minimum=0, encoding="delta"),
        Column("shard", "string", "", "the shard's name in the corpus"),
        Column("row", "int64", "", "line or row of the document in its shard, from 0", minimum=0, encoding="delta"),
        Column("source", "string", "", "where the text is from (pile_set_name), if known", nullable=True),
        Column("tokens", "int32", "tokens", "tokens of the document, BOS not counted, before truncation", minimum=1),
        Column("truncated", "bool", "", "true if tokens at its end were not analysed"),
    ),
)  # fmt: skip

LATENTS = Table(
    "latents", "one active latent at one token", ("token_id", "side", "latent"), 1,
    "The SAE codes: every active latent of both SAEs. Of a run that keeps aggregates alone (`jacobian.keep`): nothing, "
    "but sums in `latent_stats`.",
    (
        _TOKEN_ID,
        Column("side", "string", "", "'in': input SAE; 'out': output SAE", allowed=("in", "out")),
        Column("latent", "uint32", "", "index of the latent in its SAE"),
        Column("activation", "float32", "", "its activation, > 0", minimum=0, encoding=_SPLIT),
        Column(
            "margin", "float32", "",
            "how far its pre-activation can fall before it stops being active: to 0, or to the best latent not "
            "selected", minimum=0, encoding=_SPLIT,
        ),
    ),
)  # fmt: skip

JACOBIAN_ENTRIES = Table(
    "jacobian_entries", "one stored Jacobian element of one token", ("token_id", "out_latent", "in_latent"), 1,
    "d t_out / d s_in in COO form, where both latents are active. Of a run with a transcoder: how the MLP moves the "
    "output latent along the direction of the transcoder's latent (`transcoder_latents`). Of a run that does "
    "not keep them (`jacobian.keep`): nothing, but sums in `pair_stats`.",
    (
        _TOKEN_ID,
        _OUT,
        _IN,
        Column("value", "float32", "", "J: d (output activation) / d (input activation)", encoding=_SPLIT),
        Column(
            "second_derivative", "float32", "", "d2 (output activation) / d (input activation)^2; null: not computed",
            nullable=True, encoding=_SPLIT,
        ),
    ),
)  # fmt: skip

PAIR_STATS = Table(
    "pair_stats", "one pair (out_latent, in_latent) of one scope", ("scope", "out_latent", "in_latent"), 1,
    "Exact sums of J over all analysed tokens, from which every mean follows.",
    (
        Column("scope", "string", "", "'active': both latents active; 'all_inputs': output active, every input latent",
               allowed=("active", "all_inputs")),
        _OUT,
        _IN,
        Column("n_coactive", "int64", "tokens", "tokens at which both latents were active", minimum=0),
        Column("n_stored", "int64", "tokens", "tokens in the sums (scope 'active': stored entries)", minimum=0),
        Column("sum", "float64", "", "sum of J over n_stored tokens", encoding=_SPLIT),
        Column("sum_abs", "float64", "", "sum of |J| over n_stored tokens", minimum=0, encoding=_SPLIT),
        Column("sum_sq", "float64", "", "sum of J^2 over n_stored tokens", minimum=0, encoding=_SPLIT),
        Column("max_abs", "float32", "", "largest |J|", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

LATENT_STATS = Table(
    "latent_stats", "one latent of one SAE that is active at least once", ("side", "latent"), 1,
    "How often, and how strongly, each latent is active: exact sums over all analysed tokens. A file of its own where "
    "`latents` are not kept (`jacobian.keep`), else computed from these when it is read.",
    (
        Column("side", "string", "", "'in': input SAE; 'out': output SAE", allowed=("in", "out")),
        Column("latent", "uint32", "", "index of the latent in its SAE"),
        Column("n_tokens", "int64", "tokens", "tokens at which it is active", minimum=1),
        Column("sum_activation", "float64", "", "sum of its activation over these", minimum=0, encoding=_SPLIT),
        Column("max_activation", "float32", "", "largest activation", minimum=0, encoding=_SPLIT),
        Column("sum_margin", "float64", "", "sum of its margin over these (see latents)", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

THRESHOLD_COUNTS = Table(
    "threshold_counts", "one threshold of one scope, stage and batch left out",
    ("scope", "part", "left_out", "threshold"), 1,
    "How many pairs are above thresholds: what `threshold_fractions` and `convergence` need of the entries, their "
    "intervals included. A stage is the first tokens of the run, in corpus order, cut into batches of whole documents.",
    (
        Column("scope", "string", "", "'active' or 'all_inputs', as in pair_stats; 'all_inputs' has only the stage of "
               "all tokens, and nothing left out", allowed=("active", "all_inputs")),
        Column("part", "int16", "", "the stage is the first 1/part of the tokens: 1, 2, 4, 8, 16", minimum=1),
        Column("left_out", "int16", "", "the batch whose tokens are not counted; -1: none", minimum=-1),
        Column("threshold", "float64", "", "a value counts where it is strictly greater", minimum=0),
        Column("batches", "int16", "batches", "into how many a stage is cut; a few documents fill fewer", minimum=2),
        Column("tokens", "int64", "tokens", "tokens that are counted", minimum=0),
        Column("pairs_mean_all_tokens", "int64", "pairs", "pairs whose mean |J| over these tokens is above", minimum=0),
        Column("pairs_mean_out_active", "int64", "pairs", "the same over the tokens where the output latent is active; "
               "null: not of all tokens", nullable=True, minimum=0),
        Column("pairs_mean_coactive", "int64", "pairs", "the same over the tokens where both are active; null: not of "
               "all tokens, or scope 'all_inputs'", nullable=True, minimum=0),
        Column("pairs_max", "int64", "pairs", "pairs whose largest |J| is above", minimum=0),
        Column("entries", "int64", "entries", "stored entries with |J| above; null: not of all tokens, or scope "
               "'all_inputs'", nullable=True, minimum=0),
    ),
)  # fmt: skip

INTERVENTIONS = Table(
    "interventions", "one varied input latent seen at one output latent",
    ("token_id", "out_latent", "in_latent", "kind", "in_after"), 1,
    "What the output latent did when the input latent was changed, everything else held.",
    (
        _TOKEN_ID,
        _OUT,
        _IN,
        Column("kind", "string", "", "'ablate': to 0; 'set', 'scale', 'sweep': to in_after; 'unit': minus one unit of "
               "the decoder direction (the published variant)", allowed=("ablate", "set", "scale", "sweep", "unit")),
        Column("in_before", "float32", "", "s_j before", encoding=_SPLIT),
        Column("in_after", "float32", "", "s_j after", encoding=_SPLIT),
        Column("value", "float32", "", "J before the change", encoding=_SPLIT),
        Column("second_derivative", "float32", "", "d2 t_out / d s_in^2 before the change", encoding=_SPLIT),
        Column("out_before", "float32", "", "t_i before", minimum=0, encoding=_SPLIT),
        Column("out_after", "float32", "", "t_i after, the selection redone: 0 if it left", minimum=0, encoding=_SPLIT),
        Column("pre_change", "float32", "", "exact change of t_i's pre-activation, selection aside", encoding=_SPLIT),
        Column("left_selection", "bool", "", "true if the output latent is no longer active"),
        Column("weight", "float64", "", "pairs of the run that this sampled row stands for (1: nothing was left out)",
               minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

_SHAPES = ("linear", "jumprelu", "other")

FUNCTION_SHAPES = Table(
    "function_shapes", "one sampled pair at one token", ("token_id", "out_latent", "in_latent"), 1,
    "The shape of t_i as a function of s_j alone, over [0, in_max], the selection redone at every point.",
    (
        _TOKEN_ID,
        _OUT,
        _IN,
        Column("value", "float32", "", "J at the token's own s_j", encoding=_SPLIT),
        Column("in_before", "float32", "", "the token's own s_j", encoding=_SPLIT),
        Column("in_max", "float32", "", "end of the range: max(5, s_j + 1)", minimum=0, encoding=_SPLIT),
        Column("points", "int16", "points", "equally spaced points of the range", minimum=2),
        Column("out_range", "float32", "", "largest minus smallest t_i over the range", minimum=0, encoding=_SPLIT),
        Column("linear_residual", "float32", "", "largest |t_i - best line|", minimum=0, encoding=_SPLIT),
        Column("jumprelu_residual", "float32", "", "largest |t_i - best line| where t_i > 0, if those points run "
               "to an end of the range; else out_range", minimum=0, encoding=_SPLIT),
        Column("shape", "string", "", "by the published rule: first of linear, jumprelu whose residual is < 0.01",
               allowed=_SHAPES),
        Column("shape_scale_free", "string", "", "the same with the residual relative to out_range", allowed=_SHAPES),
        Column("weight", "float64", "", "pairs of the run that this row stands for", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

TRANSCODER_TOKENS = Table(
    "transcoder_tokens", "one analysed token of a run with a transcoder", ("token_id",), 1,
    "How far the transcoder's output is from the MLP's.",
    (
        _TOKEN_ID,
        Column("error_sq", "float64", "", "squared length of (MLP's output - transcoder's)", minimum=0,
               encoding=_SPLIT),
        Column("output_sq", "float64", "", "squared length of the MLP's output", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

TRANSCODER_LATENTS = Table(
    "transcoder_latents", "one active latent of the transcoder at one token", ("token_id", "latent"), 1,
    "What one unit of the latent does to the MLP's output, by the transcoder and by the MLP itself: both changes along "
    "the shortest direction of the input that raises this latent by 1 and no other active one.",
    (
        _TOKEN_ID,
        Column("latent", "uint32", "", "index of the latent in the transcoder"),
        Column("cosine", "float32", "", "cosine between the two changes, 0 where one is 0", minimum=-1,
               encoding=_SPLIT),
        Column("mlp_norm", "float32", "", "length of the MLP's change", minimum=0, encoding=_SPLIT),
        Column("transcoder_norm", "float32", "", "length of the transcoder's change", minimum=0, encoding=_SPLIT),
        Column("isolation", "float32", "", "how far the latent moves along its direction: 1, or less where its encoder "
               "depends on those of the other active latents", encoding=_SPLIT),
        Column("direction_norm", "float32", "", "length of the direction", minimum=0, encoding=_SPLIT),
    ),
)  # fmt: skip

TRANSCODER_EFFECTS = Table(
    "transcoder_effects", "one stored pair of a transcoder's and an output SAE's latent at one token",
    ("token_id", "out_latent", "in_latent"), 1,
    "The two changes of `transcoder_latents` as the output SAE's active latents read them, for the pairs that "
    "jacobian_entries stores.",
    (
        _TOKEN_ID,
        _OUT,
        Column("in_latent", "uint32", "", "latent of the transcoder"),
        Column("mlp_effect", "float32", "", "change of the output latent's pre-activation by the MLP", encoding=_SPLIT),
        Column("transcoder_effect", "float32", "", "change of it by the transcoder", encoding=_SPLIT),
    ),
)  # fmt: skip

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        TOKENS, DOCUMENTS, LATENTS, JACOBIAN_ENTRIES, PAIR_STATS, LATENT_STATS, THRESHOLD_COUNTS, INTERVENTIONS,
        FUNCTION_SHAPES, TRANSCODER_TOKENS, TRANSCODER_LATENTS, TRANSCODER_EFFECTS,
    )
}  # fmt: skip
BLOCK_TABLES: tuple[str, ...] = (
    "tokens", "documents", "latents", "jacobian_entries", "interventions", "function_shapes",
    "transcoder_tokens", "transcoder_latents", "transcoder_effects",
)  # fmt: skip
"""Tables that get one part a block, in the order in which the parts are published."""
Keep = Literal["entries", "latents", "aggregates"]
"""What a run keeps (`jacobian.keep`): every entry; of these their sums by pair; of active latents their sums too."""
_SUMMED_ONLY: dict[Keep, tuple[str, ...]] = {
    "entries": (), "latents": ("jacobian_entries",), "aggregates": ("jacobian_entries", "latents")
}  # fmt: skip
LATER_TABLES: tuple[str, ...] = ("transcoder_tokens", "transcoder_latents", "transcoder_effects")
"""Block tables that lakes of version 1 do not know: their blocks have a part of none of them."""


def block_tables(keep: Keep) -> tuple[str, ...]:
    """The tables that a block of a run has a part of, by what the run keeps."""
    return tuple(table for table in BLOCK_TABLES if table not in _SUMMED_ONLY[keep])


POSITION_BITS = 24
ROW_BITS = 27
MAX_SHARDS = 1 << (63 - POSITION_BITS - ROW_BITS)


def document_id(shard_index: int, row: int) -> int:
    """The id of the document at `row` of shard `shard_index`; ValueError where either is out of range."""
    if not 0 <= shard_index < MAX_SHARDS:
        raise ValueError(f"shard index {shard_index} is not in 0..{MAX_SHARDS - 1}")
    if not 0 <= row < 1 << ROW_BITS:
        raise ValueError(f"row {row} is not in 0..{(1 << ROW_BITS) - 1}")
    return shard_index << ROW_BITS | row


def token_id(document: int, position: int) -> int:
    """The id of the token at `position` (BOS is 0) of a document; ValueError where it is out of range."""
    if not 0 <= position < 1 << POSITION_BITS:
        raise ValueError(f"position {position} is not in 0..{(1 << POSITION_BITS) - 1}")
    return document << POSITION_BITS | position
