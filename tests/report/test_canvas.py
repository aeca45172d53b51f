"""What figures are made of: ticks, colours, steps of densities, intervals."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from jacobian_core.page.canvas import decades, new_figure, png_of, power_of_ten, signed_ticks, svg_of
from jacobian_core.page.causal import bin_middle
from jacobian_core.page.density import steps
from jacobian_core.page.picture import each_run, percent, shown
from jacobian_core.page.theme import COLOURS, DENSITY, LINE_STYLES, MARKERS, SERIES, css_variables


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (1, "1"), (1000, "1000"), (0.01, "0.01"), (-0.1, "−0.1"), (1e-3, "10⁻³"), (-1e-7, "−10⁻⁷"),
     (1e5, "10⁵"), (2e-4, "2·10⁻⁴")],
)  # fmt: skip
def test_ticks_are_plain_text(value: float, written: str) -> None:
    assert power_of_ten(value) == written


@pytest.mark.parametrize(
    ("share", "written"),
    [(None, "unknown"), (0.0, "0\u00a0%"), (1.0, "100\u00a0%"), (0.1234, "12.3\u00a0%"), (0.99999, ">99.9\u00a0%"),
     (1e-7, "<0.001\u00a0%")],
)  # fmt: skip
def test_shares_are_not_rounded_to_none_or_all(share: float | None, written: str) -> None:
    assert percent(share) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(12345, "12,345"), (-0.25, "−0.25"), (1e-8, "10⁻⁸"), (2.5e-7, "2.5\u202f×\u202f10⁻⁷"), (None, "unknown")],
)
def test_numbers_in_words(value: float | None, written: str) -> None:
    assert shown(value) == written


def test_one_run_needs_no_label() -> None:
    assert each_run([("a", "half")]) == "Half"
    assert each_run([("a", "half"), ("b", "all")]) == "a: half; b: all"


def test_colours_can_be_told_apart() -> None:
    """A figure's colours become variables by their value, so no two may share one."""
    assert len({c.light for c in COLOURS}) == len(COLOURS)
    assert len({c.name for c in COLOURS}) == len(COLOURS)
    assert len(SERIES) == len(LINE_STYLES) == len(MARKERS)
    assert css_variables().count("--ink:") == 2


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_is_enough(mode: str) -> None:
    """WCAG AA: 4.5 for text, 3 for lines; densities get steadily stronger."""
    value = {c.name: getattr(c, mode) for c in COLOURS}
    for ground in ("paper", "card"):
        assert all(_contrast(value[name], value[ground]) >= 4.5 for name in ("ink", "muted", "link"))
        assert all(_contrast(value[c.name], value[ground]) >= 3 for c in SERIES)
    assert _contrast(value["ink"], value["mark"]) >= 4.5
    strengths = [_contrast(value[c.name], value["card"]) for c in DENSITY]
    assert strengths == sorted(strengths)


def test_svg_has_no_ids_fonts_or_rules_for_the_page() -> None:
    figure, axes = new_figure()
    axes.plot([1, 2], [1, 2], color=SERIES[0].light)
    drawing = svg_of(figure, "x")
    assert drawing.startswith("<svg ")
    assert drawing.endswith("</svg>")
    assert not re.search(r'<style|<metadata|font-family|<g id=|width="\d+pt"', drawing)
    assert "var(--series-1)" in drawing
    assert SERIES[0].light not in drawing


def test_clips_and_shapes_of_two_figures_have_their_own_ids() -> None:
    found = []
    for name in ("a", "b"):
        figure, axes = new_figure()
        axes.plot([1, 2], [1, 2], marker="o")
        found.append(set(re.findall(r' id="([^"]+)"', svg_of(figure, name))))
    assert found[0]
    assert not found[0] & found[1]


def test_png_is_an_image_of_both_uses() -> None:
    figure, axes = new_figure()
    axes.plot([1, 2], [1, 2])
    first = png_of(figure)
    svg_of(figure, "x")
    assert first.startswith(b"\x89PNG")
    assert png_of(figure) == first


def test_short_logarithmic_axes_still_have_ticks() -> None:
    figure, axes = new_figure()
    axes.set_yscale("log")
    axes.set_ylim(0.2, 0.9)
    decades(axes.yaxis, as_percent=True)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.yaxis.get_ticklabels()]
    assert {"20 %", "50 %"} <= set(labels)


def test_signed_ticks_are_symmetric_and_few() -> None:
    _, axes = new_figure()
    signed_ticks(axes.xaxis, 1e-3, 20.0, most=2)
    labels = [label.get_text() for label in axes.xaxis.get_ticklabels()]
    assert labels == ["−10", "−0.1", "0", "0.1", "10"]


def test_steps_hold_every_count() -> None:
    for counts in ([1], [1, 1], [1, 10, 100000], [2.5, 3.5]):
        edges = steps(counts)
        assert len(edges) == len(DENSITY) + 1
        assert edges == sorted(edges)
        assert all(any(a <= n < b for a, b in pairwise(edges)) for n in counts)


def test_bins_without_an_end_are_drawn_beside_it() -> None:
    assert bin_middle(1e-4, 1e-2) == pytest.approx(1e-3)
    assert 0 < bin_middle(0, 1e-6) < 1e-6
    assert bin_middle(1, None) > 1
    assert math.isfinite(bin_middle(1, math.inf))
