"""What a run is asked to do: frozen groups of settings, each field with its unit and meaning.

A profile (TOML) and `--set group.key=value` fill these models (`profiles.py`); Prefect shows them as the flow's typed
parameters. What determines the data goes into the run's identity (`identity.py`); `compute` and `lake` do not.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Group(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SaePartConfig(Group):
    """One SAE, or one transcoder, and where it comes from."""

    source: Literal["release", "wandb", "folder", "huggingface"] = Field(
        description="'release': one that sae_lens knows by release and id; or where the SAE's folder is kept"
    )
    release: str | None = Field(default=None, description="release: its name in sae_lens")
    id: str | None = Field(default=None, description="release: the SAE's id in it")
    location: str | None = Field(
        default=None,
        min_length=1,
        description="wandb: entity/project/name:version; folder: a path; huggingface: owner/repository",
    )
    revision: str | None = Field(default=None, description="release or huggingface: branch, tag or commit")
    subfolder: str | None = Field(default=None, description="huggingface or folder: the SAE's folder inside it")
    loader: str | None = Field(
        default=None,
        description="huggingface: sae_lens's loader of the repository's format, such as 'gemma_2'; null: its own",
    )
    norm_factor: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="what activations were multiplied by in training, for normalize_activations = "
        "'expected_average_only_in' where the release does not say; it is folded into the weights",
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> SaePartConfig:
        by_release = self.source == "release"
        needed = ("release", "id") if by_release else ("location",)
        allowed: dict[str, tuple[str, ...]] = {
            "release": ("release", "id", "revision"),
            "wandb": ("location",),
            "folder": ("location", "subfolder"),
            "huggingface": ("location", "revision", "subfolder", "loader"),
        }
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"needs {name} with source = '{self.source}'")
        for name in ("release", "id", "location", "revision", "subfolder", "loader"):
            if name not in allowed[self.source] and getattr(self, name) is not None:
                raise ValueError(f"has {name}, which has no meaning with source = '{self.source}'")
        return self


class SaeConfig(Group):
    """Which SAE pair, and where it comes from: one artifact that holds both, two SAEs of their own, or a transcoder."""

    source: Literal["wandb", "folder", "huggingface"] | None = Field(
        default=None, description="where an artifact that holds both SAEs is kept"
    )
    location: str | None = Field(
        default=None,
        min_length=1,
        description="wandb: entity/project/name:version; folder: a path; huggingface: owner/repository",
    )
    revision: str | None = Field(default=None, description="huggingface: branch, tag or commit")
    subfolder: str | None = Field(default=None, description="huggingface or folder: the pair's folder inside it")
    input: SaePartConfig | None = Field(default=None, description="the SAE on the MLP's input, instead of a pair")
    output: SaePartConfig | None = Field(default=None, description="the SAE on the MLP's output, instead of a pair")
    transcoder: SaePartConfig | None = Field(
        default=None,
        description="a transcoder from the MLP's input to its output, whose latents' effects are compared with the "
        "MLP's own; alone, or with sae.output",
    )

    @model_validator(mode="after")
    def _one_of_two_forms(self) -> SaeConfig:
        whole = [name for name in ("source", "location", "revision", "subfolder") if getattr(self, name) is not None]
        if not self.parts:
            missing = [name for name in ("source", "location") if name not in whole]
            if missing:
                raise ValueError(
                    f"needs {' and '.join(missing)} of a pair, or the tables sae.input and sae.output of two SAEs"
                )
        elif whole:
            raise ValueError(
                f"has {', '.join(whole)} of a pair beside {', '.join(self.parts)}: give the one or the other"
            )
        elif self.input and self.transcoder:
            raise ValueError(
                "has sae.input and sae.transcoder, which both read the MLP's input: give the one or the other"
            )
        elif not self.transcoder and set(self.parts) != {"in", "out"}:
            raise ValueError("needs both sae.input and sae.output")
        return self

    @property
    def parts(self) -> dict[str, SaePartConfig]:
        """The SAEs that were named apart, by side; empty where one artifact holds both."""
        sides = {"transcoder": self.transcoder, "in": self.input, "out": self.output}
        return {side: part for side, part in sides.items() if part is not None}


class ModelConfig(Group):
    """Which language model, and which reading of its MLP's input."""

    name: str = Field(min_length=1, description="an official model name, or a local Hugging Face folder")
    revision: str | None = Field(default=None, description="branch, tag or commit of an official model")
    layer: int | None = Field(default=None, ge=0, description="block whose MLP is analysed; null: as the artifact says")
    mlp_input: Literal["hook_in", "normalized"] = Field(
        default="hook_in",
        description="what the input SAE reads: 'hook_in', the true MLP input of the raw weights (after LayerNorm's "
        "gain and bias), or 'normalized', the pre-affine input of weights with LayerNorm folded in",
    )
    weights: Literal["model", "artifact", "randomised"] = Field(
        default="model",
        description="'model': the model's own; 'artifact': the language model's weights stored beside the SAE pair; "
        "'randomised': every tensor resampled from a normal with its own mean and standard deviation",
    )
    randomise_seed: int = Field(default=0, ge=0, description="seed of weights = 'randomised'")
    dtype: Literal["float32", "float64", "bfloat16"] = Field(default="float32", description="precision of the model")


