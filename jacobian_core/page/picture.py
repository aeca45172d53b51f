"""A figure with everything that stands around it: heading, caption, a text for who can't see it, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LEAST_PERCENT = 0.001
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


def each_run(said: Sequence[tuple[str, str]]) -> str:
    """What is said of each run, as a sentence without its full stop; without the label where there is only one."""
    if len(said) == 1:
        return said[0][1][:1].upper() + said[0][1][1:]
    return "; ".join(f"{label}: {words}" for label, words in said)


def shown(value: float | None) -> str:
    """A number in running text: three digits, a true minus, 10⁻⁸ rather than 1e-08."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        return mantissa.replace("-", "−")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa.replace('-', '−')}\u202f×\u202f{power}"


def percent(share: float | None) -> str:
    """A share in running text: three digits, and never rounded to 0 or to 100 where it is not."""
    if share is None:
        return "unknown"
    value = 100 * share
    if 0 < value < _LEAST_PERCENT:
        return f"<{_LEAST_PERCENT}\u00a0%"
    digits = f"{value:.3g}"
    if digits == "100" and value < 100:
        digits = ">99.9"
    return f"{digits}\u00a0%"
