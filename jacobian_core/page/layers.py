"""Figures over the layers of a sweep: one point a run with its interval, one line a series (pair and weights)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jacobian_core.page.canvas import add_legend, decades, label_axes, new_figure, percent_ticks
from jacobian_core.page.picture import Numbers, Picture, each_run, percent, shown
from jacobian_core.page.series import open_style, series_style
from jacobian_core.sweep.figures import CellFigures, Measured

_ASIDE = 0.045
"""Lines stand apart by this share of a layer, so that their intervals can be told apart."""

_BELOW = 0.03
"""Room below 0, so that a point there is seen whole."""

Value = Callable[[CellFigures], Measured | None]


@dataclass(frozen=True)
class Curve:
    """What one figure shows: `value` with filled markers, `second` (if any) with open ones."""

    name: str
    title: str
    axis: str
    about: str
    value: Value
    second: Value | None = None
    names: tuple[str, str] = ("value", "second value")
    as_percent: bool = False
    logarithmic: bool = False

    def text(self, value: float) -> str:
        """A value in running text."""
        return percent(value) if self.as_percent else shown(float(value))


def of_statistic(statistic: str, threshold: float | None = None) -> Value:
    """The statistic of `run_figures`."""
    return lambda cell: cell.measured(statistic, threshold)


def of_answer(column: str) -> Value:
    """A share of `causal_zero_answer` with its interval."""

    def value(cell: CellFigures) -> Measured | None:
        found = cell.answer.get(column)
        low, high = cell.answer.get(f"{column}_low"), cell.answer.get(f"{column}_high")
        return None if found is None else Measured(found, low, high)

    return value


def of_shape(shape: str, rule: str) -> Value:
    """The share of pairs whose function has that shape."""
    return lambda cell: cell.shape(shape, rule)


ANSWER_CURVES = (
    Curve(
        "sweep-answer", "Where |J| is about 0, how often does the output still move?",
        "share moved by more than 0.1",
        "Of the active pairs with |J| < 0.001, the share whose ablation moves the output latent by more than 0.1. "
        "Open: those that did so and stayed selected.",
        of_answer("share_above"), of_answer("share_above_staying"), ("moved", "moved and stayed"), as_percent=True,
    ),
    Curve(
        "sweep-answer-relative", "The same where J is small for its token",
        "share moved by more than 0.1",
        "Whether a |J| is small depends on the scale of the dictionaries. Here a pair counts where |J| is below a "
        "hundredth of the root mean square of J at its token.",
        of_answer("relative_share_above"), as_percent=True,
    ),
    Curve(
        "sweep-other", "And where J is not 0?",
        "share moved by more than 0.1",
        "The same for the other active pairs, those with |J| ≥ 0.001: what a |J| that is not about 0 adds.",
        of_answer("other_share_above"), as_percent=True,
    ),
    Curve(
        "sweep-r2", "How much of the effects the Jacobian predicts",
        "R² of J · change",
        "The share of the variance of all effects of ablations that the first-order prediction explains; below 0, it "
        "is worse than their mean.",
        of_statistic("r2_first"),
    ),
)  # fmt: skip

SPARSITY_CURVES = (
    Curve(
        "sweep-entries", "How many elements of a token are large",
        "elements with |J| > 0.01",
        "Of a token’s active pairs, how many have |J| > 0.01. It depends on the scale of the dictionaries.",
        of_statistic("entries_above_per_token", 0.01),
    ),
    Curve(
        "sweep-pairs", "How many pairs matter on average",
        "share of all pairs",
        "Of all n_out × n_in pairs, those whose mean |J| over all tokens is above 0.001. Open: above 0.0001.",
        of_statistic("share_of_pairs_mean_above", 1e-3), of_statistic("share_of_pairs_mean_above", 1e-4),
        ("above 0.001", "above 0.0001"), as_percent=True, logarithmic=True,
    ),
    Curve(
        "sweep-kurtosis", "How heavy the tails are",
        "kurtosis, median over tokens",
        "It does not depend on scale: 3 for a normal distribution, more where few elements hold most.",
        of_statistic("median_kurtosis"),
    ),
    Curve(
        "sweep-gini", "How unequal the elements are",
        "Gini coefficient, median",
        "It does not depend on scale either: 0 where all elements are equal, near 1 where one holds everything.",
        of_statistic("median_gini"),
    ),
)  # fmt: skip

SHAPE_CURVES = (
    Curve(
        "sweep-linear", "How many functions are linear",
        "share of pairs",
        "Each output latent as a function of one input latent, all others held: linear if no point is more than 0.01 "
        "off the line, the published rule. Open: 0.01 of the function’s own range.",
        of_shape("linear", "published"), of_shape("linear", "scale_free"), ("published rule", "scale-free rule"),
        as_percent=True,
    ),
    Curve(
        "sweep-jumprelu", "How many are JumpReLU-like",
        "share of pairs",
        "Zero up to a point and a line from there on, by the same two rules.",
        of_shape("jumprelu", "published"), of_shape("jumprelu", "scale_free"), ("published rule", "scale-free rule"),
        as_percent=True,
    ),
)  # fmt: skip

FIT_CURVES = (
    Curve(
        "sweep-fvu", "What the SAEs leave unexplained",
        "fraction of variance unexplained",
        "Filled: the SAE of the MLP’s input. Open: that of its output. What is compared should fit about equally well.",
        of_statistic("fvu_in"), of_statistic("fvu_out"), ("input", "output"), as_percent=True,
    ),
)  # fmt: skip


def series_of(cells: Sequence[CellFigures]) -> list[str]:
    """The names of the lines, in the order of the cells."""
    return list(dict.fromkeys(each.cell.series for each in cells))


def draw_curve(curve: Curve, cells: Sequence[CellFigures]) -> Picture | None:
    """The figure; None where no run has the value."""
    drawn = [each for each in cells if curve.value(each) is not None]
    if not drawn:
        return None
    figure, axes = new_figure()
    names = series_of(cells)
    for number, name in enumerate(names):
        aside = _ASIDE * (number - (len(names) - 1) / 2)
        mine = sorted((each for each in drawn if each.cell.series == name), key=lambda each: each.layer)
        style = series_style(number)
        _draw(axes, mine, curve.value, aside, {**style, "label": name})
        if curve.second is not None:
            _draw(axes, mine, curve.second, aside, open_style(style))
    layers = sorted({each.layer for each in drawn})
    axes.set_xticks(layers)
    axes.set_xlim(layers[0] - 0.35, layers[-1] + 0.35)
    if curve.logarithmic:
        axes.set_yscale("log")
        decades(axes.yaxis, as_percent=curve.as_percent)
    elif curve.as_percent:
        axes.set_ylim(bottom=-_BELOW * axes.get_ylim()[1])
        percent_ticks(axes.yaxis)
    label_axes(axes, "layer", curve.axis)
    add_legend(axes)
    said = each_run([(name, _said(curve, drawn, name)) for name in names])
    return Picture(
        curve.name, curve.title, f"{curve.about} With 95\u00a0% intervals where there are any.",
        f"{curve.axis} by layer. {said}.", figure, _numbers(curve, drawn),
    )  # fmt: skip


def _draw(axes: Any, cells: Sequence[CellFigures], value: Value, aside: float, style: dict[str, Any]) -> None:
    """The points of one line, with their intervals."""
    found = [(each.layer + aside, point) for each in cells if (point := value(each)) is not None]
    y = [point.value for _, point in found]
    below = [max(0.0, p.value - (p.value if p.low is None else p.low)) for _, p in found]
    above = [max(0.0, (p.value if p.high is None else p.high) - p.value) for _, p in found]
    axes.errorbar([x for x, _ in found], y, yerr=[below, above], capsize=2.5, elinewidth=1.2, **style)


def _said(curve: Curve, cells: Sequence[CellFigures], name: str) -> str:
    """A line in words: its value at each layer."""
    points = [(each.layer, curve.value(each)) for each in cells if each.cell.series == name]
    return ", ".join(f"{curve.text(point.value)} in layer {layer}" for layer, point in points if point is not None)


def _numbers(curve: Curve, cells: Sequence[CellFigures]) -> Numbers:
    columns = ["run", "layer", curve.names[0], "low", "high"]
    columns += [curve.names[1], "low", "high"] if curve.second else []
    rows = []
    for each in cells:
        points = [curve.value(each)] + ([curve.second(each)] if curve.second else [])
        parts = [(None, None, None) if p is None else (p.value, p.low, p.high) for p in points]
        rows.append((each.cell.series, each.layer, *(number for part in parts for number in part)))
    return Numbers(columns, rows)
