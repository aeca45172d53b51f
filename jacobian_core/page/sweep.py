"""The page of a sweep: the answer to the title question for every layer, and the figures over the layers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.page.canvas import png_of
from jacobian_core.page.document import TITLE, html_document
from jacobian_core.page.layers import (
    ANSWER_CURVES,
    FIT_CURVES,
    SHAPE_CURVES,
    SPARSITY_CURVES,
    Curve,
    draw_curve,
    series_of,
)
from jacobian_core.page.markup import details, element, figures, paragraph, section, table, text
from jacobian_core.page.picture import Cell, Picture, percent, shown
from jacobian_core.page.sections import text_lines
from jacobian_core.page.write import PAGE_NAME, WrittenPage
from jacobian_core.sweep.figures import CellFigures, compared_cells
from jacobian_core.sweep.record import CellRecord, SweepRecord

_COMPARED = (
    ("fvu_in", None), ("fvu_out", None), ("mean_abs", None), ("entries_above_per_token", 0.01),
    ("median_kurtosis", None), ("median_gini", None), ("near_zero_share_above", None), ("shape_linear", None),
)  # fmt: skip
_VERDICTS = {"no": "no", "yes": "yes", "undecided": "undecided", "unknown": "not asked"}
_SECTIONS: tuple[tuple[str, str, str, tuple[Curve, ...]], ...] = (
    ("causal", "Effects", "Do zeros mean no effect?", ANSWER_CURVES),
    ("sizes", "Sparsity", "How sparse is the Jacobian?", SPARSITY_CURVES),
    ("shapes", "Function shapes", "What do single functions look like?", SHAPE_CURVES),
    ("fit", "Fit", "How well do the SAEs fit?", FIT_CURVES),
)


def write_sweep_page(lake: Lake, record: SweepRecord, cells: Sequence[CellFigures]) -> WrittenPage:
    """Write `report.html` and the figures' PNG files into the sweep's folder of reports.

    Raises LakeError where it can't be written; each file is then the old one or the new one.
    """
    folder = lake.report_folder(record.sweep_id)
    drawn = {name: [p for c in curves if (p := draw_curve(c, cells))] for name, _, _, curves in _SECTIONS}
    images: dict[str, LakePath] = {}
    for picture in (p for group in drawn.values() for p in group):
        images[picture.title] = folder / f"{picture.name}.png"
        files.write_atomic(images[picture.title], png_of(picture.figure))
    path = folder / PAGE_NAME
    files.write_atomic(path, sweep_page(record, cells, drawn).encode())
    return WrittenPage(path, images)


def sweep_page(record: SweepRecord, cells: Sequence[CellFigures], drawn: dict[str, list[Picture]]) -> str:
    """The page as one HTML document."""
    contents = [(name, short, section(name, title, figures(drawn[name]))) for name, short, title, _ in _SECTIONS]
    contents += [
        ("compared", "Comparisons", _comparisons(cells)),
        ("runs", "Runs", _runs(record, cells)),
        ("provenance", "Request", _request(record)),
    ]
    models = sorted({str(each.facts["model"]).rsplit("/", 1)[-1] for each in cells})
    layers = sorted({each.layer for each in cells})
    subject = f"sweep {record.sweep_id}: {', '.join(models)}, layers {', '.join(map(str, layers))}"
    return html_document(f"{record.sweep_id}: {TITLE}", subject, _answer(record, cells), contents)


def answer_sentence(cells: Sequence[CellFigures]) -> str:
    """The answer over all runs in one sentence."""
    asked = [each for each in cells if each.answer["verdict"] != "unknown"]
    if not asked:
        return "Unknown: no run of this sweep varied latents (set interventions.kinds)."
    verdicts = [each.answer["verdict"] for each in asked]
    shares = sorted(each.answer["share_above"] for each in asked)
    staying = sorted(each.answer["share_above_staying"] for each in asked)
    near, tau = asked[0].answer["near_zero"], asked[0].answer["tau"]
    return (
        f"{_overall(verdicts)} Of the active pairs with |J| < {near:g}, "
        f"{percent(shares[0])} to {percent(shares[-1])} moved the output latent by more than {tau:g} when the "
        f"input latent was ablated; {percent(staying[0])} to {percent(staying[-1])} did so and stayed selected."
    )


def _overall(verdicts: Sequence[str]) -> str:
    runs = f"{len(verdicts)} runs"
    if set(verdicts) == {"no"}:
        return f"No: in none of these {runs} does a zero in the Jacobian rule out a causal connection."
    if set(verdicts) == {"yes"}:
        return (
            f"Yes: in all of these {runs} a zero in the Jacobian means no causal connection, to within the tolerance."
        )
    counted = ", ".join(f"{_VERDICTS[v]} in {verdicts.count(v)}" for v in _VERDICTS if v in verdicts)
    return f"It differs between these {runs}: {counted}."


def _answer(record: SweepRecord, cells: Sequence[CellFigures]) -> str:
    """The answer in a sentence and as a table by layer; what is not there is said first."""
    lacking = [each for each in record.cells if each.state != "complete"]
    missing = ""
    if lacking:
        missing = paragraph(f"{len(lacking)} of {len(record.cells)} runs are not in this page: see Runs.", class_="bad")
    said = f'<p class="answer series-1">{text(answer_sentence(cells))}</p>' if cells else ""
    return f'<section id="answer" aria-label="answer">{said}{missing}{answer_table(cells)}</section>'


def answer_table(cells: Sequence[CellFigures]) -> str:
    """By layer and series: of the pairs with |J| about 0, the share that moved, with its interval."""
    names = series_of(cells)
    found = {(each.layer, each.cell.series): answer_cell(each) for each in cells}
    layers = sorted({layer for layer, _ in found})
    rows = [(str(layer), *(found.get((layer, name), "") for name in names)) for layer in layers]
    caption = "of the active pairs with |J| about 0: moved when ablated [95 % interval]; and stayed selected"
    return table(("layer", *names), rows, caption) if rows else ""


def answer_cell(figures: CellFigures) -> str:
    """One run's answer in a cell."""
    a = figures.answer
    if a["verdict"] == "unknown" or a["share_above"] is None:
        return "not asked"
    low, high = a["share_above_low"], a["share_above_high"]
    interval = "" if low is None else f" [{percent(low)}, {percent(high)}]"
    return f"{_VERDICTS[a['verdict']]}: {percent(a['share_above'])}{interval}; {percent(a['share_above_staying'])}"


