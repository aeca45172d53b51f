"""`jacobian server`: the lake's own local Prefect server."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli_options import DEFAULT_LAKE, Json, Lake
from flows.output import say, say_json

server = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start, stop or show the local Prefect server.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(server, name="server")


@server.command()
def start(
    lake: Lake = DEFAULT_LAKE,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 4200, or a free one.")] = None,
    json: Json = False,
) -> None:
    """Start the server (or say where it runs already).

    Example: jacobian server start --lake lake
    """
    from flows.server import start_server

    state = start_server(lake, port)
    say_json({"ui": state.ui, "api": state.api, "pid": state.pid}) if json else say(f"Prefect UI: {state.ui}")


@server.command()
def stop(lake: Lake = DEFAULT_LAKE, json: Json = False) -> None:
    """Stop the server; its records stay in the lake.

    Example: jacobian server stop --lake lake
    """
    from flows.server import stop_server

    state = stop_server(lake)
    if json:
        say_json({"stopped": state is not None})
    else:
        say("no server was running" if state is None else f"stopped the server at {state.ui}")


@server.command()
def status(lake: Lake = DEFAULT_LAKE, json: Json = False) -> None:
    """Say whether the server runs, and where.

    Example: jacobian server status --lake lake
    """
    from flows.server import server_status

    state = server_status(lake)
    if json:
        say_json({"running": state is not None, "ui": state.ui if state else None, "pid": state.pid if state else None})
    else:
        say("not running" if state is None else f"running at {state.ui} (process {state.pid})")
