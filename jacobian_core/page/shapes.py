"""Figure of function shapes: which share of the pairs is linear, JumpReLU-like, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jacobian_core.page.canvas import add_legend, label_axes, new_figure, percent_ticks
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.picture import Numbers, Picture, each_run, percent
from jacobian_core.page.series import line_style, open_style

_SHAPES = ("linear", "jumprelu", "other")
_SHARE = "share_of_pairs"
_COLUMNS = ("by_rule", "shape", "traced", "pairs", _SHARE, f"{_SHARE}_low", f"{_SHARE}_high", "median_range")


def function_shapes(runs: Sequence[RunData]) -> Picture | None:
    """Shares of the shapes: filled by the published rule, open by the scale-free one."""
    drawn = [(run, [row for row in run.rows("function_shapes") if row[_SHARE] is not None]) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if rows]
    if not drawn:
        return None
    figure, axes = new_figure()
    for number, (run, rows) in enumerate(drawn):
        place = 0.22 * (number - (len(drawn) - 1) / 2)
        style = {**line_style(run), "linestyle": "", "markersize": 6}
        _draw(axes, _of_rule(rows, "published"), place, {**style, "label": run.label})
        _draw(axes, _of_rule(rows, "scale_free"), place + 0.08, open_style(style))
    axes.set_xticks(range(len(_SHAPES)), ["linear", "JumpReLU-like", "other"])
    axes.set_xlim(-0.6, len(_SHAPES) - 0.4)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=False, axis="x")
    percent_ticks(axes.yaxis)
    label_axes(axes, "t as a function of s alone", "share of pairs")
    add_legend(axes)
    said = each_run([(run.label, _sentence(rows)) for run, rows in drawn])
    return Picture(
        "function-shapes", "What single functions look like",
        "Each output latent as a function of one input latent, all others held, with 95\u00a0% intervals. Filled: "
        "linear if no point is more than 0.01 off the line, the published rule. Open: 0.01 of the function’s own "
        f"range, which no function passes for being small. {said}.",
        f"Shares of function shapes. {said}.",
        figure, Numbers(
            ("run", *(name.replace("_", " ") for name in _COLUMNS)),
            [(run.label, *(row[name] for name in _COLUMNS)) for run, rows in drawn for row in rows],
        ),
    )  # fmt: skip


def _of_rule(rows: Sequence[Row], rule: str) -> dict[str, Row]:
    return {row["shape"]: row for row in rows if row["by_rule"] == rule}


def _draw(axes: Any, rows: dict[str, Row], aside: float, style: dict[str, Any]) -> None:
    """One point a shape with its interval; a shape without a row is in no function."""
    found = [(n + aside, rows[shape]) for n, shape in enumerate(_SHAPES) if shape in rows]
    y = [row[_SHARE] for _, row in found]
    low = [row[_SHARE] - _known(row[f"{_SHARE}_low"], row[_SHARE]) for _, row in found]
    high = [_known(row[f"{_SHARE}_high"], row[_SHARE]) - row[_SHARE] for _, row in found]
    errors = [[max(0.0, v) for v in low], [max(0.0, v) for v in high]]
    axes.errorbar([x for x, _ in found], y, yerr=errors, capsize=3, elinewidth=1.2, **style)


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _sentence(rows: Sequence[Row]) -> str:
    published = _of_rule(rows, "published")
    shares = {shape: published[shape][_SHARE] if shape in published else 0.0 for shape in _SHAPES}
    return (
        f"by the published rule {percent(shares['linear'])} are linear, {percent(shares['jumprelu'])} JumpReLU-like, "
        f"{percent(shares['other'])} neither"
    )
