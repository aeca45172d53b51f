"""Figures of the title question: what interventions do by |J|, and how well J predicts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jacobian_core.page.canvas import add_legend, decades, label_axes, new_figure, signed_ticks
from jacobian_core.page.density import Cells, draw_density
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.picture import Numbers, Picture, each_run, percent, shown
from jacobian_core.page.series import line_style, open_style
from jacobian_core.page.theme import INK, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAU = "0.1"
"""The `tau` of the report causal_zero_test, by default."""
LINEAR = 1e-3
"""Effects below about this size are drawn on a linear scale: the `linear` of the report effect_density."""
_TABLE = (
    "interventions", "pairs", "share_above", "share_above_low", "share_above_high", "share_above_staying", "share_left",
    "mean_abs_effect",
    "median_abs_effect", "p95_abs_effect", "max_abs_effect", "r2_first", "r2_second",
)  # fmt: skip


def causal_curve(runs: Sequence[RunData]) -> Picture | None:
    """The share of pairs whose ablation changes the output by more than tau, by |J|."""
    drawn = _with_bins(runs)
    if not drawn:
        return None
    figure, axes = new_figure()
    for number, (run, rows) in enumerate(drawn):
        _draw_bins(axes, run, rows, _aside(number, len(drawn)))
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    decades(axes.xaxis)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    label_axes(axes, "|J| of the pair at the token", f"share with |effect| > {TAU}")
    add_legend(axes)
    said = each_run([(run.label, _ends(rows)) for run, rows in drawn])
    return Picture(
        "causal-zero", "Does a small derivative mean a small effect?",
        "Each filled point is a bin of |J| (the first reaches down to 0), with its 95\u00a0% interval: "
        "the share of pairs whose ablation changes "
        f"the output latent by more than {TAU}. Open points: those that did so while the output latent stayed active; "
        f"the others lost it from the selection. {said}.",
        f"Share of pairs whose ablation changes the output by more than {TAU}, by |J|. {said}.",
        figure, _bin_numbers(drawn),
    )  # fmt: skip


def effect_sizes(runs: Sequence[RunData]) -> Picture | None:
    """The median and the 95th percentile of |effect|, by |J|."""
    drawn = [(run, rows) for run, rows in _with_bins(runs) if any(row["p95_abs_effect"] for row in rows)]
    if not drawn:
        return None
    figure, axes = new_figure()
    for number, (run, rows) in enumerate(drawn):
        x = [bin_middle(row["low"], row["high"]) * _aside(number, len(drawn)) for row in rows]
        style = line_style(run)
        axes.plot(x, [row["median_abs_effect"] or math.nan for row in rows], label=run.label, **style)
        axes.plot(x, [row["p95_abs_effect"] or math.nan for row in rows], **open_style(style))
    axes.set_xscale("log")
    axes.set_yscale("log")
    decades(axes.xaxis)
    decades(axes.yaxis)
    label_axes(axes, "|J| of the pair at the token", "|effect| of an ablation")
    add_legend(axes)
    said = each_run([(run.label, _sizes(rows)) for run, rows in drawn])
    return Picture(
        "effect-sizes", "How large the effects are",
        f"Filled: the median pair of each bin of |J|. Open: its 95th percentile, what the strongest "
        f"twentieth exceeds. {said}.",
        f"Median and 95th percentile of the effect by |J|, both axes logarithmic. {said}.",
        figure, _bin_numbers(drawn),
    )  # fmt: skip


def _with_bins(runs: Sequence[RunData]) -> list[tuple[RunData, list[Row]]]:
    """The runs that have interventions, with their bins of |J|."""
    found = [(run, [row for row in run.rows("causal_zero_test") if row["measure"] == "absolute"]) for run in runs]
    return [(run, rows) for run, rows in found if rows]


def _bin_numbers(drawn: Sequence[tuple[RunData, Sequence[Row]]]) -> Numbers:
    rows = [(run.label, r["low"], r["high"], *(r.get(name) for name in _TABLE)) for run, found in drawn for r in found]
    return Numbers(("run", "|J| from", "to", *(name.replace("_", " ") for name in _TABLE)), rows)


def _aside(number: int, runs: int) -> float:
    """A factor that moves a run's points a little, so that the runs' intervals do not hide each other."""
    return float(1 + 0.09 * (number - (runs - 1) / 2))


def _draw_bins(axes: Axes, run: RunData, rows: Sequence[Row], aside: float) -> None:
    """Points in the middle of their bins."""
    style = line_style(run)
    x = [bin_middle(r["low"], r["high"]) * aside for r in rows]
    share = [r["share_above"] for r in rows]
    below = [max(0.0, s - _or(r["share_above_low"], s)) for r, s in zip(rows, share, strict=True)]
    above = [max(0.0, _or(r["share_above_high"], s) - s) for r, s in zip(rows, share, strict=True)]
    axes.plot(x, [r["share_above_staying"] for r in rows], **open_style(style))
    axes.errorbar(x, share, yerr=[below, above], label=run.label, capsize=3, elinewidth=1.4, **style)


def bin_middle(low: float, high: float | None) -> float:
    """Where a bin is drawn on a logarithmic axis; the first reaches down to 0 and the last up without end."""
    if low == 0:
        return (high or 1.0) / math.sqrt(10)
    return low * math.sqrt(10) if high is None or math.isinf(high) else math.sqrt(low * high)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _ends(rows: Sequence[Row]) -> str:
    """The lowest and the highest bin in words."""
    first, last = rows[0], rows[-1]
    low = f"{percent(first['share_above'])} where |J| < {shown(float(first['high']))}" if first["high"] else ""
    return f"{low}, {percent(last['share_above'])} where |J| ≥ {shown(float(last['low']))}"


def _sizes(rows: Sequence[Row]) -> str:
    """The median effect of the lowest and the highest bin in words."""
    first, last = rows[0], rows[-1]
    low = f"the median is {shown(float(first['median_abs_effect']))} in the lowest bin"
    return f"{low}, {shown(float(last['median_abs_effect']))} in the highest"


def effect_picture(run: RunData) -> Picture | None:
    """Predicted against measured effect of one run's ablations."""
    rows = run.rows("effect_density")
    if not rows:
        return None
    figure, axes = new_figure(4.3)
    stayed = [r for r in rows if not r["left_selection"]]
    left = [r for r in rows if r["left_selection"]]
    if stayed:
        draw_density(axes, Cells([_box(r) for r in stayed], [r["pairs"] for r in stayed]), "pairs")
    reach = max(max(abs(v) for v in _box(r)) for r in rows)
    _draw_left(axes, left)
    axes.plot([-reach, reach], [-reach, reach], color=INK.light, linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    signed_ticks(axes.xaxis, LINEAR, LINEAR * math.sinh(reach), most=3)
    signed_ticks(axes.yaxis, LINEAR, LINEAR * math.sinh(reach), most=6)
    label_axes(axes, "predicted: −J · s (first order)", "measured effect")
    total, gone = sum(r["pairs"] for r in rows), sum(r["pairs"] for r in left)
    fit = _fit(run)
    said = f"{percent(gone / total)} of the pairs left the selection" + fit
    return Picture(
        f"effects-{run.series + 1}", f"Predicted against measured: {run.label}",
        f"What the derivative predicts for setting the input latent to 0, against what happens. Dotted: a perfect "
        f"prediction. Blue: the output latent stays; circles: it leaves the selection and loses everything. {said}.",
        f"Density of the predicted against the measured effect of ablations. {said}.",
        figure, Numbers(
            ("left the selection", "predicted from", "to", "effect from", "to", "interventions", "pairs"),
            [
                (r["left_selection"], r["predicted_low"], r["predicted_high"], r["effect_low"], r["effect_high"],
                 r["interventions"], r["pairs"])
                for r in sorted(rows, key=lambda r: -r["pairs"])[:40]
            ],
        ),
    )  # fmt: skip


def _draw_left(axes: Axes, rows: Sequence[Row]) -> None:
    """Cells of those that left, as circles whose area grows with the logarithm of how many they are."""
    if not rows:
        return
    most = max(r["pairs"] for r in rows)
    boxes = [_box(r) for r in rows]
    axes.scatter(
        [(b[0] + b[1]) / 2 for b in boxes], [(b[2] + b[3]) / 2 for b in boxes],
        s=[4 + 22 * math.log1p(r["pairs"]) / math.log1p(most) for r in rows],
        facecolor="none", edgecolor=SERIES[1].light, linewidth=1,
    )  # fmt: skip


def _box(row: Row) -> tuple[float, float, float, float]:
    """The row's cell on axes of asinh(value / LINEAR), where its sides are all the same length."""
    names = ("predicted_low", "predicted_high", "effect_low", "effect_high")
    left, right, bottom, top = (math.asinh(row[name] / LINEAR) for name in names)
    return left, right, bottom, top


def _fit(run: RunData) -> str:
    for row in run.rows("causal_zero_test"):
        if row["measure"] == "all" and row["r2_first"] is not None:
            staying = row.get("r2_first_staying")
            text = f"; the prediction explains R² = {shown(float(row['r2_first']))} of the effects"
            return text if staying is None else f"{text}, {shown(float(staying))} where the output latent stays"
    return ""
