"""Tables as text: rounded, aligned, within the line, and safe to print whatever the corpus holds."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacobian_core.sql.render import format_value, render, safe_text
from jacobian_core.sql.reports import list_reports, report_info, run_report
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import HAND_RUN, RANDOM_RUN, Token, random_lake

HOSTILE = "\x1b[31mred\x07\0\r\n\t\u202egnp.exe\u2028<script>[bold]it's[/bold]"


def test_given_expect() -> None:
    table = pa.table(
        {
            "out_latent": [1234, 5, 6, 7],
            "n_coactive": [12345, 6, 6, 6],
            "share_max": [0.5, None, None, None],
            "mean_abs": [1 / 3, 1.5e-7, 0.5, 0.5],
            "ok": [True, False, True, True],
            "run_id": ["r", "r", "r", "r"],
        }
    )
    assert render(table).splitlines() == [
        "   out         n  share     mean",
        "latent  coactive    max      abs   ok",
        "─────────────────────────────────────",
        "  1234    12,345    0.5   0.3333  yes",
        "     5         6      -  1.5e-07   no",
        "     6         6      -      0.5  yes",
        "     7         6      -      0.5  yes",
        "in every row: run id r",
    ]
    assert "in every row" not in render(table.slice(0, 3))


def test_a_single_wide_row_is_a_list() -> None:
    table = pa.table({f"figure_{i}": [i] for i in range(7)} | {"answer": ["word " * 40]})
    lines = render(table, width=60).splitlines()
    assert lines[:2] == ["figure 0  0", "figure 1  1"]
    assert all(len(line) <= 60 for line in lines)
    assert sum(line.count("word") for line in lines) == 40


def test_shares_are_percent_where_the_report_says_so(hand_connection: duckdb.DuckDBPyConnection) -> None:
    report = report_info("threshold_fractions")
    table = run_report(hand_connection, report.name, {"thresholds": [0.5, 1.0]})
    text = render(table, report)
    assert text.startswith("What share of all pairs of latents")
    assert "4.167%" in text
    assert "4.167%" not in render(table)


def test_format_value() -> None:
    found = [
        format_value(v) for v in (None, True, 0.0, -1234567.0, 1e-300, 1234567, "a\nb", float("nan"), 9999.5, 6e4, 2e15)
    ]
    assert found == [
        "-", "yes", "0", "-1,234,567", "1e-300", "1,234,567", "a\\nb", "nan", "1e+04", "60,000", "2e+15"
    ]  # fmt: skip
    assert format_value(0.49074, percent=True) == "49.07%"
    assert format_value(1234567, grouped=False) == "1234567"


@given(st.text())
def test_safe_text_is_safe_for_any_text(text: str) -> None:
    safe = safe_text(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in safe)
    assert safe == text or any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    text = render(pa.table({"text": [HOSTILE, "plain"], HOSTILE: [1, 2]}))
    assert "\\x1b[31mred\\x07\\x00\\r\\n\\t\\u202e" in text
    assert "[bold]" in text
    assert not any(unicodedata.category(c) in ("Cc", "Cf") for c in text.replace("\n", ""))


def test_hostile_tokens_reach_no_report_unescaped(tmp_path: Path) -> None:
    tokens = [Token(0, 1, HOSTILE.replace("\0", ""), {0: 1.0}, {0: 1.0}, {(0, 0): 1.0})]
    with connect(random_lake(tmp_path, RANDOM_RUN, tokens)) as connection:
        table = run_report(connection, "mean_max_aggregates", {})
    assert table.column("example").to_pylist() == [f">>>{HOSTILE.replace(chr(0), '')}<<<"]  # the data keep it
    assert "\x1b" not in render(table)


@pytest.mark.parametrize("width", [60, 100])
def test_every_report_fits_the_line(hand_connection: duckdb.DuckDBPyConnection, width: int) -> None:
    for report in list_reports():
        runs = {p.name: HAND_RUN for p in report.parameters if p.name in ("run_a", "run_b")}
        table = run_report(hand_connection, report.name, runs)
        body = render(table, report, width).splitlines()[1:]
        grid = [line for line in body if not line.startswith("in every row")]
        assert max(len(line) for line in grid) <= width, report.name
        shown = render(table, report, width).replace("\n", " ")
        for name in table.column_names:
            assert all(word in shown for word in name.split("_")), (report.name, name)


def test_wide_table_is_cut_into_panels_that_repeat_the_first_column() -> None:
    table = pa.table({"name": ["a", "b"]} | {f"figure{n}": [n, n + 1] for n in range(20)})
    text = render(table, width=50)
    assert text.count("name") > 2
    assert text.count("figure") == 20
    assert render(table, width=500).count("name") == 1


def test_wide_characters_keep_the_line() -> None:
    from rich.cells import cell_len

    text = render(pa.table({"text": ["漢字" * 60, "x"], "n": [1, 2]}), width=60)
    assert max(cell_len(line) for line in text.splitlines()) <= 60


def test_empty_table_says_so() -> None:
    assert render(pa.table({"a": pa.array([], pa.int64())})).endswith("no rows")