class CorpusConfig(Group):
    """Which text, and how it becomes rows of tokens."""

    source: Literal["folder", "hub"] = Field(
        description="a local folder of shards, or a dataset on the Hugging Face hub"
    )
    location: str = Field(min_length=1, description="folder: a path; hub: owner/dataset")
    revision: str | None = Field(default=None, description="hub: branch, tag or commit")
    shards: tuple[str, ...] = Field(
        default=("*.jsonl.zst", "*.jsonl", "*.parquet"),
        min_length=1,
        description="glob patterns of shard names, relative to the location",
    )
    text_field: str = Field(default="text", description="field that holds a document's text")
    source_field: str = Field(default="meta.pile_set_name", description="dotted field that names a document's source")
    packing: Literal["document", "concatenated"] = Field(
        default="document",
        description="'document': one document a row, truncated to the context; 'concatenated': documents joined by BOS "
        "and cut into full rows, as SAEs are trained",
    )
    context_tokens: int = Field(default=1024, ge=2, le=1 << 20, description="positions in a row, BOS included")
    max_tokens: int | None = Field(
        default=None, ge=1, description="analysed tokens of the run; null: all of the shards"
    )
    block_tokens: int = Field(
        default=4096, ge=1, description="a block closes with the document that brings it to this many analysed tokens"
    )
    max_document_bytes: int = Field(
        default=16 << 20, ge=1, description="UTF-8 bytes; a longer document or line is skipped and counted"
    )


class JacobianConfig(Group):
    """Which Jacobian elements are computed and stored."""

    scope: Literal["active", "all_inputs"] = Field(
        default="active",
        description="'active': entries where both latents are active; 'all_inputs': also, for active outputs, exact "
        "aggregates over every input latent",
    )
    evaluate_at: Literal["reconstruction", "activation"] = Field(
        default="reconstruction",
        description="MLP input at which derivatives are taken: the input SAE's reconstruction (the notebook) or the "
        "true activation (the paper)",
    )
    derivatives: Literal["first", "second"] = Field(
        default="first", description="'second' also stores d2 t_out / d s_in^2 with each entry"
    )
    precision: Literal["float32", "tf32", "bf16"] = Field(
        default="float32",
        description="operands of the products that give J and its second derivative: 'float32' exact; 'tf32' and "
        "'bf16' rounded for tensor cores, which moves entries by up to 0.001 and 0.015 of the token's largest |J|; "
        "the model, the SAEs and so the selection of latents are never rounded",
    )
    min_abs: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="entries with |J| below this are dropped"
    )
    top_entries_per_token: int | None = Field(
        default=None, ge=1, description="keep this many largest |J| of a token; null: all"
    )
    keep: Literal["entries", "latents", "aggregates"] = Field(
        default="entries",
        description="what becomes of the entries that pass these thresholds, and of the active latents of each token: "
        "'entries' keeps each of both, and sums of entries by pair (`pair_stats`); 'latents' of entries the sums "
        "alone; 'aggregates' of active latents too (`latent_stats`), so that the disk grows with the pairs and, by "
        "some 30 bytes each, with the tokens",
    )

    @property
    def keeps_entries(self) -> bool:
        """Whether every entry is kept."""
        return self.keep == "entries"

    @property
    def keeps_latents(self) -> bool:
        """Whether the active latents of each token are kept."""
        return self.keep != "aggregates"

    @model_validator(mode="after")
    def _kept_where_there_is_a_place(self) -> JacobianConfig:
        if not self.keeps_entries and self.derivatives == "second":
            raise ValueError(
                f"has derivatives = 'second', which are stored with each entry, but keep = {self.keep!r} keeps none: "
                "give derivatives = 'first' (interventions have second derivatives all the same) or keep = 'entries'"
            )
        return self


