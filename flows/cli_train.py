"""`jacobian train-pair`: train a Jacobian SAE pair on one MLP of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import DEFAULT_LAKE, Json, Lake, Settings
from flows.output import note, say, say_json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="train-pair")(train_pair)


def train_pair(
    file: Annotated[Path, typer.Argument(help="TOML file with the training's settings.")],
    settings: Settings = None,
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Train a Jacobian SAE pair on one MLP of a model.

    Example: jacobian train-pair pair.toml --set jacobian_coefficient=0
    """
    from flows.cli_run import prefect_for
    from jacobian_core.profiles import build_model, read_toml
    from jacobian_core.training.config import TrainPairConfig

    config = build_model(TrainPairConfig, read_toml(file), str(file), settings or ())
    local = prefect_for(lake)
    from flows.train_pair import train_pair as flow

    result = flow(config)
    say_json({"output": str(config.output), "result": result}) if json else say(f"pair: {config.output}")
    if local is not None:
        note(f"Prefect UI: {local.ui} (stop it: jacobian server stop --lake {lake})")
