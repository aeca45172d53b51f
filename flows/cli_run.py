"""`jacobian run`, `analyse` and `plan`: the main flow, the same over an existing run, and what it would cost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_options import DEBUG, DEFAULT_LAKE, Json, Lake, LakeOfRun, Profile, Run, Settings, config_of
from flows.output import note, say, say_json, say_table, say_text
from jacobian_core.lake.paths import LakePath, lake_path

if TYPE_CHECKING:
    from flows.server import ServerState

_STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
_SHOWN_REPORTS = ("threshold_fractions", "mean_max_aggregates", "sparsity")
StopServer = Annotated[bool, typer.Option("--stop-server", help="Stop the local server at the end.")]
_SHOWN_PAIRS = "10"
_SHOWN_SECONDS = 0.5  # of a step in `plan`


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(analyse)
    app.command()(plan)


def run(
    profile: Profile = "demo",
    lake: LakeOfRun = None,
    settings: Settings = None,
    stop_server: StopServer = False,
    json: Json = False,
) -> None:
    """Analyse a corpus: text in, tables and reports out.

    The same command again does no new work; after an interruption it continues.

    Example: jacobian run --profile demo --set corpus.max_tokens=5000
    """
    config = config_of(profile, settings, lake)

    def flow() -> str:
        from flows.run import jacobian_run

        return str(jacobian_run(config))

    root = lake_path(config.lake.root)
    execute(root, flow, stop_server, lambda run_id: _show_result(root, run_id, json))


def analyse(
    run: Run = None,
    settings: Settings = None,
    lake: Lake = DEFAULT_LAKE,
    stop_server: StopServer = False,
    json: Json = False,
) -> None:
    """Analyse an existing run's text again, with other settings.

    It becomes a run of its own beside the first: same pair, model and text. Where neither the run nor --set says which
    latents to change, each is set to zero, and less by one, in a sample of pairs.

    Example: jacobian analyse --run demo --set interventions.pairs=all
    """
    from flows.results import choose_run

    source = choose_run(lake, run)

    def flow() -> str:
        from flows.analyse import analyse

        return str(analyse(str(lake), source, list(settings or ())))

    execute(lake, flow, stop_server, lambda run_id: _show_result(lake, run_id, json))


def execute(
    root: LakePath, flow: Callable[[], str], stop_server: bool, show: Callable[[str], object], live: bool = True
) -> None:
    """Run a flow that returns an id against the configured Prefect server or the lake's own, then `show` its results.

    `flow` must import prefect itself: what it talks to is settled before. `live`: progress is one run's, which a
    terminal shows as a line that moves.
    """
    from flows.server import stop_server as stop
    from jacobian_core.lake.layout import Lake

    Lake.create(root)  # refuse a folder that is something else before a server writes into it
    with _Interruption():
        local = prefect_for(root)
        try:
            found = _run_flow(flow, live)
        finally:
            if stop_server and local is not None:
                stop(root)
    show(found)
    if local is not None and not stop_server:
        note(f"Prefect UI: {local.ui} (stop it: jacobian server stop --lake {_shown(root)})")


def _shown(lake: LakePath) -> str:
    return os.path.relpath(lake) if isinstance(lake, Path) else str(lake)


def plan(
    profile: Profile = "demo",
    lake: LakeOfRun = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Say what a run would cost, before it starts.

    Tokens, entries, bytes, memory and time, from a short calibration on the run's own text.

    Example: jacobian plan --profile demo --set corpus.max_tokens=1000000
    """
    from flows.progress import clock, short
    from jacobian_core.request.plan import plan_run

    found = plan_run(config_of(profile, settings, lake))
    if json:
        return say_json(found)
    rows = [
        {"what": "pair", "estimate": found.pair},
        {"what": "tokens", "estimate": f"{found.tokens:,}"},
        {"what": "stored entries", "estimate": short(found.entries)},
        {"what": "on disk", "estimate": short(found.bytes_on_disk, "B")},
        {"what": "peak memory", "estimate": short(found.peak_memory_bytes, "B")},
        *(
            [{"what": "accumulators", "estimate": f"{short(found.accumulator_bytes)}B"}]
            if found.accumulator_bytes
            else []
        ),
        {"what": "time", "estimate": clock(found.seconds)},
        *(
            {"what": f"  {step}", "estimate": clock(took)}
            for step, took in found.steps.items()
            if took >= _SHOWN_SECONDS
        ),
    ]
    say_table("What the run would cost", rows)
    return say(f"basis: {found.basis}")


def prefect_for(lake: LakePath) -> ServerState | None:
    """Set this process up for Prefect, with the lake's own server if none is configured; before prefect is imported."""
    from flows.prefect_api import configured_api, use_server
    from flows.server import server_status

    if not os.environ.get(DEBUG):  # failures end in one line of our own; everything is in the UI's log
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "jacobian_core")
    if configured_api() is None and server_status(lake) is None:
        note("starting a local Prefect server ...")
    api, local = use_server(lake)
    note(f"Prefect UI: {local.ui if local else api.removesuffix('/api')}")
    return local


def _run_flow(flow: Callable[[], str], live: bool) -> str:
    from flows.progress import listening

    with listening(_listener(live)):
        return flow()


def _listener(live: bool) -> Any:
    from flows import json_log
    from flows.progress import LiveLine, PlainLines

    if json_log.wanted():
        return json_log.JsonLines(sys.stderr)
    return LiveLine() if live and sys.stderr.isatty() else PlainLines(sys.stderr)


def _show_result(lake: LakePath, run_id: str, as_json: bool) -> None:
    from flows.results import ANSWER, answer_of, reports_of, run_facts, run_reports, say_reports
    from flows.ui import figure

    facts = run_facts(lake, run_id)
    if as_json:
        return say_json(facts)
    offered = reports_of(lake, run_id)
    if ANSWER in offered:
        answer = answer_of(run_reports(lake, run_id, (ANSWER,)))
        say_text(f"Do zeros in the Jacobian mean no causal connection? {answer}")
        say("")
    shown = tuple(name for name in _SHOWN_REPORTS if name in offered)
    say_reports(run_reports(lake, run_id, shown, {"top": _SHOWN_PAIRS}))
    for key, value in facts.items():
        say(f"{key}: {figure(value)}")
    return None


class _Interruption:
    """While a run goes on: Ctrl-C and SIGTERM stop it tidily, and a second one at once."""

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        for number in _STOPPED:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and not issubclass(kind, Exception):
            note("stopped; the lake is consistent. To continue, run the same command again.")
            raise typer.Exit(_STOPPED.get(signal.Signals(self._number or signal.SIGINT), 1)) from None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._number:
            os._exit(_STOPPED[signal.Signals(number)])  # what is half-written has no name yet: the lake stays whole
        self._number = number
        note("stopping after the block in hand; once more to stop at once ...")
        raise KeyboardInterrupt