InterventionKind = Literal["ablate", "set", "scale", "sweep", "unit"]


class InterventionConfig(Group):
    """Which input latents are changed, at which tokens, and how; what every active output latent does is stored."""

    kinds: tuple[InterventionKind, ...] = Field(
        default=(),
        description="'ablate': to 0; 'set': to each of set_values; 'scale': times each of scale_factors; 'sweep': over "
        "sweep_points from 0 to sweep_max; 'unit': minus 1 (the published variant); empty: no interventions",
    )
    pairs: Literal["sample", "all"] = Field(
        default="sample", description="pairs of a token: a sample stratified by |J|, or all that are active"
    )
    strata: tuple[float, ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1), min_length=1, description="ascending |J| that separate the sample's strata"
    )
    per_stratum: int = Field(default=1, ge=1, description="pairs of a token that are sampled from each stratum")
    token_share: float = Field(default=1.0, gt=0, le=1, description="share of tokens at which latents are changed")
    shape_token_share: float = Field(
        default=0.0, ge=0, le=1, description="share of tokens at which function shapes are traced; 0: none"
    )
    shape_points: int = Field(default=100, ge=3, le=10_000, description="points of a traced function")
    seed: int = Field(default=0, ge=0, description="seed of the samples")
    set_values: tuple[float, ...] = Field(default=(1.0,), description="activations for 'set'")
    scale_factors: tuple[float, ...] = Field(default=(0.5, 2.0), description="factors for 'scale'")
    sweep_points: int = Field(default=11, ge=2, description="points for 'sweep'")
    sweep_max: float = Field(default=5.0, gt=0, description="last activation of 'sweep'; the first is 0")

    @field_validator("strata")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(edge <= 0 for edge in value) or any(b <= a for a, b in pairwise(value)):
            raise ValueError("must be positive and strictly ascending")
        return value


class AllInputsConfig(Group):
    """How the aggregates of scope 'all_inputs' are accumulated."""

    group_blocks: int = Field(default=64, ge=1, description="blocks of one partial sum: what a crash can cost")
    max_memory_bytes: int = Field(
        default=8 << 30, ge=1 << 20, description="memory of the accumulators on the device; more is refused"
    )
    tiles: int = Field(
        default=1, ge=1, description="parts of the output latents that are accumulated one after another"
    )


