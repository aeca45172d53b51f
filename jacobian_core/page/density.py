"""A picture of counts in cells: eight steps of colour on a logarithmic scale, one shape for each step.

Rectangles of the same step are one path, so a density of thousands of cells stays some ten kilobytes of SVG and takes
its colours from the page like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jacobian_core.page.theme import DENSITY, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch

Box = tuple[float, float, float, float]
"""left, right, bottom, top of a cell, in the axes' units."""


@dataclass(frozen=True)
class Cells:
    """Cells that hold something, and how much."""

    boxes: Sequence[Box]
    counts: Sequence[float]


def draw_density(axes: Axes, cells: Cells, unit: str) -> None:
    """Draw the cells, darker (in dark mode: brighter) where there is more, and the scale beside them."""
    edges = steps(cells.counts)
    for colour, lowest, highest in zip(DENSITY, edges, edges[1:], strict=False):
        boxes = [b for b, n in zip(cells.boxes, cells.counts, strict=True) if lowest <= n < highest]
        if boxes:
            axes.add_patch(_one_shape(boxes, colour.light))
    lefts, rights, bottoms, tops = zip(*cells.boxes, strict=True)
    axes.set_xlim(min(lefts), max(rights))
    axes.set_ylim(min(bottoms), max(tops))
    _draw_scale(axes, edges, unit)


def steps(counts: Sequence[float]) -> list[float]:
    """Nine edges of eight steps, in equal factors from the smallest count to just above the largest."""
    smallest, largest = min(counts), max(counts)
    growth = max((largest / smallest) ** (1 / len(DENSITY)), 1.0000001)
    edges = [smallest * growth**n for n in range(len(DENSITY) + 1)]
    edges[-1] = math.nextafter(max(largest, edges[-1]), math.inf)
    return edges


def _one_shape(boxes: Sequence[Box], colour: str) -> PathPatch:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points: list[tuple[float, float]] = []
    codes: list[int] = []
    for left, right, bottom, top in boxes:
        points += [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
        codes += [int(Path.MOVETO), *[int(Path.LINETO)] * 3, int(Path.CLOSEPOLY)]
    # A hairline of its own colour closes the seams that anti-aliasing leaves between neighbours.
    return PathPatch(Path(points, codes), facecolor=colour, edgecolor=colour, linewidth=0.4)


def _draw_scale(axes: Axes, edges: Sequence[float], unit: str) -> None:
    from matplotlib.patches import Rectangle

    scale = axes.inset_axes((0.62, 1.035, 0.38, 0.035))
    for number, colour in enumerate(DENSITY):
        scale.add_patch(Rectangle((number, 0), 1, 1, facecolor=colour.light, edgecolor="none"))
    scale.set_xlim(0, len(DENSITY))
    scale.set_ylim(0, 1)
    scale.set_facecolor("none")
    scale.set_yticks([])
    scale.set_xticks([0, len(DENSITY)], [_short(edges[0]), f"{_short(edges[-1])} {unit}"])
    scale.xaxis.tick_top()
    scale.tick_params(color=RULE.light, labelcolor=MUTED.light, labelsize=9, length=0, pad=2)
    for spine in scale.spines.values():
        spine.set_visible(False)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
