"""The options that commands share, and what they mean together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jacobian_core.lake.paths import LakePath, lake_path

if TYPE_CHECKING:
    from jacobian_core.config import RunConfig


Profile = Annotated[str, typer.Option("--profile", help="A profile's name, or the path of a TOML file.")]
_WHERE = "The lake: a folder, or s3://bucket/prefix"
if TYPE_CHECKING:
    Lake = LakePath
else:  # typer knows no unions; what it needs is the text's parser
    Lake = Annotated[
        Path, typer.Option("--lake", parser=lake_path, metavar="LAKE", help=f"{_WHERE}.", envvar="JACOBIAN_LAKE")
    ]
LakeOfRun = Annotated[
    str | None,
    typer.Option(
        "--lake", metavar="LAKE", help=f"{_WHERE}; without it, as the profile says (lake).", envvar="JACOBIAN_LAKE"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GROUP.KEY=VALUE", help="Change one setting of the profile; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Run = Annotated[str | None, typer.Option("--run", help="A run's id, or its beginning.")]

DEFAULT_LAKE = Path("lake")
DEBUG = "JACOBIAN_DEBUG"
"""Environment variable that `--debug` sets: tracebacks and all logs are shown."""


def config_of(profile: str, settings: list[str] | None, lake: str | None) -> RunConfig:
    """The run that the shared options ask for; raises ConfigError."""
    from jacobian_core.profiles import load_config

    return load_config(profile, settings or (), lake)
