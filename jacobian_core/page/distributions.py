"""Figures of how derivatives are spread: histograms of |J|, and |J| against |J''|."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jacobian_core.page.canvas import add_legend, decades, label_axes, new_figure, percent_ticks
from jacobian_core.page.density import Cells, draw_density
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.picture import Numbers, Picture, each_run, percent, shown
from jacobian_core.page.series import line_style
from jacobian_core.page.theme import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def entry_histogram(runs: Sequence[RunData]) -> Picture | None:
    """How |J| of single entries is spread."""
    return _histogram(
        runs, "entries", ("share_of_entries", "entries"), "How large single derivatives are",
        "Every stored entry, one for each token and each pair of latents that are active at it.",
    )  # fmt: skip


def pair_histogram(runs: Sequence[RunData]) -> Picture | None:
    """How the mean |J| of pairs is spread."""
    return _histogram(
        runs, "pairs", ("share_of_pairs", "pairs_mean_all_tokens"), "How large a pair’s mean |J| is",
        "Every pair that was active together at least once; the mean is over all analysed tokens.",
    )  # fmt: skip


def _histogram(runs: Sequence[RunData], what: str, columns: tuple[str, str], title: str, about: str) -> Picture | None:
    share, count = columns
    drawn = [(run, [row for row in run.rows("value_histogram") if row[count]]) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if rows]
    if not drawn:
        return None
    figure, axes = new_figure()
    for run, rows in drawn:
        _stairs(axes, run, [row for row in rows if row["low"] > 0], share)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    decades(axes.xaxis)
    percent_ticks(axes.yaxis)
    x = "|J|" if what == "entries" else "mean |J| over all tokens"
    label_axes(axes, x, f"share of {what} in a bin")
    add_legend(axes)
    said = each_run([(run.label, _median_of(rows, count)) for run, rows in drawn])
    table = [(run.label, r["low"], r["high"], r[count], r[share]) for run, rows in drawn for r in rows]
    numbers = Numbers(("run", "from", "to", what, "share"), table)
    alt = f"Histogram of {x} on a logarithmic axis. " + said + "."
    return Picture(f"histogram-{what}", title, f"{about} {said}.", alt, figure, numbers)


def _stairs(axes: Axes, run: RunData, rows: Sequence[Row], share: str) -> None:
    """The outline of a histogram; bins that no row names are empty."""
    if not rows:
        return
    steps: list[tuple[float, float]] = []
    for row in rows:
        if not steps or row["low"] > steps[-1][0] * 1.0001:
            steps.append((row["low"], 0.0))
        steps[-1] = (steps[-1][0], row[share])
        steps.append((row["high"], 0.0))
    edges = [edge for edge, _ in steps]
    values = [value for _, value in steps[:-1]]
    style = line_style(run)
    axes.stairs(values, edges, fill=True, color=style["color"], alpha=0.14, linewidth=0)
    axes.stairs(
        values, edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.8, label=run.label, fill=False
    )


def _median_of(rows: Sequence[Row], count: str) -> str:
    """The bin that the median falls into, in words, and what is below the first bin."""
    total, seen = sum(row[count] for row in rows), 0
    for row in rows:
        seen += row[count]
        if 2 * seen >= total:
            break
    text = f"half are below {shown(float(row['high']))}"
    small = sum(row[count] for row in rows if row["low"] == 0)
    return f"{text}, {percent(small / total)} are below {shown(float(rows[0]['high']))} (not drawn)" if small else text


def derivative_picture(run: RunData) -> Picture | None:
    """|J| against |J''| of one run."""
    rows = [r for r in run.rows("derivative_density") if r["low_first"] > 0 and r["low_second"] > 0]
    if not rows:
        return None
    figure, axes = new_figure(3.9)
    cells = Cells(
        [(r["low_first"], r["high_first"], r["low_second"], r["high_second"]) for r in rows],
        [r["entries"] for r in rows],
    )
    draw_density(axes, cells, "entries")
    axes.set_xscale("log")
    axes.set_yscale("log")
    decades(axes.xaxis)
    decades(axes.yaxis)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=INK.light, linewidth=1, linestyle=(0, (2, 2)))
    label_axes(axes, "|J|", "|J″|, the second derivative")
    total = sum(r["entries"] for r in run.rows("derivative_density"))
    same = sum(r["same_sign"] for r in rows) / sum(r["entries"] for r in rows)
    table = [
        (r["low_first"], r["high_first"], r["low_second"], r["high_second"], r["entries"])
        for r in sorted(run.rows("derivative_density"), key=lambda r: -r["entries"])[:40]
    ]
    said = f"{total:,} entries; J and J″ have the same sign in {percent(same)} of them"
    return Picture(
        f"second-derivative-{run.series + 1}", f"First against second derivative: {run.label}",
        f"The stronger the colour, the more entries have this |J| and this |J″|. Dotted: |J″| = |J|. {said}.",
        f"Density of the first derivative against the second, both logarithmic. {said}.",
        figure, Numbers(("|J| from", "to", "|J″| from", "to", "entries"), table),
    )  # fmt: skip
