"""Colours of the page and its figures: each has a name, a light and a dark value.

A figure is drawn once, in the light values, which are all different. In the page's SVG every value becomes the CSS
variable of its name, so one figure follows the reader's light or dark mode; the PNG files keep the light values.
Series are told apart by colour (Okabe and Ito's, safe for colour-blind readers), line style and marker together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """A named colour: hexadecimal values for light and dark surroundings."""

    name: str
    light: str
    dark: str


PAPER = Colour("paper", "#fdfdfb", "#15171a")
CARD = Colour("card", "#fffffe", "#1d2024")
INK = Colour("ink", "#1b1e23", "#e9e8e4")
MUTED = Colour("muted", "#565c66", "#a6acb5")
GRID = Colour("grid", "#e3e4e1", "#33373d")
RULE = Colour("rule", "#c9cbc8", "#454a52")
MARK = Colour("mark", "#ffe08a", "#6b5200")
LINK = Colour("link", "#00588c", "#7cc0f0")

SERIES = (
    Colour("series-1", "#0072b2", "#56b4e9"),
    Colour("series-2", "#d55e00", "#ff9a57"),
    Colour("series-3", "#009e73", "#3ccfa4"),
    Colour("series-4", "#a8568a", "#e2a0c8"),
    Colour("series-5", "#b07d00", "#f0c24b"),
    Colour("series-6", "#4a4f57", "#c4c9d0"),
)
"""One colour a run, in the order of the runs; also the most runs that a page compares."""

LINE_STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)),
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")

DENSITY = (
    Colour("density-1", "#dceaf5", "#1c3346"),
    Colour("density-2", "#bdd9ee", "#21476a"),
    Colour("density-3", "#93c1e3", "#285f8f"),
    Colour("density-4", "#62a4d3", "#3a7db5"),
    Colour("density-5", "#3784be", "#5c9fd2"),
    Colour("density-6", "#1c639e", "#8cc0e6"),
    Colour("density-7", "#0f4577", "#bbdcf4"),
    Colour("density-8", "#0a2a4d", "#eaf5fd"),
)
"""From few to many; the dark values run from dark to light, so that many always stands out."""

COLOURS: tuple[Colour, ...] = (PAPER, CARD, INK, MUTED, GRID, RULE, MARK, LINK, *SERIES, *DENSITY)


def css_variables() -> str:
    """The colours as CSS custom properties, light and dark."""
    light = "".join(f"--{c.name}:{c.light};" for c in COLOURS)
    dark = "".join(f"--{c.name}:{c.dark};" for c in COLOURS)
    return f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
