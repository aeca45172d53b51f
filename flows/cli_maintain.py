"""`jacobian compact`, `prune` and `export`: fewer and larger files, fewer runs, one run to give away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import DEFAULT_LAKE, Json, Lake, Run
from flows.output import note, plain, say, say_json, say_table

Grace = Annotated[
    float | None,
    typer.Option("--grace", min=0, help="Seconds that replaced files stay for who reads them; default 3600."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (compact, prune, export):
        app.command()(command)


def compact(
    run: Run = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Rows of a large part; default 50 million.")] = None,
    grace: Grace = None,
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Merge the small files of finished runs into large ones.

    Readers see all rows once at every moment. The files that were merged are removed by a later compact or prune, an
    hour or more afterwards.

    Example: jacobian compact --run demo --lake lake
    """
    from flows.maintenance import compact_lake, sweep
    from flows.progress import short

    done, failures = compact_lake(lake, run, rows)
    swept = None if failures else sweep(lake, grace)  # in a damaged lake, old files may be wanted
    if json:
        say_json({"runs": done, "failed": [str(error) for error in failures], "swept": swept})
    else:
        say_table("Compaction", [
            {"run": each.run_id, "files before": each.parts_before, "files after": each.parts_after,
             "before": short(each.bytes_before, "B"), "after": short(each.bytes_after, "B")}
            for each in done
        ])  # fmt: skip
        if swept is not None:
            say(_swept(swept.removed, swept.waiting, swept.waiting_bytes))
    for error in failures[1:]:
        note(f"error: {error}", "error")
    if failures:
        raise failures[0]


def prune(
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="Keep this many of the newest runs of each name.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help="Take out this run; repeatable.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--no-dry-run", help="Only say what would go (the default).")
    ] = True,
    grace: Grace = None,
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Take finished runs out of a lake.

    Queries no longer see them from then on; their files are removed by a later prune or compact. A scheduled ingest
    analyses the shards of a run that was taken out again.

    Example: jacobian prune --keep 3 --no-dry-run
    """
    from flows.maintenance import prune_lake, sweep
    from flows.progress import short

    done = prune_lake(lake, keep, run or [], really=not dry_run)
    swept = None if dry_run else sweep(lake, grace)
    if json:
        return say_json({**plain(done), "swept": swept})
    verb = "would go" if dry_run else "gone"
    for each in done.runs:
        say(f"{verb}: {each}")
    say(f"{len(done.runs)} runs, {short(done.bytes, 'B')} {verb}; {len(done.kept)} stay")
    if swept is not None:
        say(_swept(swept.removed, swept.waiting, swept.waiting_bytes))
    elif done.runs:
        note("nothing was removed: add --no-dry-run to do it")
    return None


def export(
    run: Annotated[str, typer.Argument(help="A run's id, or its beginning.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    lake: Lake = DEFAULT_LAKE,
    json: Json = False,
) -> None:
    """Write one run as a folder that stands alone.

    Parts, manifest, data dictionary, reports, and a warehouse that plain DuckDB opens from inside the folder.

    Example: jacobian export demo demo-run
    """
    from flows.maintenance import export as export_run
    from flows.progress import short

    done = export_run(lake, run, folder)
    if json:
        return say_json(done)
    return say(f"{done.run_id}: {done.files} files, {short(done.bytes, 'B')} in {done.folder}")


def _swept(removed: int, waiting: int, waiting_bytes: int) -> str:
    from flows.progress import short

    wait = f"; {waiting} ({short(waiting_bytes, 'B')}) wait for their time" if waiting else ""
    return f"replaced files: {removed} removed{wait}"
