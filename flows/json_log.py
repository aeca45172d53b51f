"""Structured logs: one JSON object a line on stderr, for whatever collects the logs of unattended runs.

`--log-json`, or JACOBIAN_LOG_JSON=1 in the environment of a worker. Every line has time (UTC), level, logger and
message; lines about progress have the figures as numbers as well. Secrets are taken out, as everywhere.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from flows.progress import PLAIN_SECONDS, Figures
from jacobian_core.artifact.redact import redact

ENVIRONMENT = "JACOBIAN_LOG_JSON"
_LOGGER = "jacobian"
_by_command: list[bool] = []


def wanted() -> bool:
    """Whether the environment asks for structured logs."""
    return os.environ.get(ENVIRONMENT, "") not in ("", "0", "false")


def json_line(level: str, logger: str, message: str, at: float | None = None, **more: Any) -> str:
    """One log line; `at` is a Unix time, by default now."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
    content = {"time": when, "level": level.lower(), "logger": logger, "message": redact(message), **more}
    return json.dumps(content, ensure_ascii=False, default=str)


class JsonHandler(logging.Handler):
    """Writes the records of the project's loggers as JSON lines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; a reader that has gone stops nothing."""
        more: dict[str, Any] = {}
        if record.exc_info and record.exc_info[1] is not None:
            more["error"] = type(record.exc_info[1]).__name__
        line = json_line(record.levelname, record.name, record.getMessage(), record.created, **more)
        with suppress(BrokenPipeError, ValueError):
            print(line, file=self._stream or sys.stderr, flush=True)


class JsonLines:
    """A listener of runs: stages as lines, figures every few seconds and at the end."""

    def __init__(self, stream: TextIO, seconds: float = PLAIN_SECONDS) -> None:
        self._stream, self._seconds = stream, seconds
        self._last = float("-inf")

    def note(self, text: str) -> None:
        """A stage has ended, or a warning was given."""
        level = "warning" if text.startswith("warning: ") else "info"
        self._write(level, text.removeprefix("warning: "))

    def update(self, figures: Figures) -> None:
        """Write the figures if the last ones are old enough."""
        if figures.blocks and time.monotonic() - self._last >= self._seconds:
            self._figures("progress", figures)

    def summary(self, facts: Mapping[str, object]) -> None:
        """Write what the published run has, took and cost."""
        self._write("info", f"run {facts.get('run_id')} is published", event="summary", **facts)

    def close(self, figures: Figures) -> None:
        """Write the last figures."""
        self._figures("end", figures)

    def _figures(self, event: str, figures: Figures) -> None:
        self._last = time.monotonic()
        rates = {"tokens_per_second": figures.tokens_per_second, "entries_per_second": figures.entries_per_second}
        more = asdict(figures) | {name: round(rate, 1) for name, rate in rates.items()}
        self._write("info", figures.line(), event=event, **more)

    def _write(self, level: str, text: str, **more: Any) -> None:
        with suppress(BrokenPipeError, ValueError):
            print(json_line(level, _LOGGER, text, **more), file=self._stream, flush=True)


def install() -> None:
    """For the command: the project's loggers write JSON lines instead of notes; its own listener shows progress."""
    _by_command.append(True)
    _attach()


def listeners() -> tuple[JsonLines, ...]:
    """The listener of a run in a worker's process, which no command has prepared; none where the command shows it."""
    if not wanted() or _by_command:
        return ()
    _attach()
    return (JsonLines(sys.stderr),)


def _attach() -> None:
    for name in ("jacobian_core", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        for handler in [h for h in logger.handlers if type(h).__name__ in ("WarningNotes", "JsonHandler")]:
            logger.removeHandler(handler)
        logger.addHandler(JsonHandler())