class QualityConfig(Group):
    """When a pair is refused because it does not explain the activations, and what is checked before publication."""

    fvu_tokens: int = Field(default=2048, ge=2, description="analysed tokens on which FVU is measured before a run")
    max_fvu_in: float = Field(
        default=0.7, gt=0, description="refuse a pair whose input SAE leaves more variance unexplained than this"
    )
    max_fvu_out: float = Field(
        default=0.7, gt=0, description="refuse a pair whose output SAE leaves more variance unexplained than this"
    )
    block_fvu_tokens: int = Field(
        default=128, ge=0, description="tokens of each block on which FVU is measured again, evenly spaced; 0: none"
    )
    checks_max_entries: int = Field(
        default=500_000_000,
        ge=0,
        description="run the checks of sql/checks before a run of at most this many stored entries is published; one "
        "that fails stops it; 0: leave them to `jacobian verify`",
    )
    drift_deviations: float | None = Field(
        default=8.0,
        gt=0,
        description="warn of a block whose FVU, mean |J|, active latents per token or tokens per document is this many "
        "robust deviations from the run's median; null: never",
    )
    drift_blocks: int = Field(default=16, ge=3, description="blocks that must be known before one is called unusual")
    drift_ratio: float | None = Field(
        default=1.5,
        gt=1,
        description="warn of a run whose FVU, dead latents or one of these figures differs by this factor from earlier "
        "runs of the same pair, model and settings; null: never",
    )


class ComputeConfig(Group):
    """How the work is done; changes speed, not which data is asked for."""

    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads, each of which works on chunks of its own; null: all cores"
    )
    encoder: Literal["auto", "exact", "bfloat16", "int8"] = Field(
        default="auto",
        description="in which precision a TopK encoder looks for candidates: 'exact', the SAE's own; 'bfloat16'; "
        "'int8' (or bfloat16 if it needs too many); 'auto', the quickest here; the codes are the same, bit by bit, as "
        "scores of the SAE's precision decide",
    )
    forward_batch_tokens: int = Field(
        default=2048,
        ge=1,
        description="most padded positions of a forward pass of the language model; on a CPU no more than 512",
    )
    chunk_tokens: int = Field(default=512, ge=1, description="tokens encoded at once; their codes are dense meanwhile")
    cost_per_hour: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="price of an hour of one worker, in any currency; reported"
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if value in ("auto", "cpu", "cuda") or value.removeprefix("cuda:").isdigit():
            return value
        raise ValueError("must be 'auto', 'cpu', 'cuda' or 'cuda:N'")


class MartsConfig(Group):
    """What is counted when a run's pairs are summed, so that reports need not read its entries."""

    thresholds: tuple[float, ...] = Field(
        default=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 1e-1, 1.0),
        max_length=100,
        description="ascending |J| for `threshold_counts`: `threshold_fractions` and `convergence` take about a second "
        "for these, and for others read all entries, as do shares of pairs in `run_figures`; empty: no such table",
    )

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= edge < math.inf for edge in value) or any(b <= a for a, b in pairwise(value)):
            raise ValueError("must be finite, not negative and strictly ascending")
        return value


class LakeConfig(Group):
    """How the lake's files are written."""

    root: str = Field(default="lake", min_length=1, description="the lake: a folder, or s3://bucket/prefix")
    row_group_rows: int = Field(default=1_000_000, ge=1_000, description="rows of a Parquet row group")
    compression_level: int = Field(default=3, ge=1, le=22, description="zstd level")
    duckdb_memory: str = Field(
        default="auto",
        description="memory limit of DuckDB, in its own notation ('4GB'); 'auto': a quarter of the machine's memory, "
        "at most 4GB. What does not fit goes to the run's work folder, or the system's temporary one (`TMPDIR`)",
    )


class RunConfig(Group):
    """One run: everything that `jacobian run`, a profile or a deployment can set."""

    name: str = Field(default="run", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="first part of the run id")
    sae: SaeConfig = Field(description="the SAE pair")
    model: ModelConfig = Field(description="the language model")
    corpus: CorpusConfig = Field(description="the text")
    jacobian: JacobianConfig = Field(default_factory=JacobianConfig, description="what is computed and stored")
    interventions: InterventionConfig = Field(
        default_factory=InterventionConfig, description="what is changed to see what happens"
    )
    all_inputs: AllInputsConfig = Field(
        default_factory=AllInputsConfig, description="aggregates over every input latent"
    )
    quality: QualityConfig = Field(default_factory=QualityConfig, description="limits that stop a run")
    marts: MartsConfig = Field(default_factory=MartsConfig, description="what reports need not count themselves")
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="how the work is done")
    lake: LakeConfig = Field(default_factory=LakeConfig, description="where and how the data is written")
