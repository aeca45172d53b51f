"""What a sweep is asked to do, and where its file is: a base profile and the axes that vary it.

A sweep is a TOML file, as a profile is. Every combination of layer, weights, pair and variant becomes a run of its own
(`cells.py`); nothing else in the product knows of sweeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from jacobian_core.config import Group
from jacobian_core.profiles import build_model, read_toml, shipped_file
from jacobian_core.resources import project_path, project_root

FOLDER = "deployments/sweeps"
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,23}$"

Weights = Literal["model", "randomised", "artifact"]
Override = str
"""`group.key=value`, as after `--set`; `{layer}`, `{weights}` and `{pair}` in it stand for the cell's."""


class SweepPair(Group):
    """One SAE pair of every layer: taken from somewhere, or trained in the sweep."""

    name: str = Field(pattern=NAME_PATTERN, description="what figures and run names call it")
    settings: tuple[Override, ...] = Field(
        default=(),
        description="overrides of its runs, such as sae.location=pairs/{layer}; {layer}, {weights} and {pair} are "
        "replaced by the run's",
    )
    train: dict[str, JsonValue] | None = Field(
        default=None, description="train the pair: these settings of `Training a pair`, over the sweep's own `train`"
    )
    layers: tuple[int, ...] | None = Field(default=None, description="the layers that have this pair; null: all")
    weights: tuple[Weights, ...] | None = Field(
        default=None, description="the weights that this pair is for; null: all"
    )


class SweepVariant(Group):
    """One more axis: the same cells under other settings."""

    name: str = Field(pattern=NAME_PATTERN, description="what figures and run names call it")
    settings: tuple[Override, ...] = Field(description="overrides of its runs")


class SweepConfig(Group):
    """One sweep: every combination of its axes is a run."""

    name: str = Field(pattern=NAME_PATTERN, description="first part of the sweep's id and of its runs' names")
    profile: str = Field(min_length=1, description="the profile that every run starts from: a name, or a path")
    settings: tuple[Override, ...] = Field(default=(), description="overrides of every run")
    layers: tuple[int, ...] = Field(default=(), description="blocks whose MLPs are analysed; empty: as the pair says")
    weights: tuple[Weights, ...] = Field(
        default=("model",),
        min_length=1,
        description="'model': the trained weights; 'randomised': every tensor drawn again; 'artifact': those stored "
        "beside the pair",
    )
    pairs: tuple[SweepPair, ...] = Field(
        min_length=1, description="the SAE pairs, such as a Jacobian pair and its control"
    )
    train: dict[str, JsonValue] = Field(default_factory=dict, description="training settings of all pairs with `train`")
    variants: tuple[SweepVariant, ...] = Field(default=(), description="further settings to compare; empty: none")

    @field_validator("layers", "weights")
    @classmethod
    def _once(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must name each value once")
        return value

    @field_validator("pairs", "variants")
    @classmethod
    def _named_once(cls, value: tuple[SweepPair | SweepVariant, ...]) -> tuple[SweepPair | SweepVariant, ...]:
        if len({each.name for each in value}) < len(value):
            raise ValueError("must have different names")
        return value


def load_sweep(sweep: str) -> tuple[SweepConfig, Path]:
    """The sweep of that name, or of the TOML file at that path, and the folder that paths in it are meant from.

    Raises ConfigError naming file and field.
    """
    path = shipped_file("sweep", FOLDER, sweep)
    base = project_root() if path.parent == project_path(FOLDER) else path.resolve().parent
    return build_model(SweepConfig, read_toml(path), str(path)), base
