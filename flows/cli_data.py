"""`jacobian report`, `sql`, `verify` and `runs`: what is in a lake. They work while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import DEFAULT_LAKE, Json, Lake, Run
from flows.output import line_width, say, say_json, say_table, say_text
from jacobian_core.lake.paths import LakePath, lake_path

if TYPE_CHECKING:
    import pyarrow as pa

_NOT_CLEAN = 1
_MINUTES = len("2026-01-02T03:04")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (report, sql, verify, runs):
        app.command()(command)


def report(
    names: Annotated[list[str] | None, typer.Argument(help="Reports; default: those that every run ends with.")] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="A run's id, or its beginning; with --html repeatable.")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the reports; repeatable.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the reports and their parameters.")] = False,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write Parquet and CSV into the lake.")] = True,
    html: Annotated[bool, typer.Option("--html", help="Write a page with figures instead: one HTML file.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="With --html: the folder to write into.")] = None,
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Print reports on a run, and write them as files.

    Each becomes a Parquet and a CSV file under <lake>/reports/<run>. With --html, one page of figures that needs no
    network; several --run are laid over each other.

    Example: jacobian report mean_max_aggregates --set top=5
    """
    from flows.results import choose_run, reports_of, run_reports, say_reports, write_reports

    if show_list:
        return _list_reports(json)
    if html:
        return _html(lake, run, out, json, bool(names or parameters))
    run_id = choose_run(lake, _only_run(run, out))
    tables = run_reports(lake, run_id, tuple(names or reports_of(lake, run_id)), _assignments(parameters))
    written = write_reports(lake, run_id, tables) if write else []
    if json:
        return say_json({"run_id": run_id, "reports": {n: t.to_pylist() for n, t in tables.items()}, "files": written})
    say_reports(tables)
    if written:
        say(f"written: {len(written)} files in {lake_path(written[0]).parent}")
    return None


def _html(lake: LakePath, wanted: list[str] | None, folder: Path | None, json: bool, more: bool) -> None:
    """`jacobian report --html`: where the page is, or its files as JSON."""
    from flows.results import choose_run, html_page
    from jacobian_core.errors import ConfigError

    if more:
        raise ConfigError("--html takes no reports and no --set.", "Leave them out: the page has its own figures.")
    chosen = [choose_run(lake, name) for name in wanted] if wanted else [choose_run(lake, None)]
    page = html_page(lake, chosen, folder)
    return say_json({"run_ids": chosen, "files": page.files}) if json else say(f"page: {page.path}")


def _only_run(wanted: list[str] | None, folder: Path | None) -> str | None:
    from jacobian_core.errors import ConfigError

    if folder is not None:
        raise ConfigError("--out is for --html.", "Reports are written into the lake; or add --html.")
    if wanted and len(wanted) > 1:
        raise ConfigError("several --run, but reports are about one.", "Add --html for a page that compares runs.")
    return wanted[0] if wanted else None


def sql(
    query: Annotated[str, typer.Argument(help="A SQL statement, or a file that holds one.")],
    run: Annotated[str | None, typer.Option("--run", help="Only this run; without it the views show all.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A value for $name; repeatable.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the rows into this CSV file.")] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Allow one statement that writes, or reads other files: COPY ... TO, ATTACH."),
    ] = False,
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Run a SQL query over the lake; without --write it only reads.

    Example: jacobian sql "SELECT run_id, count(*) AS entries FROM jacobian_entries GROUP BY run_id"
    """
    from flows.results import run_query

    table = run_query(lake, query, run, _assignments(parameters), write)
    if csv is not None:
        _write_csv(table, csv)
    if json:
        return say_json(table.to_pylist())
    if csv is None:
        from jacobian_core.sql.render import render

        say(render(table, width=line_width()))
    return None


def verify(lake: Lake = DEFAULT_LAKE, run: Run = None, json: Json = False) -> None:
    """Re-check a lake: files, contracts and SQL checks.

    Ends with exit code 1 if there is an error.

    Example: jacobian verify --lake lake
    """
    from flows.results import choose_run, verify_all

    findings = verify_all(lake, None if run is None else choose_run(lake, run))
    errors = sum(f["severity"] == "error" for f in findings)
    if json:
        say_json({"clean": not errors, "findings": findings})
    else:
        for f in findings:
            say(f"{f['severity']}: {f['path'] or f['run_id']}: {f['what']} {f['remedy']}")
        say(f"{lake}: {errors} errors, {len(findings) - errors} warnings" if findings else f"{lake}: clean")
    if errors:
        raise typer.Exit(_NOT_CLEAN)


def runs(lake: Lake = DEFAULT_LAKE, json: Json = False) -> None:
    """List the runs of a lake, the latest last.

    Example: jacobian runs --lake lake
    """
    from flows.output import plain
    from flows.progress import short
    from jacobian_core.lake.layout import Lake as OpenLake
    from jacobian_core.sql.run_list import list_runs

    found = [plain(info) for info in list_runs(OpenLake.open(lake))]
    if json:
        return say_json(found)
    for row in found:
        del row["blocks"]
        row["bytes"] = short(row["bytes"], "B")
        row["created_utc"] = (row["created_utc"] or "")[:_MINUTES].replace("T", " ")
    return say_table("Runs", found)


def _assignments(items: list[str] | None) -> dict[str, str]:
    from jacobian_core.errors import ConfigError

    found: dict[str, str] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {item}: there is no '='.", "Write it as name=value.")
        found[name.strip()] = value
    return found


def _list_reports(json: bool) -> None:
    from jacobian_core.sql.reports import list_reports

    rows = [
        {
            "report": info.name,
            "question": info.purpose,
            "parameters": ", ".join(f"{p.name}={p.default}" for p in info.parameters if p.default is not None),
        }
        for info in list_reports()
    ]
    if json:
        return say_json(rows)
    for row in rows:
        say(row["report"])
        for text in (row["question"], row["parameters"]):
            say_text(text, "  ")
    return None


def _write_csv(table: pa.Table, path: Path) -> None:
    from pyarrow import csv

    from jacobian_core.errors import QueryError

    try:
        csv.write_csv(table, str(path))
    except OSError as error:
        raise QueryError(f"{path} can't be written: {error.strerror or error}.") from None
