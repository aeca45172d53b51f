"""What every command prints: results on stdout (text or JSON), notes on stderr, one line for an error."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from flows import json_log
from flows.printable import printable, printable_json

LOG_FILES_KEPT = 20
_PIPE_COLUMNS, _LEAST_COLUMNS, _TEXT_COLUMNS = 100, 60, 100
_FOLDED_COLUMNS = 64


def say(text: str) -> None:
    """A line of a command's result."""
    typer.echo(printable(text))


def say_text(text: str, indent: str = "") -> None:
    """A paragraph of a command's result, its lines as long as the terminal's, but not longer than reads well."""
    width = min(line_width(), _TEXT_COLUMNS)
    say(textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ))  # fmt: skip


def line_width() -> int:
    """Columns of a line of output: the terminal's, or in a pipe always the same."""
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns) if sys.stdout.isatty() else _PIPE_COLUMNS


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


def say_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows under a title, numbers to the right; what does not fit the line stands below, beside the first column."""
    from flows.ui import figure
    from jacobian_core.sql.render import Column, panels

    if not rows:
        return say(f"{title}: none")
    width, columns = line_width(), []
    for name, value in rows[0].items():
        cells, numeric = [printable(figure(row[name])) for row in rows], isinstance(value, (int, float))
        columns.append(Column(name.replace("_", " "), cells, not numeric, _FOLDED_COLUMNS))
    return say("\n".join([title, *panels(columns, width)]))


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
