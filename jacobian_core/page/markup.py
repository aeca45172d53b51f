"""Pieces of HTML.

Whatever comes from a lake, a corpus above all, goes through `text`; nothing else makes markup of it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from jacobian_core.page.canvas import svg_of
from jacobian_core.page.picture import Cell, Numbers, Picture
from jacobian_core.sql.render import format_value, safe_text

_IN_FULL, _OUT_OF_HAND = 1e4, 1e15
"""Between these, a float in a table is written as a whole number, not with an exponent."""


def text(value: object) -> str:
    """Any text, safe between tags and in quoted attributes; control and direction characters show as escapes."""
    return html.escape(safe_text(str(value)), quote=True)


def corpus_text(value: str) -> str:
    """Text of a document on one line: line breaks and tabs show as arrows."""
    return text(value.replace("\r\n", "\n").replace("\n", "↵").replace("\t", "→"))


def element(tag: str, inner: str, **attributes: str) -> str:
    """An element around ready markup; attribute values are escaped, a trailing '_' of a name is dropped."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items())
    return f"<{tag}{given}>{inner}</{tag}>"


def paragraph(words: str, **attributes: str) -> str:
    """A paragraph of plain text."""
    return element("p", text(words), **attributes)


def section(name: str, title: str, *parts: str) -> str:
    """A titled section that the contents link to; empty where it has no parts."""
    inner = "".join(parts)
    return f'<section id="{text(name)}"><h2>{text(title)}</h2>{inner}</section>' if inner else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> str:
    """A table that scrolls by itself where it is wider than the page; numbers stand on the right."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    inner = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption or "table")}">{inner}</div>'


def _cell(value: Cell) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    large = isinstance(value, float) and _IN_FULL <= abs(value) < _OUT_OF_HAND
    shown = f"{value:,.0f}" if large else format_value(value)
    return f'<td class="number">{text(shown)}</td>' if number else f"<td>{text(shown)}</td>"


def details(summary: str, inner: str) -> str:
    """Something that opens on demand."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def facts(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """Names and values."""
    inner = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="{text(kind)}">{inner}</dl>'


def figure(picture: Picture) -> str:
    """A picture with its title, caption, and its numbers as a table."""
    drawing = svg_of(picture.figure, picture.name).replace(
        "<svg ", f'<svg role="img" aria-label="{text(picture.alt)}" ', 1
    )
    return (
        f'<figure id="{text(picture.name)}"><h3>{text(picture.title)}</h3>{drawing}'
        f"<figcaption>{text(picture.caption)}</figcaption>{_numbers(picture.numbers, picture.title)}</figure>"
    )


def _numbers(numbers: Numbers, title: str) -> str:
    return details("the numbers", table(numbers.columns, numbers.rows, title))


def figures(pictures: Iterable[Picture | None]) -> str:
    """Pictures side by side where there is room; nothing for those that could not be drawn."""
    drawn = "".join(figure(picture) for picture in pictures if picture is not None)
    return f'<div class="figures">{drawn}</div>' if drawn else ""
