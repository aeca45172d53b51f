"""A figure with everything that stands around it: heading, caption, a text for who can't see it, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Numbers:
    """The table behind a figure."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """One figure of the page; `name` is its file's name, `alt` says what it shows, in numbers."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    numbers: Numbers


def shown(value: float | None) -> str:
    """A number in running text: three digits, a true minus."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−").replace("e+0", "e")


def percent(share: float | None) -> str:
    """A share in running text."""
    if share is None:
        return "unknown"
    value = 100 * share
    if value == 0:
        return "0 %"
    return "<0.001 %" if abs(value) < 0.001 else f"{value:.3g} %".replace("e+02", "00").replace("1e00", "100")
