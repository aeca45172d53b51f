"""What every command prints: results on stdout (text or JSON), notes on stderr, one line for an error."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows import json_log
from flows.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

LOG_FILES_KEPT = 20


def say(text: str) -> None:
    """A line of a command's result."""
    typer.echo(printable(text))


def note(text: str, level: str = "info") -> None:
    """A line for the reader that is no part of the result; a JSON line where logs are wanted as such."""
    line = printable_json(json_log.json_line(level, "jacobian", text)) if json_log.wanted() else printable(text)
    typer.echo(line, err=True)


class WarningNotes(logging.Handler):
    """Shows warnings of the project's own modules as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        note(f"{record.levelname.lower()}: {record.getMessage()}")


def show_warnings() -> None:
    """Show what the core warns of; what it merely tells goes to whoever listens (the Prefect UI's log)."""
    core = logging.getLogger("jacobian_core")
    core.setLevel(logging.INFO)
    if not any(isinstance(handler, WarningNotes) for handler in core.handlers):
        core.addHandler(WarningNotes(logging.WARNING))


def say_json(value: Any) -> None:
    """A result for programs: one JSON document on stdout."""
    typer.echo(printable_json(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str)))


def plain(value: Any) -> Any:
    """Models, dataclasses and their containers as what JSON has; not-a-number becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def console() -> Console:
    """The console for tables: as wide as the terminal, 100 columns in a pipe."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 100, soft_wrap=False)


def say_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a table with right-aligned numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from flows.ui import figure

    if not rows:
        return say(f"{title}: none")
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, (int, float)) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(figure(value))) for value in row.values()))
    return console().print(table)


def traceback_text(error: BaseException) -> str:
    """The traceback without secrets: a library may put an address with credentials into its message."""
    from jacobian_core.artifact.redact import hide_secrets

    return hide_secrets("".join(traceback.format_exception(error)))


def write_error_log(error: BaseException) -> Path | None:
    """The traceback, without secrets, in a file of the user's state folder; None if that can't be written."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "jacobian-flows"
    path = base / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        base.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback_text(error))
        for old in sorted(base.glob("error-*.log"))[:-LOG_FILES_KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return None
    return path
