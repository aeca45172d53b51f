"""Pairs of latents with the text around the tokens at which they meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from jacobian_core.page.gather import Row, RunData
from jacobian_core.page.markup import corpus_text, details, element, text
from jacobian_core.page.picture import shown

_OPEN_PAIRS = 6
"""Pairs that are shown at once; the others open on demand."""


def strongest_pairs(run: RunData) -> str:
    """The pairs with the largest mean |J|, each with its strongest tokens in context."""
    rows = run.rows("pair_examples")
    pairs = [_pair(list(group)) for _, group in groupby(rows, key=lambda row: row["rank"])]
    return _listed(pairs, "strongest")


def violations(run: RunData) -> str:
    """Interventions with a large effect where J is about 0, in context; only the first of each pair and token."""
    return _listed([_violation(row) for row in run.rows("top_interventions")], "violations")


def _listed(items: Sequence[str], kind: str) -> str:
    if not items:
        return ""
    first = element("ol", "".join(items[:_OPEN_PAIRS]), class_=f"pairs {kind}")
    if len(items) <= _OPEN_PAIRS:
        return first
    rest = element("ol", "".join(items[_OPEN_PAIRS:]), class_=f"pairs {kind}", start=str(_OPEN_PAIRS + 1))
    return first + details(f"{len(items) - _OPEN_PAIRS} more", rest)


def _pair(rows: list[Row]) -> str:
    first = rows[0]
    about = (
        f"mean |J| {shown(first['mean_abs_all_tokens'])} over all tokens · mean J {shown(first['mean'])} over "
        f"{first['n_coactive']:,} together · largest |J| {shown(float(first['max_abs']))}"
    )
    contexts = "".join(_context(row, _activations(row)) for row in rows)
    return f"<li>{_heading(first, about)}<ul>{contexts}</ul></li>"


def _violation(row: Row) -> str:
    effect = shown(float(row["effect"]))
    kept = "left the selection" if row.get("left_selection") else "stayed active"
    about = f"J {shown(float(row['value']))}, yet the effect is {effect}: the output latent {kept}"
    before = f"s {shown(float(row['in_before']))} · t {shown(float(row['out_before']))}"
    note = f"predicted {shown(float(row['first_order']))} · {before}"
    return f"<li>{_heading(row, about)}<ul>{_context(row, note)}</ul></li>"


def _activations(row: Row) -> str:
    """J, and the activations of both latents, at one token."""
    parts = [f"J {shown(float(row['value']))}"]
    for name, side in (("in_activation", "s"), ("out_activation", "t")):
        if row[name] is not None:
            parts.append(f"{side} {shown(float(row[name]))}")
    return " · ".join(parts)


def _heading(row: Row, about: str) -> str:
    """Both latents, in the direction of the effect, and what is known of them."""
    arrow = '<span aria-label="to">→</span>'
    latents = f"in {row['in_latent']} {arrow} out {row['out_latent']}"
    return f'<h4>{latents}</h4><p class="figures-of">{text(about)}</p>'


def _context(row: Row, note: str) -> str:
    """One line of text with the token marked; `note` says what happened there."""
    before = corpus_text((row["text_before"] or "").lstrip(" "))
    token, after = corpus_text(row["text"] or ""), corpus_text(row["text_after"] or "")
    source = f' title="{text(row["source"])}"' if row.get("source") else ""
    return (
        f'<li{source}><span class="note">{text(note)}</span> '
        f'<q dir="auto"><span>{before}</span><mark>{token}</mark><span>{after}</span></q></li>'
    )
