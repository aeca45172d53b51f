"""Figures of shares above thresholds: by threshold, and by how much text was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jacobian_core.page.canvas import add_legend, decades, label_axes, new_figure, power_of_ten
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.picture import Numbers, Picture, each_run, percent, shown
from jacobian_core.page.series import draw_line, has_interval
from jacobian_core.page.theme import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE = "share_mean_all_tokens"
_NAMED_THRESHOLDS = (1e-4, 1e-2)
_WATCHED_THRESHOLD = 1e-3
_APART = 0.055
"""Labels at the ends of lines stand at least this share of the axis apart."""


def threshold_curves(runs: Sequence[RunData]) -> Picture | None:
    """What share of all pairs has a mean |J| above each threshold."""
    drawn = [(run, run.rows("threshold_fractions")) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if any(row["threshold"] > 0 and row[_SHARE] for row in rows)]
    if not drawn:
        return None
    figure, axes = new_figure()
    for run, rows in drawn:
        draw_line(axes, run, [row for row in rows if row["threshold"] > 0], "threshold", _SHARE, run.label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    decades(axes.xaxis)
    decades(axes.yaxis, as_percent=True)
    label_axes(axes, "threshold on mean |J| over all tokens", "share of all pairs above it")
    add_legend(axes)
    said = each_run([(run.label, _shares_at(rows)) for run, rows in drawn])
    return Picture(
        "threshold-curves", "How many pairs matter on average",
        "The notebook’s table as a curve: how many of all n_out × n_in pairs have a mean |J| above a threshold. "
        f"{said}. {_band_note(drawn[0][1])}",
        f"Share of pairs above a threshold of mean |J|, both axes logarithmic. {said}.",
        figure, _numbers(drawn, ("threshold",)),
    )  # fmt: skip


def _numbers(drawn: Sequence[tuple[RunData, Sequence[Row]]], keys: Sequence[str]) -> Numbers:
    """The keys and every share of a report, run by run."""
    names = [*keys, *(name for name in drawn[0][1][0] if name.startswith("share_"))]
    rows = [(run.label, *(row.get(name) for name in names)) for run, rows in drawn for row in rows]
    return Numbers(("run", *(name.replace("_", " ") for name in names)), rows)


def _shares_at(rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if row["threshold"] in _NAMED_THRESHOLDS] or rows[:1]
    return ", ".join(f"{percent(row[_SHARE])} above {shown(float(row['threshold']))}" for row in chosen)


def _band_note(rows: Sequence[Row]) -> str:
    return "The band is the 95\u00a0% interval." if has_interval(rows, _SHARE) else ""


def convergence_curves(runs: Sequence[RunData]) -> Picture | None:
    """Whether the shares still change with more tokens: a line for each threshold, in the run's colour."""
    drawn = [(run, run.rows("convergence")) for run in runs]
    drawn = [(run, rows) for run, rows in drawn if any(row[_SHARE] for row in rows)]
    if not drawn:
        return None
    figure, axes = new_figure()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for run, rows in drawn:
        for number, line in enumerate(_lines(rows)):
            draw_line(axes, run, line, "tokens", _SHARE, run.label if number == 0 else None)
    _token_ticks(axes, [row["tokens"] for _, rows in drawn for row in rows])
    _name_lines(axes, _lines(drawn[0][1]))
    decades(axes.yaxis, as_percent=True)
    label_axes(axes, "tokens seen", "share of all pairs with a mean |J| above")
    add_legend(axes)
    said = each_run([(run.label, _last_change(rows)) for run, rows in drawn])
    return Picture(
        "convergence", "How much more text would change",
        "The same shares after a sixteenth, an eighth, … and all of the text. A flat line has converged; at the lowest "
        f"thresholds every new pair counts, so they keep rising. {said}. {_band_note(drawn[0][1])}",
        f"Share of pairs above each threshold against the number of tokens. {said}.",
        figure, _numbers(drawn, ("tokens", "threshold")),
    )  # fmt: skip


def _lines(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each threshold that any pair is above, ascending."""
    thresholds = sorted({row["threshold"] for row in rows})
    lines = [[row for row in rows if row["threshold"] == threshold] for threshold in thresholds]
    return [line for line in lines if any(row[_SHARE] for row in line)]


def _name_lines(axes: Axes, lines: Sequence[Sequence[Row]]) -> None:
    """The threshold at the end of each line; of lines that end together, the first and the last one."""
    transform = axes.transScale + axes.transLimits
    groups: list[tuple[float, list[Row]]] = []
    for line in lines:
        end = [row for row in line if row[_SHARE]][-1]
        place = float(transform.transform((end["tokens"], end[_SHARE]))[1])
        if groups and abs(groups[-1][0] - place) < _APART:
            groups[-1][1].append(end)
        else:
            groups.append((place, [end]))
    for _, ends in groups:
        names = [power_of_ten(row["threshold"]) for row in (ends[0], ends[-1])]
        label = "> " + (names[0] if len(ends) == 1 else f"{names[0]} … {names[1]}")
        axes.annotate(
            label, (ends[0]["tokens"], ends[0][_SHARE]), xytext=(7, 0), textcoords="offset points",
            va="center", color=MUTED.light, fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _token_ticks(axes: Axes, tokens: Sequence[int]) -> None:
    """Every second number of tokens, the last one included, with a little room beside them."""
    from matplotlib.ticker import NullLocator

    places = sorted(set(tokens))
    kept = places[::-1][::2]
    axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    axes.set_xticks(kept, [_tokens(count) for count in kept])
    axes.xaxis.set_minor_locator(NullLocator())


def _tokens(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (size if size > 10**4 else 1000):.3g}{letter}"
    return f"{count:,}"


def _last_change(rows: Sequence[Row]) -> str:
    """How the share above a middle threshold changed when the text doubled for the last time."""
    lines = _lines(rows)
    line = next((line for line in lines if line[0]["threshold"] == _WATCHED_THRESHOLD), lines[len(lines) // 2])
    if len(line) < 2 or not line[-2][_SHARE]:
        return "too little text to tell"
    change = 100 * (line[-1][_SHARE] / line[-2][_SHARE] - 1)
    return (
        f"the last doubling of the text changed the share above {shown(float(line[0]['threshold']))} by "
        f"{shown(change)}\u00a0%"
    )