def _comparisons(cells: Sequence[CellFigures]) -> str:
    """Two runs of a layer that differ in one axis, side by side, in a few figures."""
    by_axis: dict[str, list[Sequence[Cell]]] = {}
    for axis, a, b in compared_cells(cells):
        by_axis.setdefault(axis, []).append((a.layer, f"{a.cell.series} : {b.cell.series}", *_ratios(a, b)))
    columns = ("layer", "runs", *(_name(statistic, threshold) for statistic, threshold in _COMPARED))
    tables = [details(f"by {axis}", table(columns, rows)) for axis, rows in by_axis.items()]
    if not tables:
        return ""
    lead = paragraph(
        "Runs of one layer that differ in one thing: the figure of the first, and of the second after the colon. Every "
        "figure with its interval is in sweep_comparisons.csv beside this page (the report compare_runs)."
    )
    return section("compared", "Pair against control, trained against redrawn weights", lead, *tables)


def _name(statistic: str, threshold: float | None) -> str:
    return statistic.replace("_", " ") + ("" if threshold is None else f" {threshold:g}")


def _ratios(a: CellFigures, b: CellFigures) -> list[str]:
    found = [(a.measured(*each), b.measured(*each)) for each in _COMPARED]
    return [f"{shown(x.value) if x else '–'} : {shown(y.value) if y else '–'}" for x, y in found]


def _runs(record: SweepRecord, cells: Sequence[CellFigures]) -> str:
    """Every run of the sweep, with a link to its page, or why there is none."""
    done = {each.cell.label: each for each in cells}
    names = ("run", "state", "layer", "tokens", "latents in × out", "FVU in", "FVU out", "page")
    head = "".join(element("th", text(name), scope="col") for name in names)
    rows = "".join(_run_row(each, done.get(each.label)) for each in record.cells)
    inner = element("table", f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")
    framed = element("div", inner, class_="scroll", tabindex="0", role="region", aria_label="runs")
    return section("runs", "The runs", framed)


def _run_row(cell: CellRecord, figures: CellFigures | None) -> str:
    if figures is None:
        why = cell.problem or ("its run is no longer in the lake" if cell.state == "complete" else "")
        return f'<tr><td>{text(cell.label)}</td><td>{text(cell.state)}</td><td colspan="6">{text(why)}</td></tr>'
    f = figures.facts
    latents = f"{shown(f['n_in_latents'])} × {shown(f['n_out_latents'])}"
    fvu = percent(f["fvu_in"]), percent(f["fvu_out"])
    values = (cell.label, cell.state, str(figures.layer), shown(f["tokens"]), latents, *fvu)
    link = element("a", text(figures.run_id), href=f"../{figures.run_id}/{PAGE_NAME}")
    return "<tr>" + "".join(f"<td>{text(value)}</td>" for value in values) + f"<td>{link}</td></tr>"


def _request(record: SweepRecord) -> str:
    whole = json.dumps(record.config, indent=1, sort_keys=True, ensure_ascii=False)
    return section("provenance", "The request", details("the sweep", element("pre", text_lines(whole), tabindex="0")))
