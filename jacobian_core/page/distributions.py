"""Figures of sizes: histograms of |J|, threshold curves, convergence, and |J| against |J''|."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jacobian_core.page.canvas import add_legend, decades, label_axes, new_figure, power_of_ten
from jacobian_core.page.density import Cells, draw_density
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.picture import Numbers, Picture, percent, shown
from jacobian_core.page.theme import INK, LINE_STYLES, MARKERS, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENTRIES = ("value_histogram", "entries", "share_of_entries")
_PAIRS = ("value_histogram", "pairs_mean_all_tokens", "share_of_pairs")


def line_style(run: RunData) -> dict[str, Any]:
    """Colour, dashes and marker that mean this run in every figure."""
    return {
        "color": SERIES[run.series].light,
        "linestyle": LINE_STYLES[run.series],
        "marker": MARKERS[run.series],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


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
    axes.yaxis.set_major_formatter(_percent_ticks())
    x = "|J|" if what == "entries" else "mean |J| over all tokens"
    label_axes(axes, x, f"share of {what} in a bin")
    add_legend(axes)
    said = [f"{run.label}: {_median_of(rows, count)}" for run, rows in drawn]
    table = [(run.label, r["low"], r["high"], r[count], r[share]) for run, rows in drawn for r in rows]
    numbers = Numbers(("run", "from", "to", what, "share"), table)
    alt = f"Histogram of {x} on a logarithmic axis. " + "; ".join(said) + "."
    return Picture(f"histogram-{what}", title, f"{about} {'; '.join(said)}.", alt, figure, numbers)


def _stairs(axes: Axes, run: RunData, rows: Sequence[Row], share: str) -> None:
    """The outline of a histogram; bins that no row names are empty."""
    if not rows:
        return
    steps: list[tuple[float, float]] = []
    for row in rows:
        if steps and row["low"] > steps[-1][0] * 1.0001:
            steps.append((row["low"], 0.0))
        elif not steps:
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


def threshold_curves(runs: Sequence[RunData]) -> Picture | None:
    """What share of all pairs has a mean |J| above each threshold."""
    drawn = [(run, [r for r in run.rows("threshold_fractions") if r["threshold"] > 0]) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if rows]
    if not drawn:
        return None
    figure, axes = new_figure()
    for run, rows in drawn:
        kept = [r for r in rows if r["share_mean_all_tokens"]]
        x = [r["threshold"] for r in kept]
        axes.plot(x, [r["share_mean_all_tokens"] for r in kept], label=run.label, **line_style(run))
        low, high = interval_names(rows, "share_mean_all_tokens")
        if low:
            kept = [r for r in kept if r[low] is not None]
            spans = [[r["threshold"] for r in kept], [r[low] for r in kept], [r[high] for r in kept]]
            axes.fill_between(*spans, color=SERIES[run.series].light, alpha=0.18, linewidth=0)  # type: ignore[arg-type]
    axes.set_xscale("log")
    axes.set_yscale("log")
    decades(axes.xaxis)
    axes.yaxis.set_major_formatter(_percent_ticks())
    label_axes(axes, "threshold on mean |J| over all tokens", "share of all pairs above it")
    add_legend(axes, where="lower left")
    said = [f"{run.label}: {_shares_at(rows, 'share_mean_all_tokens')}" for run, rows in drawn]
    names = [n for n in drawn[0][1][0] if n.startswith("share_")]
    table = [
        (run.label, r["threshold"], *(r.get(n) for n in names))
        for run, _ in drawn
        for r in run.rows("threshold_fractions")
    ]
    return Picture(
        "threshold-curves", "Few pairs matter on average",
        "The notebook’s table as a curve: how many of all n_out × n_in pairs have a mean |J| above a threshold. "
        f"{'; '.join(said)}." + (" The band is the 95 % interval." if interval_names(drawn[0][1], "share_mean_all_tokens")[0] else ""),
        f"Share of pairs above a threshold of mean |J|, both axes logarithmic. {'; '.join(said)}.",
        figure, Numbers(("run", "threshold", *(n.replace("_", " ") for n in names)), table),
    )  # fmt: skip


def _shares_at(rows: Sequence[Row], column: str) -> str:
    chosen = [r for r in rows if r["threshold"] in (1e-4, 1e-2)] or rows[:1]
    return ", ".join(f"{percent(r[column])} above {shown(float(r['threshold']))}" for r in chosen)


def interval_names(rows: Sequence[Row], column: str) -> tuple[str, str] | tuple[None, None]:
    """The columns of the column's interval, where the report has them."""
    low, high = f"{column}_low", f"{column}_high"
    return (low, high) if rows and low in rows[0] and high in rows[0] else (None, None)


