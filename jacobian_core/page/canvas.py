"""Figures as SVG for the page and as PNG files: an empty figure in the page's style, and both ways out of it.

Text stays text in the SVG, in the reader's own font: it is small, sharp and can be found and copied. Figures are drawn
about as wide as a phone (4.5 inches), so that their labels are readable there and merely larger on a wide screen.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jacobian_core.page.picture import SUPERSCRIPT
from jacobian_core.page.theme import CARD, COLOURS, GRID, INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 4.5
_PNG_DPI = 160
_FONT_POINTS = 10.0
_MANY_DECADES = 1.5
_LEGEND_CHARACTERS = 36
"""Of the labels of one line of a legend: more would be cut off."""
_PAD_INCHES = 0.07
_SMALL, _LARGE = 0.00999, 9999.0
"""Between these, an axis writes numbers in full."""


def new_figure(height_inches: float = 3.4) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes in the page's colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(WIDTH_INCHES, height_inches),
        layout=ConstrainedLayoutEngine(w_pad=_PAD_INCHES, h_pad=_PAD_INCHES),
        facecolor="none",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=GRID.light, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE.light)
    axes.tick_params(which="both", color=RULE.light, labelcolor=MUTED.light, labelsize=_FONT_POINTS, length=3)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes; the vertical one's name stands above it, where a phone has room for it."""
    axes.set_xlabel(x, color=INK.light, fontsize=_FONT_POINTS)
    axes.set_title(y, color=INK.light, fontsize=_FONT_POINTS, loc="left", y=1.03, pad=0)


def add_legend(axes: Axes) -> None:
    """A legend of the labelled lines below the axes, where it hides nothing, if there is more than one."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    axes.figure.legend(
        handles, labels, fontsize=_FONT_POINTS, loc="outside lower center", ncols=_columns(labels),
        handlelength=2.8, labelcolor=INK.light, frameon=False,
    )  # fmt: skip


def _columns(labels: Sequence[str]) -> int:
    """Columns of a legend, 1 to 3, that are as wide as the longest label."""
    fit = _LEGEND_CHARACTERS // max(len(label) for label in labels)
    return max(1, min(len(labels), 3, fit))


def decades(axis: Any, as_percent: bool = False) -> None:
    """Ticks of a logarithmic axis as 10⁻³, 0.1, 1: plain text, because math type needs fonts of its own.

    Call it when the axis has its limits: a short axis gets 2 and 5 beside 1. `as_percent` takes values as shares.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    few = math.log10(high / low) < _MANY_DECADES
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
    axis.set_minor_locator(NullLocator())
    write = percent_tick if as_percent else power_of_ten
    axis.set_major_formatter(FuncFormatter(lambda value, _position: write(value)))


def percent_ticks(axis: Any) -> None:
    """Ticks of a linear axis of shares, in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _position: percent_tick(value)))


def percent_tick(share: float) -> str:
    """A share on an axis, in percent."""
    value = 100 * share
    return f"{power_of_ten(value) if 0 < value < _SMALL else f'{value:.3g}'} %"


def power_of_ten(value: float) -> str:
    """A number as people write it on an axis: 10⁻³ for 0.001, 0.01 to 1000 in full."""
    if value == 0:
        return "0"
    if _SMALL <= abs(value) < _LARGE:
        return f"{value:.4g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    digit = round(abs(value) / 10**exponent)
    power = f"10{str(exponent).translate(SUPERSCRIPT)}"
    return ("−" if value < 0 else "") + (power if digit == 1 else f"{digit}·{power}")


def signed_ticks(axis: Any, linear: float, reach: float, most: int) -> None:
    """Ticks of an axis of asinh(value / linear): 0 and, on both sides, at most `most` powers of ten up to `reach`."""
    sizes = [linear * 10**k for k in range(1, 12) if linear * 10**k <= reach * 1.001]
    sizes = sizes[::-1][:: -(-len(sizes) // most) or 1][::-1]
    values = [-v for v in reversed(sizes)] + [0.0] + sizes
    axis.set_ticks([math.asinh(v / linear) for v in values], [power_of_ten(v) for v in values])


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an SVG element for inside a page: coloured by CSS variables, without ids that others may have."""
    import matplotlib as mpl

    _settle(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    for clean in _CLEANERS:
        text = clean(text)
    return text.strip()


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG image on a light ground, the same bytes each time."""
    _settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, facecolor=CARD.light, metadata={"Software": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out once, not on every way out: that is most of the time of drawing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _only_element(text: str) -> str:
    """From <svg to </svg>, without the size, the description of the file, and style rules for the whole page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1)


def _without_ids(text: str) -> str:
    """Groups lose their ids (`axes_1` is in every figure); shapes and clips keep theirs, which hash their content."""
    return re.sub(r'<g id="[^"]*"', "<g", text)


def _without_fonts(text: str) -> str:
    text = re.sub(r"; ?font-family: [^;\"]*", "", text)
    return re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)


def _themed(text: str) -> str:
    for colour in COLOURS:
        text = text.replace(colour.light, f"var(--{colour.name})")
    return text


def _compact(text: str) -> str:
    """A tenth of a point is less than a pixel shows; the rest is bytes."""
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    return re.sub(r"\s*\n\s*", "\n", text)


_CLEANERS: Sequence[Callable[[str], str]] = (_only_element, _without_ids, _without_fonts, _themed, _compact)
