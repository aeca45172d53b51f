"""From a sweep's axes to its cells: the runs that it is, each with its name and settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.profiles import build_model, load_config
from jacobian_core.sweep.config import SweepConfig, SweepPair, SweepVariant
from jacobian_core.training.config import TrainPairConfig

_SHORT = {"model": "trained", "randomised": "random", "artifact": "artifact"}
"""What run names and figures call the weights."""
_LONGEST_NAME = 40
_SET_HERE = ("model", "output", "checkpoint")
"""Training settings that the cell decides."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; `training` is how its pair is made, None where the pair is taken from somewhere."""

    label: str
    layer: int | None
    pair: str
    weights: str
    variant: str
    config: RunConfig
    training: TrainPairConfig | None

    @property
    def series(self) -> str:
        """What a figure over the layers calls the line that this cell is a point of."""
        return ", ".join(part for part in (self.pair, self.weights, self.variant) if part)

    @property
    def tags(self) -> list[str]:
        """Its place on each axis, for Prefect."""
        places = {"layer": self.layer, "pair": self.pair, "weights": self.weights, "variant": self.variant or None}
        return [f"{axis}:{place}" for axis, place in places.items() if place is not None]


@dataclass(frozen=True)
class _Place:
    """A cell's place on the axes."""

    layer: int | None
    weights: str
    pair: SweepPair
    variant: SweepVariant | None

    @property
    def label(self) -> str:
        layer = "" if self.layer is None else f"l{self.layer}"
        variant = self.variant.name if self.variant else ""
        return "-".join(part for part in (layer, self.pair.name, _SHORT[self.weights], variant) if part)

    def fill(self, text: str) -> str:
        """The text with `{layer}`, `{weights}` and `{pair}` replaced; other braces (TOML's tables) stay."""
        values = {"layer": self.layer, "weights": self.weights, "pair": self.pair.name}
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


def expand(sweep: SweepConfig, base: Path, lake: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """The cells of a sweep in their order: layer by layer, and in each the weights, pairs and variants.

    Args:
        sweep: the sweep.
        base: the folder that its relative paths are meant from.
        lake: where the runs go.
        overrides: `group.key=value`, over everything else, in every run.

    Raises ConfigError, naming the cell, for settings that make no run.
    """
    cells = [_cell(sweep, place, base, lake, overrides) for place in _places(sweep)]
    if not cells:
        raise ConfigError(f"sweep {sweep.name}: no pair is for any of its layers and weights.", "Check pairs.layers.")
    return cells


def _places(sweep: SweepConfig) -> Iterator[_Place]:
    for layer, weights, pair, variant in itertools.product(
        sweep.layers or (None,), sweep.weights, sweep.pairs, sweep.variants or (None,)
    ):
        if pair.layers is not None and layer not in pair.layers:
            continue
        if pair.weights is None or weights in pair.weights:
            yield _Place(layer, weights, pair, variant)


def _cell(sweep: SweepConfig, place: _Place, base: Path, lake: str, overrides: Sequence[str]) -> Cell:
    name = f"{sweep.name}-{place.label}"
    if len(name) > _LONGEST_NAME:
        problem = f"sweep {sweep.name}: the run's name '{name}' has more than {_LONGEST_NAME} characters."
        raise ConfigError(problem, "Give the sweep, the pair or the variant a shorter name.")
    own = [f"model.weights={place.weights}", *([] if place.layer is None else [f"model.layer={place.layer}"])]
    variant = place.variant.settings if place.variant else ()
    given = [place.fill(text) for text in (*sweep.settings, *place.pair.settings, *variant)]
    profile = str(base / sweep.profile) if sweep.profile.endswith(".toml") else sweep.profile
    try:
        # Those of the command line come last, so the paths in them are meant from the sweep's folder as well.
        config = load_config(profile, [*given, *own, *overrides, f"name={name}"], lake, folder=base)
        training = _training(sweep, place, base, config) if place.pair.train is not None else None
    except ConfigError as error:
        raise ConfigError(f"sweep {sweep.name}, {place.label}: {error.problem}", error.remedy) from None
    variant_name = place.variant.name if place.variant else ""
    return Cell(place.label, place.layer, place.pair.name, _SHORT[place.weights], variant_name, config, training)


def _training(sweep: SweepConfig, place: _Place, base: Path, config: RunConfig) -> TrainPairConfig:
    """The training of a cell's pair; its output folder is the caller's to choose (`trained.py`)."""
    given: dict[str, JsonValue] = {**sweep.train, **(place.pair.train or {})}
    if taken := [key for key in _SET_HERE if key in given]:
        raise ConfigError(f"train.{taken[0]}: the sweep itself decides it.", "Remove it.")
    data: dict[str, Any] = {key: _filled(place, value) for key, value in given.items()}
    for key in ("training_shards", "held_out_shards"):
        if isinstance(data.get(key), list):
            data[key] = [str(base / Path(str(shard)).expanduser()) for shard in data[key]]
    for key in ("activation_folder", "token_folder"):
        if isinstance(data.get(key), str):
            data[key] = str(base / Path(data[key]).expanduser())
    # What cfg.json says of both is part of the pair's digest: no path of this machine belongs there.
    named = {"model_name": Path(config.model.name).name, "dataset_name": f"sweep {sweep.name}"}
    data = named | data | {"model": config.model.model_dump(mode="json"), "output": "."}
    return build_model(TrainPairConfig, data, f"sweep {sweep.name}: train")


def _filled(place: _Place, value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return [_filled(place, each) for each in value]
    return place.fill(value) if isinstance(value, str) else value
