"""The page's sections: what each asks, its figures, and the words around them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jacobian_core.page import causal, contexts, curves, distributions, shapes
from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.markup import details, element, facts, figures, paragraph, section, table, text
from jacobian_core.page.picture import Cell, Picture, percent, shown
from jacobian_core.sql.entries import setting
from jacobian_core.sql.reports import report_info

_NO_INTERVENTIONS = (
    "This run varied no latents, so it can’t answer the question: run it with `--set interventions.kinds=ablate`."
)


def draw_all(runs: Sequence[RunData]) -> dict[str, list[Picture]]:
    """Every picture that the runs have rows for, by section."""
    found = {
        "causal": [
            causal.causal_curve(runs),
            causal.effect_sizes(runs),
            *map(causal.effect_picture, runs),
            shapes.function_shapes(runs),
        ],
        "sizes": [
            distributions.entry_histogram(runs),
            distributions.pair_histogram(runs),
            curves.threshold_curves(runs),
            curves.convergence_curves(runs),
        ],
        "second": [distributions.derivative_picture(run) for run in runs],
    }
    return {name: [p for p in pictures if p is not None] for name, pictures in found.items()}


def answer(runs: Sequence[RunData]) -> str:
    """The answer in a sentence for each run, before anything else."""
    parts = []
    for run in runs:
        name = f'<strong class="run">{_swatch(run)}{text(run.label)}</strong>' if len(runs) > 1 else ""
        parts.append(f'<p class="answer series-{run.series + 1}">{name}{text(answer_sentence(run))}</p>')
    return f'<section id="answer" aria-label="answer">{"".join(parts)}{_key_figures(runs)}</section>'


def answer_sentence(run: RunData) -> str:
    """The sentence of the report causal_zero_answer, or why there is none."""
    for row in run.rows("causal_zero_answer"):
        if row.get("answer"):
            return str(row["answer"]).replace(" %", "\u00a0%")
    return _NO_INTERVENTIONS


def _key_figures(runs: Sequence[RunData]) -> str:
    if len(runs) == 1:
        return facts(_key_facts(runs[0]), "key")
    names = ["run", *(name for name, _ in _key_facts(runs[0]))]
    return table(names, [(run.label, *(value for _, value in _key_facts(run))) for run in runs], "the runs")


def _key_facts(run: RunData) -> list[tuple[str, str]]:
    f = run.facts
    dropped = 1 - f["entries_stored"] / f["entries_total"] if f["entries_total"] else 0.0
    summed = ", summed by pair" if f["keep"] != "entries" else ""
    return [
        ("tokens", shown(f["tokens"])),
        ("documents", shown(f["documents"])),
        (
            f"Jacobian entries{summed}",
            shown(f["entries_stored"]) + (f" ({percent(dropped)} dropped)" if dropped else ""),
        ),
        ("latents in × out", f"{shown(f['n_in_latents'])} × {shown(f['n_out_latents'])}"),
        ("variance unexplained, in / out", f"{percent(f['fvu_in'])} / {percent(f['fvu_out'])}"),
        ("state", "complete" if f["complete"] else "still running"),
    ]


def causal_section(runs: Sequence[RunData], pictures: Sequence[Picture]) -> str:
    """Interventions by |J|, predictions, and the strongest violations."""
    lists = "".join(_for_run(runs, run, contexts.violations(run)) for run in runs)
    worst = f"<h3>The strongest effects where J is about 0</h3>{lists}" if lists else ""
    body = figures(pictures) + worst
    if not body:
        return ""
    lead = paragraph(
        "An input latent is set to 0 at one token, everything else is held, and the MLP and the output SAE’s selection "
        "are computed again. The effect is the change of the output latent’s activation."
    )
    return section("causal", "Do zeros mean no effect?", lead, body)


def report_table(runs: Sequence[RunData], name: str) -> str:
    """A report of every run as one table, its shares in percent; empty where no run has rows."""
    rows = [(run, row) for run in runs for row in run.rows(name)]
    if not rows:
        return ""
    columns = report_info(name).columns
    shares = {c.name for c in columns if c.unit == "share"}
    body = [(run.label, *(_share_or_value(row[c.name], c.name in shares) for c in columns)) for run, row in rows]
    return table(("run", *(c.name.replace("_", " ") for c in columns)), body)


def _share_or_value(value: Cell, is_share: bool) -> Cell:
    return percent(value) if is_share and isinstance(value, float) else value


def sizes_section(runs: Sequence[RunData], pictures: Sequence[Picture]) -> str:
    """Histograms, threshold curves, convergence; and why a run is in some of them only."""
    lacking = without_entries(runs, "no figures of single entries and of convergence, and no intervals")
    return section("sizes", "How sparse is the Jacobian?", lacking, figures(pictures)) if pictures else ""


def without_entries(runs: Sequence[RunData], therefore: str) -> str:
    """A sentence on the runs that do not keep entries, for each setting; '' where there are none."""
    names: dict[str, list[str]] = {}
    for run in runs:
        if run.facts["keep"] != "entries":
            names.setdefault(run.facts["keep"], []).append(run.label)
    return "".join(
        paragraph(f"Of {', '.join(of)} the sums of pairs were kept, not single entries ({setting(keep)}): {therefore}.")
        for keep, of in names.items()
    )


def second_section(runs: Sequence[RunData], pictures: Sequence[Picture]) -> str:
    """J against J''."""
    if not pictures:
        return ""
    lead = paragraph(
        "If J″ is small wherever J is, the map between the latents is nearly linear there, and a zero derivative is a "
        "zero effect for larger changes too."
    )
    correlations = report_table(runs, "derivative_correlation")
    more = details("correlations of J and J″", correlations) if correlations else ""
    return section("second", "First and second derivatives", lead, figures(pictures), more)


def pairs_section(runs: Sequence[RunData]) -> str:
    """The strongest pairs in context."""
    body = "".join(_for_run(runs, run, contexts.strongest_pairs(run)) for run in runs)
    lacking = without_entries(runs, "no tokens to show with the pairs; the report mean_max_aggregates lists these")
    if not body:
        return section("pairs", "The strongest pairs, in context", lacking) if lacking else ""
    lead = lacking + paragraph(
        "Pairs by mean |J| over all tokens. Under each, the tokens at which its |J| is largest: the token is marked, "
        "↵ is a line break."
    )
    return section("pairs", "The strongest pairs, in context", lead, body)


def _for_run(runs: Sequence[RunData], run: RunData, body: str) -> str:
    return f"<h3>{_swatch(run)}{text(run.label)}</h3>{body}" if body and len(runs) > 1 else body


def _swatch(run: RunData) -> str:
    return f'<span class="swatch series-{run.series + 1}" aria-hidden="true"></span>'


def quality_section(runs: Sequence[RunData]) -> str:
    """What went in, what was left out, and whether the data hold together."""
    parts = []
    for run in runs:
        rows = [(r["measure"], _whole(r["measured"]), r["unit"]) for r in run.rows("data_quality")]
        body = table(("measure", "value", "unit"), rows, f"data quality of {run.label}") if rows else ""
        parts.append(_for_run(runs, run, _skipped(run) + _checks(run) + _drift(run) + body))
    return section("quality", "Data quality", *parts)


def _whole(value: float | None) -> float | int | None:
    """A count that a report has as a float, as the whole number that it is."""
    return int(value) if value is not None and value == int(value) else value


def _skipped(run: RunData) -> str:
    corpus = run.record.get("corpus") or {}
    skipped = corpus.get("skipped") if isinstance(corpus, dict) else None
    if not isinstance(skipped, dict):
        return ""
    listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return paragraph(f"Skipped lines and documents: {listed or 'none'}.")


def _checks(run: RunData) -> str:
    if run.checks is None:
        return paragraph("The checks between tables were not run for this page; `jacobian verify` runs them.")
    broken = [check for check in run.checks if check.violations]
    if not broken:
        return paragraph(f"All {len(run.checks)} checks between the tables hold.", class_="good")
    listed = table(("check", "must hold", "rows that break it"), [(c.name, c.invariant, c.violations) for c in broken])
    return paragraph(f"{len(broken)} of {len(run.checks)} checks do not hold:", class_="bad") + listed


def _drift(run: RunData) -> str:
    """What the gate found unusual before the run was published."""
    quality = run.record.get("quality") or {}
    drift = quality.get("drift") if isinstance(quality, dict) else None
    if not isinstance(drift, dict):
        return ""
    if not drift["found"]:
        return paragraph("No block, and not the run as a whole, has unusual figures.", class_="good")
    rows = [
        (row["where"], row["measure"].replace("_", " "), shown(row["value"]), shown(row["usual"]))
        for row in drift["first"]
    ]
    said = paragraph(f"Unusual figures, of blocks or of the run as a whole: {drift['found']:,}.", class_="bad")
    return said + table(("where", "measure", "value", "usually"), rows, f"unusual figures of {run.label}")


def provenance_section(runs: Sequence[RunData]) -> str:
    """Where everything is from: enough to make the same run again."""
    parts = []
    for run in runs:
        described = facts(_provenance(run), "facts")
        whole = json.dumps(run.record.get("config", {}), indent=1, sort_keys=True, ensure_ascii=False)
        config = details("configuration", element("pre", text_lines(whole), tabindex="0"))
        sections = [name for name in ("identity", "artifact", "model", "versions", "quality") if run.record.get(name)]
        rest = {name: run.record[name] for name in sections}
        record = details("record", element("pre", text_lines(_json(rest)), tabindex="0"))
        absent = "".join(paragraph(f"Without {name}: {why.rstrip('.')}.") for name, why in sorted(run.missing.items()))
        parts.append(_for_run(runs, run, described + config + record + (details("left out", absent) if absent else "")))
    return section("provenance", "Where this is from", *parts)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


def text_lines(words: str) -> str:
    """Escaped text that keeps its lines."""
    return "\n".join(text(line) for line in words.split("\n"))


def _provenance(run: RunData) -> list[tuple[str, str]]:
    f: Row = run.facts
    created = f["created_utc"]
    versions = run.record.get("versions") or {}
    chosen = ", ".join(
        f"{k} {v}" for k, v in sorted(versions.items()) if k in ("jacobian-flows", "torch", "transformer-lens")
    )
    return [
        ("run", run.run_id),
        ("finished", "not yet" if created is None else f"{created:%Y-%m-%d %H:%M} UTC"),
        ("language model", f"{f['model']}, block {f['layer']}, weights: {f['weights']}"),
        ("SAE pair", str(f["artifact"])),
        ("MLP input", str(f["mlp_input"])),
        ("derivatives", f"{f['derivatives']}, at the {f['evaluate_at']}, scope {f['scope']}"),
        (
            "summed entries, none kept" if f["keep"] != "entries" else "stored entries",
            f"|J| ≥ {shown(f['min_abs'])}" if f["thresholded"] else "all of them",
        ),
        ("versions", chosen or "not known yet"),
    ]
