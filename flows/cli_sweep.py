"""`jacobian sweep`: many runs as one request, over layers, weights and SAE pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import DEFAULT_LAKE, Json, Lake, Settings
from flows.cli_run import StopServer, execute
from flows.output import say, say_json, say_table, say_text
from jacobian_core.lake.paths import LakePath, lake_path

if TYPE_CHECKING:
    from jacobian_core.sweep.cells import Cell
    from jacobian_core.sweep.figures import CellFigures


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(sweep)


def sweep(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or the path of a TOML file.")] = "demo-layers",
    lake: Lake = DEFAULT_LAKE,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    stop_server: StopServer = False,
    json: Json = False,
) -> None:
    """Run every layer, weights and pair of a sweep onto one page.

    Pairs that lack are trained first, and the same command again does only what lacks. A run that fails does not stop
    the others; the exit code is then 9.

    Example: jacobian sweep demo-layers --set corpus.max_tokens=2000
    """
    from jacobian_core.sweep.cells import expand
    from jacobian_core.sweep.config import load_sweep

    config, base = load_sweep(sweep)
    cells = expand(config, base, str(lake), settings or ())
    if dry_run:
        return _list(cells, json)

    def flow() -> str:
        from flows.sweep import sweep as sweep_flow

        return str(sweep_flow(sweep, str(lake), list(settings or ())))

    return execute(
        lake_path(cells[0].config.lake.root), flow, stop_server, lambda found: _show(lake, found, json), live=False
    )


def _list(cells: list[Cell], json: bool) -> None:
    rows = [
        {
            "run": cell.config.name,
            "layer": cell.layer,
            "pair": cell.pair,
            "weights": cell.weights,
            "tokens": cell.config.corpus.max_tokens,
            "trains": "" if cell.training is None else f"{cell.training.tokens:,} tokens",
        }
        for cell in cells
    ]
    say_json(rows) if json else say_table("The runs of the sweep", rows)


def _show(lake: LakePath, sweep_id: str, json: bool) -> None:
    """The answer by layer, and where the page is."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.page.sweep import answer_sentence
    from jacobian_core.page.write import PAGE_NAME
    from jacobian_core.sweep.figures import gather_figures
    from jacobian_core.sweep.record import choose_sweep

    opened = Lake.open(lake)
    record = choose_sweep(opened, sweep_id)
    cells = gather_figures(opened, record)
    page = opened.report_folder(sweep_id) / PAGE_NAME
    if json:
        answers = [{"layer": each.layer, "series": each.cell.series, **each.answer} for each in cells]
        return say_json({"sweep_id": sweep_id, "page": str(page), "cells": record.cells, "answers": answers})
    say_text(_plain(answer_sentence(cells)))
    say("")
    say_table("Of the active pairs with |J| about 0: what ablating the input latent did", [_row(e) for e in cells])
    return say(f"sweep_id: {sweep_id}\npage: {page}")


def _row(figures: CellFigures) -> dict[str, object]:
    from jacobian_core.page.picture import percent

    a, cell = figures.answer, figures.cell
    low, high = a["share_above_low"], a["share_above_high"]
    return {
        "layer": figures.layer,
        "run": cell.series,
        "zero means none": a["verdict"],
        "moved": _plain(percent(a["share_above"])),
        "95 %": "" if low is None else _plain(f"{percent(low)} to {percent(high)}"),
        "moved and stayed": _plain(percent(a["share_above_staying"])),
        "FVU in, out": _plain(f"{percent(figures.facts['fvu_in'])}, {percent(figures.facts['fvu_out'])}"),
    }


def _plain(text: str) -> str:
    """Text for a terminal, which escapes the page's narrow and unbroken blanks."""
    return text.replace("\u00a0", " ").replace("\u202f", " ")
