"""What the UI gets: text of the corpus stays in its cell, keys are what Prefect takes."""

from __future__ import annotations

import re

import pytest

from flows import ui
from flows.progress import Figures


def test_a_markdown_cell_can_t_be_left() -> None:
    hostile = "a|b\\|c\n<script>alert(1)</script> `x` [y](z) *b* _i_ ~~s~~ ![p](q) \x1b[31m \0 end\\"
    table = ui.markdown_table([{"token": hostile, "co|unt": 1234567}])
    head, _, row = table.splitlines()
    assert (bare(row, "|"), bare(head, "|")) == (3, 3)
    assert "1,234,567" in row
    assert [char for char in "`[]*_~" if bare(row, char)] == []
    assert ui.escaped("in_active_ _x __ a__b") == "in_active\\_ \\_x \\_\\_ a\\_\\_b"
    assert not any(char in row for char in "<>\x1b\0")
    assert row.endswith("end\\\\ | 1,234,567 |")


def bare(markdown: str, char: str) -> int:
    """How often the character stands without a backslash that escapes it."""
    return len(re.findall(rf"(?<!\\)(?:\\\\)*{re.escape(char)}", markdown))


def test_bare_characters_are_counted() -> None:
    assert [bare(text, "|") for text in ("a|b", "a\\|b", "a\\\\|b", "|\\||")] == [1, 0, 1, 2]


@pytest.mark.parametrize("address", ["https://evil.example/x", "see www.evil.example", "mail@evil.example", "ftp://x"])
def test_an_address_in_the_text_is_no_link(address: str) -> None:
    """Markdown of the UI turns these into links by themselves, unless a backslash is in them."""
    shown = ui.escaped(address)
    assert shown.replace("\\", "") == address
    assert not re.search(r"\w://|www\.|\w@", shown)


def test_figures_are_short() -> None:
    assert [ui.figure(value) for value in (1 / 3, 1e-9, 12, None, True, "x")] == [
        "0.3333",
        "1e-09",
        "12",
        "",
        "true",
        "x",
    ]


def test_a_page_has_the_answer_first() -> None:
    page = ui.run_page("Run r", "Half of them.\n\nMany.", {"sparsity": [{"mean": 0.5}], "empty": []})
    assert page.startswith("# Run r\n\nHalf of them.\n\nMany.\n\n## sparsity")
    assert "(no rows)" in page


@pytest.mark.parametrize(("name", "key"), [("threshold_fractions", "threshold-fractions"), ("Run É_1", "run---1")])
def test_keys(name: str, key: str) -> None:
    assert ui.artifact_key(name) == key


def test_the_bar_moves_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    bar = ui.UiProgress()
    now = [0.0]
    monkeypatch.setattr(ui.time, "monotonic", lambda: now[0])

    def write(figures: Figures) -> None:
        written.append(figures.tokens_done)
        bar._last = now[0]

    monkeypatch.setattr(bar, "_write", write)
    for tokens in range(30):
        now[0] += 0.1
        bar.update(Figures(None, tokens_done=tokens))
    assert len(written) == 3
