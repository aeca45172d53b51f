"""How a run looks in every figure, and lines with their intervals in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.theme import CARD, LINE_STYLES, MARKERS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.18


def line_style(run: RunData) -> dict[str, Any]:
    """Colour, dashes and marker that mean this run in every figure."""
    return series_style(run.series)


def series_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a line; more lines than colours differ in their dashes."""
    again = number // len(SERIES)
    return {
        "color": SERIES[number % len(SERIES)].light,
        "linestyle": LINE_STYLES[(number + again) % len(LINE_STYLES)],
        "marker": MARKERS[(number + again) % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def open_style(style: dict[str, Any]) -> dict[str, Any]:
    """The same run, for its second quantity: open markers on a thin line."""
    return {**style, "markerfacecolor": CARD.light, "linewidth": 0.9, "markeredgewidth": 1.2}


def draw_line(axes: Axes, run: RunData, rows: Sequence[Row], x: str, y: str, label: str | None) -> None:
    """A line through the rows with a positive value, and its interval as a band where the report has one."""
    positive = [row for row in rows if row[y]]
    axes.plot([row[x] for row in positive], [row[y] for row in positive], label=label, **line_style(run))
    if has_interval(rows, y):
        low, high = f"{y}_low", f"{y}_high"
        # On a logarithmic axis a band can't reach 0: it ends a little below the line's lowest point.
        least = min((row[y] for row in positive), default=1.0) / 3
        known = [row for row in positive if row[low] is not None and row[high] is not None]
        bottom = [max(row[low], least) for row in known]
        axes.fill_between(
            [row[x] for row in known], bottom, [row[high] for row in known],
            color=SERIES[run.series].light, alpha=_BAND, linewidth=0,
        )  # fmt: skip


def has_interval(rows: Sequence[Row], column: str) -> bool:
    """Whether the report gives an interval of the column."""
    return bool(rows) and f"{column}_low" in rows[0] and f"{column}_high" in rows[0]
