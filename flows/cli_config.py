"""`jacobian profiles` and `jacobian config`: what can be asked for, and what a profile asks for."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli_options import Json, LakeOfRun, Profile, Settings, config_of
from flows.output import say, say_json, say_table

profiles = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List the profiles, or show one.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(profiles, name="profiles")
    app.command(name="config")(config)


@profiles.command(name="list")
def list_(json: Json = False) -> None:
    """The profiles that ship with the project.

    Example: jacobian profiles list
    """
    from jacobian_core.profiles import list_profiles

    rows = [{"profile": p.name, "summary": p.summary} for p in list_profiles()]
    say_json(rows) if json else say_table("Profiles", rows)


@profiles.command()
def show(profile: Annotated[str, typer.Argument(help="A profile's name, or the path of a TOML file.")]) -> None:
    """A profile's file, to copy and change.

    Example: jacobian profiles show demo > mine.toml
    """
    from jacobian_core.profiles import profile_path

    say(profile_path(profile).read_text(encoding="utf-8").rstrip())


def config(
    profile: Profile = "demo",
    lake: LakeOfRun = None,
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Describe every setting, as JSON Schema.")] = False,
    json: Json = False,
) -> None:
    """Every setting of a run as it would be used, defaults included.

    Example: jacobian config --profile demo --set jacobian.min_abs=0.01
    """
    from jacobian_core.config import RunConfig

    if schema:
        return say_json(RunConfig.model_json_schema())
    found = config_of(profile, settings, lake).model_dump(mode="json")
    if json:
        return say_json(found)
    for group, values in found.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            say(f"{group}{'.' if key else ''}{key} = {'null' if value is None else value}")
    return None
