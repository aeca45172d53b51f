"""What a run tells while it goes on: stages as short lines, and one live line of figures.

The flow reports to the listeners of the current context (`listening`), so the same flow serves a terminal, a log file
and the Prefect UI; a listener may be called for every block and limits its own rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol, TextIO

from flows.printable import printable

PLAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Figures:
    """How far a run is; `tokens_total` None: not known before the corpus ends. `seconds` since computing began."""

    tokens_total: int | None
    tokens_done: int = 0
    tokens_fresh: int = 0
    entries: int = 0
    bytes: int = 0
    blocks: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Rate over the tokens that this very run computed, not those it found done."""
        return self.tokens_fresh / self.seconds if self.seconds > 0 else 0.0

    @property
    def entries_per_second(self) -> float:
        """Stored entries at that rate: those of a block that was found done count with its tokens."""
        return self.entries / max(1, self.tokens_done) * self.tokens_per_second

    @property
    def fraction(self) -> float | None:
        """Share of the tokens that are done, 0 to 1; None where the total is not known."""
        return None if self.tokens_total is None else min(1.0, self.tokens_done / max(1, self.tokens_total))

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the present rate; None where it can't be said, and at the end."""
        rate = self.tokens_per_second
        left = max(0, (self.tokens_total or 0) - self.tokens_done)
        return left / rate if left and rate else None

    def line(self) -> str:
        """The figures as one line of plain text."""
        total = "" if self.tokens_total is None else f" of {self.tokens_total:,}"
        eta = "" if self.eta_seconds is None else f" · ETA {clock(self.eta_seconds)}"
        return (
            f"{self.tokens_done:,}{total} tokens · {self.tokens_per_second:,.0f} tokens/s · "
            f"{short(self.entries)} entries · {short(self.bytes, 'B')}{eta}"
        )


class Listener(Protocol):
    """Something that shows a run's progress."""

    def note(self, text: str) -> None:
        """A stage has ended; `text` says its outcome."""

    def update(self, figures: Figures) -> None:
        """A block has ended, or the run has (then `figures` are final)."""

    def summary(self, facts: Mapping[str, object]) -> None:
        """The run is published: what it has, took and cost, as `results.run_facts` says it."""

    def close(self, figures: Figures) -> None:
        """The last figures; nothing follows."""


_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(*listeners: Listener) -> Iterator[None]:
    """Runs inside this context report to these listeners."""
    token = _listeners.set(listeners)
    try:
        yield
    finally:
        _listeners.reset(token)


class Meter:
    """Adds up the blocks of one run and passes the figures on."""

    def __init__(self, *more: Listener) -> None:
        self._to = (*_listeners.get(), *more)
        self._began: float | None = None
        self.figures = Figures(None)

    def note(self, text: str) -> None:
        """Tell that a stage has ended, and how; an empty text is not told."""
        for listener in self._to if text else ():
            listener.note(text)

    def begin(self, tokens_total: int | None) -> None:
        """Computing begins: the clock of the rate starts."""
        self.figures, self._began = Figures(tokens_total), time.monotonic()
        self._tell()

    def add(self, tokens: int, entries: int, size: int, fresh: bool) -> None:
        """One block of `tokens` tokens, `entries` stored entries and `size` bytes is done; `fresh`: by this run."""
        now, f = time.monotonic(), self.figures
        self.figures = replace(
            f,
            tokens_done=f.tokens_done + tokens,
            tokens_fresh=f.tokens_fresh + tokens * fresh,
            entries=f.entries + entries,
            bytes=f.bytes + size,
            blocks=f.blocks + 1,
            seconds=now - (now if self._began is None else self._began),
        )
        self._tell()

    def summary(self, facts: Mapping[str, object]) -> None:
        """The run is published, with these figures and places."""
        for listener in self._to:
            listener.summary(facts)

    def close(self, complete: bool) -> None:
        """The run has ended; if it is `complete`, what is done is all there was."""
        if complete:
            self.figures = replace(self.figures, tokens_total=self.figures.tokens_done)
        for listener in self._to:
            listener.close(self.figures)

    def _tell(self) -> None:
        for listener in self._to:
            listener.update(self.figures)


class PlainLines:
    """For a pipe or a log file: a line for every stage, and one of figures every few seconds."""

    def __init__(self, stream: TextIO, seconds: float = PLAIN_SECONDS) -> None:
        self._stream, self._seconds = stream, seconds
        self._last: tuple[float, Figures | None] = (float("-inf"), None)

    def note(self, text: str) -> None:
        """Write the line; a reader that has gone stops no run."""
        with suppress(BrokenPipeError):
            print(printable(text), file=self._stream, flush=True)

    def update(self, figures: Figures) -> None:
        """Write the figures if the last ones are old enough."""
        if figures.blocks and time.monotonic() - self._last[0] >= self._seconds:
            self._write(figures)

    def summary(self, facts: Mapping[str, object]) -> None:
        """The command prints them."""

    def close(self, figures: Figures) -> None:
        """Write the last figures."""
        if figures.blocks and figures != self._last[1]:
            self._write(figures)

    def _write(self, figures: Figures) -> None:
        self._last = (time.monotonic(), figures)
        self.note(f"  {figures.line()}")


class LiveLine:
    """For a terminal: one line that is redrawn in place; stages stay above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        self._progress = Progress(
            *columns, console=Console(stderr=True, highlight=False), refresh_per_second=4, transient=True
        )
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()

    def note(self, text: str) -> None:
        """Write the line above the live one."""
        self._progress.console.print(printable(text), markup=False)

    def update(self, figures: Figures) -> None:
        """Redraw the line."""
        self._progress.update(
            self._task, description=figures.line(), total=figures.tokens_total, completed=figures.tokens_done
        )

    def summary(self, facts: Mapping[str, object]) -> None:
        """The command prints them."""

    def close(self, figures: Figures) -> None:
        """Leave the last figures as an ordinary line."""
        self.stop()
        if figures.blocks:
            self.note(f"  {figures.line()}")

    def stop(self) -> None:
        """Remove the live line; calling it again does nothing."""
        self._progress.stop()


def short(number: float, unit: str = "") -> str:
    """A quantity with three digits and k, M, G or T before its unit: 12_345_678 is '12.3 M', with 'B' '12.3 MB'."""
    value, prefix = float(number), ""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    digits = f"{value:.3g}" if prefix else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
