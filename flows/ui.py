"""What a run leaves in the Prefect UI: a page in markdown, tables, and a bar that moves while it computes.

These are pictures of the lake for people who watch; nothing reads them back.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from flows.progress import Figures
from jacobian_core.lake.paths import LakePath

_UPDATE_SECONDS = 1.0  # an update costs the server 13 ms, and blocks can be quicker than that
_TABLE_ROWS = 50
_LONG, _LONGEST = 1e4, 1e15  # floats between these are shown whole


class UiProgress:
    """The run's stages in its log, and its progress bar, updated at most once a second."""

    def __init__(self) -> None:
        self._id: UUID | None = None
        self._last = float("-inf")

    def note(self, text: str) -> None:
        """Write the stage's outcome into the run's log."""
        from prefect import get_run_logger

        get_run_logger().info(text)

    def update(self, figures: Figures) -> None:
        """Move the bar, unless it moved within the last second."""
        if time.monotonic() - self._last >= _UPDATE_SECONDS:
            self._write(figures)

    def summary(self, facts: Mapping[str, object]) -> None:
        """The run's page has them."""

    def close(self, figures: Figures) -> None:
        """Set the bar to where the run ended."""
        if self._id is not None:
            self._write(figures)

    def _write(self, figures: Figures) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent = 100 * (figures.fraction or 0.0)
        if self._id is None:
            created = create_progress_artifact(percent, key="tokens", description=figures.line())
            self._id = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._id, progress=percent, description=figures.line())
        self._last = time.monotonic()


def leave_page(run_id: str, page: str) -> None:
    """Leave the run's page in the UI, under a key of its own so that a repeated run gets a history."""
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(page, key=artifact_key(run_id), description=f"Run {run_id}")


def leave_pictures(run_id: str, images: Mapping[str, LakePath], captions: Mapping[str, str] | None = None) -> None:
    """Leave PNG files in the UI, by title, each over its caption.

    They travel inside the artifact, so the server needs no file of the lake.
    """
    from prefect.artifacts import create_markdown_artifact

    if images:
        said = captions or {}
        parts = [
            f"## {escaped(title)}\n\n![figure](data:image/png;base64,{_base64(path)})\n\n{escaped(said.get(title, ''))}"
            for title, path in images.items()
        ]
        page = "\n\n".join([f"# Figures of {run_id}", *parts])
        create_markdown_artifact(page, key=artifact_key(f"figures {run_id}"), description=f"Figures of {run_id}")


def _base64(path: LakePath) -> str:
    from jacobian_core.lake.files import read_bytes

    return base64.b64encode(read_bytes(path) or b"").decode("ascii")


def leave_table(run_id: str, report: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Leave a report's first rows in the UI as a table."""
    from prefect.artifacts import create_table_artifact

    shown = [{name: _cell(value) for name, value in row.items()} for row in rows[:_TABLE_ROWS]]
    left = f", first {_TABLE_ROWS} of {len(rows)} rows" if len(rows) > _TABLE_ROWS else ""
    create_table_artifact(shown, key=artifact_key(report), description=f"{report} of {run_id}{left}")


def artifact_key(name: str) -> str:
    """A name as Prefect wants its keys: lower-case letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")


def run_page(title: str, answer: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The run's page: the answer in sentences, a paragraph each, then a table under each heading."""
    parts = [f"# {title}", *(escaped(paragraph) for paragraph in answer.split("\n\n"))]
    parts += [f"## {escaped(heading)}\n\n{markdown_table(rows[:_TABLE_ROWS])}" for heading, rows in tables.items()]
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a markdown table; text of the corpus can't break out of its cell."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    lines = ["| " + " | ".join(map(escaped, names)) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(escaped(figure(row[name])) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def figure(value: object) -> str:
    """A value for people: integers with separators, floats with four digits."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if _LONG <= abs(value) < _LONGEST else f"{value:.4g}"
    return str(value)


def _cell(value: object) -> object:
    return value if isinstance(value, (int, float, bool)) or value is None else _printable(str(value))


def escaped(text: str) -> str:
    """Text that markdown shows as it is: no markup, no HTML, no link that it was not, no end of its table's cell.

    The UI knows the named entities of HTML and not the numeric ones; a backslash works for the rest.
    """
    shown = _MARKUP.sub(r"\\\g<0>", _printable(text))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_MARKUP = re.compile(r"[\\`|*~\[\]@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "␤" if c == "\n" else "�" for c in text)
