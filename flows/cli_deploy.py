"""`jacobian serve`, `worker`, `deploy` and `status`: what runs unattended, and how it stands."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import DEBUG, DEFAULT_LAKE, Json, Lake, Profile
from flows.output import note, say, say_json, say_table

CpuLimit = Annotated[int, typer.Option("--cpu-limit", min=1, help="Flow runs that the worker without a GPU takes.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 4200, or a free one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (serve, worker, deploy, status):
        app.command()(command)


def serve(profile: Profile = "demo", lake: Lake = DEFAULT_LAKE, port: Port = None, cpu_limit: CpuLimit = 2) -> None:
    """Run server, deployments and workers here until Ctrl-C.

    The ingest takes the next shard of the profile's corpus every hour. There is a worker for each GPU.

    Example: jacobian serve --profile demo --lake lake
    """
    from flows.serve import serve as run_all
    from jacobian_core.lake.layout import Lake as TheLake
    from jacobian_core.profiles import load_config

    load_config(profile, (), str(lake))  # a mistake in the profile is said now, not in an hour
    TheLake.create(lake)
    _prepare()
    note("starting the Prefect server and the deployments ...")
    run_all(lake, _absolute(profile), port, cpu_limit, note)


def worker(
    pool: Annotated[str, typer.Option(help="The work pool: cpu or gpu.")] = "cpu",
    device: Annotated[
        list[str] | None, typer.Option(help="A GPU for a worker of its own; repeatable. Pool gpu: default all.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Flow runs that each worker takes at once.")] = 1,
    lake: Lake = DEFAULT_LAKE,
) -> None:
    """Run workers here until Ctrl-C: one, or one for each GPU.

    They serve the Prefect server of PREFECT_API_URL, or else the lake's own.

    Example: jacobian worker --pool gpu --device 0
    """
    from flows.serve import work
    from flows.workers import WorkerSpec, visible_devices
    from jacobian_core.errors import ConfigError

    devices = device or (visible_devices() if pool == "gpu" else [])
    if pool == "gpu" and not devices:
        raise ConfigError("pool gpu needs a GPU, and none is visible.", "Name one with --device, or use --pool cpu.")
    _prepare()
    host = f"{socket.gethostname()}-{pool}"
    specs = [WorkerSpec(pool, f"{host}-{each}", limit, each) for each in devices]
    work(specs or [WorkerSpec(pool, f"{host}-{os.getpid()}", limit)], lake, note)


def deploy(
    profile: Profile = "demo",
    lake: Lake = DEFAULT_LAKE,
    pool: Annotated[str, typer.Option(help="The work pool that computes: cpu or gpu.")] = "cpu",
    json: Json = False,
) -> None:
    """Create the deployments on the Prefect server.

    With them come their pools and queues, and the rule that marks killed runs as crashed.

    Example: jacobian deploy --profile demo --lake lake --pool gpu
    """
    from flows.deploy import POOLS, Targets
    from flows.deploy import deploy as apply
    from flows.prefect_api import use_server
    from jacobian_core.errors import ConfigError
    from jacobian_core.profiles import load_config

    if pool not in POOLS:
        raise ConfigError(f"there is no pool '{pool}'.", f"Pools: {', '.join(POOLS)}.")
    load_config(profile, (), str(lake))
    _prepare()
    use_server(lake)
    names = apply(Targets(lake, _absolute(profile), pool))
    if json:
        return say_json(names)
    for name in names:
        say(name)
    return None


def status(lake: Lake = DEFAULT_LAKE, json: Json = False) -> None:
    """Show server and workers, what runs, and what failed last.

    Example: jacobian status --lake lake
    """
    from flows.output import plain
    from flows.status import read_status

    found = read_status(lake)
    if json:
        return say_json(found)
    say(f"server: {found.server or 'none answers (start one: jacobian serve)'}")
    for title, rows in (
        ("Workers", found.workers),
        ("Runs of the lake in progress", found.in_progress),
        ("Flow runs", found.flow_runs),
    ):
        say_table(title, [plain(row) for row in rows])
    if found.next_scheduled:
        say(f"next: {found.next_scheduled.deployment or found.next_scheduled.name} at {found.next_scheduled.at}")
    failed = found.last_failure
    say(f"last failure: {failed.name}, {failed.state} at {failed.at}: {failed.message}" if failed else "no failure")
    return None


def _prepare() -> None:
    """What `prefect` must find in the environment before it is imported."""
    if not os.environ.get(DEBUG):
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "jacobian_core")


def _absolute(profile: str) -> str:
    """A profile's name as it is, its path absolute: workers run in another folder."""
    return str(Path(profile).expanduser().resolve()) if profile.endswith(".toml") or "/" in profile else profile