def convergence_curves(runs: Sequence[RunData]) -> Picture | None:
    """Whether the shares still change with more tokens: a line for each threshold, in the run's colour."""
    drawn = [(run, run.rows("convergence")) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if rows]
    if not drawn:
        return None
    figure, axes = new_figure()
    for run, rows in drawn:
        for number, threshold in enumerate(sorted({r["threshold"] for r in rows})):
            line = [r for r in rows if r["threshold"] == threshold and r["share_mean_all_tokens"]]
            if not line:
                continue
            x, y = [r["tokens"] for r in line], [r["share_mean_all_tokens"] for r in line]
            axes.plot(x, y, label=run.label if number == 0 else None, **line_style(run))
            low, high = interval_names(rows, "share_mean_all_tokens")
            line = [r for r in line if low and r[low] is not None and r[high] is not None]
            if low and line:
                axes.fill_between(
                    [r["tokens"] for r in line], [r[low] for r in line], [r[high] for r in line],
                    color=SERIES[run.series].light, alpha=0.15, linewidth=0,
                )  # fmt: skip
            if run is drawn[0][0]:
                axes.annotate(
                    f"> {power_of_ten(threshold)}", (x[-1], y[-1]), xytext=(6, 0), textcoords="offset points",
                    va="center", color=MUTED.light, fontsize=9, annotation_clip=False,
                )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_minor_locator(_no_ticks())
    _token_ticks(axes, [row["tokens"] for _, rows in drawn for row in rows])
    axes.yaxis.set_major_formatter(_percent_ticks())
    label_axes(axes, "tokens seen", "share of all pairs with a mean |J| above")
    add_legend(axes, where="lower left")
    said = [f"{run.label}: {_last_change(rows)}" for run, rows in drawn]
    table = [
        (run.label, r["tokens"], r["threshold"], r["share_mean_all_tokens"], r.get("share_max"))
        for run, rows in drawn for r in rows
    ]  # fmt: skip
    return Picture(
        "convergence", "How much more text would change",
        "The same shares after a sixteenth, an eighth, … and all of the text. A flat line has converged; the lowest "
        f"thresholds never do on little text. {'; '.join(said)}.",
        f"Share of pairs above each threshold against the number of tokens. {'; '.join(said)}.",
        figure, Numbers(("run", "tokens", "threshold", "share by mean", "share by largest"), table),
    )  # fmt: skip


def _last_change(rows: Sequence[Row]) -> str:
    """How the share above the middle threshold changed when the text doubled for the last time."""
    thresholds = sorted({r["threshold"] for r in rows})
    wanted = 1e-3 if 1e-3 in thresholds else thresholds[len(thresholds) // 2]
    line = [r for r in rows if r["threshold"] == wanted]
    if len(line) < 2 or not line[-2]["share_mean_all_tokens"]:
        return "too little text to tell"
    before, after = line[-2]["share_mean_all_tokens"], line[-1]["share_mean_all_tokens"]
    return f"the last doubling changed the share above {shown(float(wanted))} by {shown(100 * (after / before - 1))} %"


def _token_ticks(axes: Axes, tokens: Sequence[int]) -> None:
    places = sorted(set(tokens))[-5:]
    kept = [p for n, p in enumerate(places) if (len(places) - 1 - n) % 2 == 0]
    axes.set_xticks(kept, [f"{p:,}" if p < 100_000 else f"{p:.3g}".replace("e+0", "e") for p in kept])


def derivative_picture(run: RunData) -> Picture | None:
    """|J| against |J''| of one run."""
    rows = [r for r in run.rows("derivative_density") if r["low_first"] > 0 and r["low_second"] > 0]
    if not rows:
        return None
    figure, axes = new_figure(4.2)
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
        f"Where a cell is dark, many entries have this |J| and this |J″|. Dotted: |J″| = |J|. {said}.",
        f"Density of the first derivative against the second, both logarithmic. {said}.",
        figure, Numbers(("|J| from", "to", "|J″| from", "to", "entries"), table),
    )  # fmt: skip


def _percent_ticks() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _position: _percent_tick(value))


def _percent_tick(value: float) -> str:
    shown_value = 100 * value
    return f"{power_of_ten(shown_value)} %" if 0 < shown_value < 0.01 else f"{shown_value:.3g} %"


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
