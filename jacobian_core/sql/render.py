"""A table as text for a terminal or a log: aligned, rounded, with units, and safe to print.

Token texts come from the web, so every control and direction character is shown as an escape, never sent to the
terminal. Figures are rounded to four digits here only; the written reports keep them all. A table that is too wide
for the line is cut into panels that repeat its first column.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from jacobian_core.sql.sql_files import SqlFile

_GAP = 2
"""Blanks between columns: one of padding, one for the rule's joint."""
_TEXT_WIDTH = 44
_NUMBERED = ("_id", "_latent")
_MANY_ROWS = 4
"""From this many rows on, a column that is the same in every row is named once, below the table."""
_WIDE = 6
"""A single row of more columns than this is shown as a list."""
_PERCENT = "share"
_LONG, _LONGEST = 1e4, 1e15
"""Floats between these are shown whole: what is that large is a count or a weight, and 6.068e+04 is hard to read."""


@dataclass(frozen=True)
class Column:
    """One column, its cells as safe text; texts that are longer than `text_width` are folded."""

    heading: str
    cells: list[str]
    is_text: bool
    text_width: int = _TEXT_WIDTH

    @property
    def width(self) -> int:
        """Terminal columns that it needs: its longest cell or the longest word of its heading."""
        longest = max((_cells_wide(cell) for cell in self.cells), default=0)
        cap = self.text_width if self.is_text else longest
        return max(min(longest, cap), *(len(word) for word in self.heading.split()))


def render(table: pa.Table, report: SqlFile | None = None, width: int = 100) -> str:
    """The table as lines of at most `width` columns, without colours; `report` adds its question and units.

    A single row of many columns is shown as a list of them. Columns that are the same in all of many rows are
    named once, below the table.
    """
    columns = [_column(table, name, report) for name in table.column_names]
    if table.num_rows == 1 and len(columns) > _WIDE:
        return "\n".join([*([safe_text(report.purpose)] if report else []), *_record(columns, width)])
    constant = [c for c in columns[1:] if table.num_rows >= _MANY_ROWS and len(set(c.cells)) == 1]
    shown = [c for c in columns if c not in constant]
    lines = [safe_text(report.purpose)] if report else []
    lines += panels(shown, width)
    if constant:
        lines.append("in every row: " + ", ".join(f"{c.heading} {c.cells[0]}" for c in constant))
    if not table.num_rows:
        lines.append("no rows")
    return "\n".join(lines)


def _record(columns: Sequence[Column], width: int) -> Iterator[str]:
    """One row as a list: a line a column, long texts folded."""
    name_width = max(len(column.heading) for column in columns)
    for column in columns:
        folded = textwrap.wrap(column.cells[0], width - name_width - _GAP) or [""]
        yield f"{column.heading:<{name_width}}{' ' * _GAP}{folded[0]}"
        yield from (" " * (name_width + _GAP) + line for line in folded[1:])


def safe_text(text: str) -> str:
    """The text with every character that is not for reading (control, format, separator of lines) as an escape."""
    return "".join(_escape(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def format_value(value: Any, percent: bool = False, grouped: bool = True) -> str:
    """One value as safe text: floats to four digits or whole, shares in percent, thousands apart, null as '-'."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if percent:
            return f"{100 * value:.4g}%"
        return f"{value:,.0f}" if _LONG <= abs(value) < _LONGEST else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return safe_text(str(value))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _column(table: pa.Table, name: str, report: SqlFile | None) -> Column:
    described = next((c for c in report.columns if c.name == name), None) if report else None
    percent = described is not None and described.unit == _PERCENT
    values: list[Any] = table.column(name).to_pylist()
    cells = [format_value(value, percent, grouped=not name.endswith(_NUMBERED)) for value in values]
    is_text = any(isinstance(value, str) for value in values)
    return Column(safe_text(name).replace("_", " "), cells, is_text)


def panels(columns: Sequence[Column], width: int) -> list[str]:
    """The columns as one table or, where they do not fit the line, as several that each start with the first column."""
    return [_panel(panel, width) for panel in _panels(columns, width)]


def _panels(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    panel: list[Column] = []
    for column in columns:
        needed = sum(c.width + _GAP for c in [*panel, column]) - 1  # the last column keeps its padding
        if len(panel) > 1 and needed > width:
            yield panel
            panel = [columns[0]]
        panel.append(column)
    if panel:
        yield panel


def _panel(columns: Sequence[Column], width: int) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.is_text else "right"
        grid.add_column(Text(column.heading), justify=justify, width=column.width, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        grid.add_row(*(Text(cell) for cell in cells))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _cells_wide(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
