"""The whole page: head, contents, sections, style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jacobian_core.page import sections
from jacobian_core.page.gather import RunData
from jacobian_core.page.markup import text
from jacobian_core.page.picture import Picture
from jacobian_core.page.theme import SERIES, css_variables

TITLE = "Do zeros in the Jacobian mean that there is no causal connection?"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_FOOTER = (
    "Made by jacobian-flows from the Parquet tables of a lake. The numbers of every figure stand below it; "
    "jacobian report NAME prints the reports that they are from, and writes them as Parquet and CSV."
)
_CONTENTS = (
    ("causal", "Effects"),
    ("sizes", "Sparsity"),
    ("second", "Second derivatives"),
    ("pairs", "Strongest pairs"),
    ("quality", "Data quality"),
    ("provenance", "Provenance"),
)


def page(runs: Sequence[RunData], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """The page as one HTML document that needs nothing else: no network, no script, no font."""
    body = {
        "causal": sections.causal_section(runs, pictures.get("causal", ())),
        "sizes": sections.sizes_section(runs, pictures.get("sizes", ())),
        "second": sections.second_section(runs, pictures.get("second", ())),
        "pairs": sections.pairs_section(runs),
        "quality": sections.quality_section(runs),
        "provenance": sections.provenance_section(runs),
    }
    names = " · ".join(run.label for run in runs)
    contents = [(name, title, body[name]) for name, title in _CONTENTS]
    return html_document(f"{names}: {TITLE}", _subject(runs), sections.answer(runs), contents)


def html_document(title: str, subject: str, answer: str, contents: Sequence[tuple[str, str, str]]) -> str:
    """A page about the title question: what it is about, the answer, and sections of ready markup by id and title."""
    links = "".join(f'<li><a href="#{name}">{text(heading)}</a></li>' for name, heading, part in contents if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{css_variables()}{_style()}</style>\n</head>\n<body>\n"
        f'<header><p class="what">{text(subject)}</p><h1>{text(TITLE)}</h1></header>\n<main>\n'
        f'{answer}\n<nav aria-label="contents"><ul>{links}</ul></nav>\n'
        + "\n".join(part for _, _, part in contents)
        + f"\n</main>\n<footer><p>{text(_FOOTER)}</p></footer>\n</body>\n</html>\n"
    )


def _subject(runs: Sequence[RunData]) -> str:
    parts = []
    for run in runs:
        about = f"{run.facts['model']}, block {run.facts['layer']}"
        parts.append(about if len(runs) == 1 else f"{run.label}: {about}")
    return " · ".join(parts)


def _style() -> str:
    rules = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    swatches = "".join(f".swatch.{c.name}{{background:var(--{c.name})}}" for c in SERIES)
    return rules + swatches + "".join(f".answer.{c.name}{{border-color:var(--{c.name})}}" for c in SERIES)
