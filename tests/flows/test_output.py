"""What commands print fits the line: tables are cut, never their numbers and names, and paragraphs are folded."""

import pytest

from flows import output

ROWS: list[dict[str, object]] = [
    {
        "run_id": "demo-layers-l0-control-123456789012",
        "tokens": 24_000,
        "entries_stored": 6_144_000,
        "state": "complete",
    },
    {"run_id": "demo-1", "tokens": 7, "entries_stored": None, "state": "in progress"},
]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_keep_names_and_numbers_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "line_width", lambda: width)
    output.say_table("Runs", ROWS)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    assert {"demo-layers-l0-control-123456789012", "24,000", "6,144,000", "complete", "progress"} <= set(words)
    assert words.count("demo-1") == (1 if width == 200 or width == 80 else 2)


def test_a_table_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_table("Runs", [])
    assert capsys.readouterr().out == "Runs: none\n"


def test_paragraphs_are_folded_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "edges=1e-6,1e-5 " * 20
    for width, most in ((60, 60), (300, 100)):
        monkeypatch.setattr(output, "line_width", lambda width=width: width)
        output.say_text(text, "  ")
        lines = capsys.readouterr().out.splitlines()
        assert most - 20 < max(map(len, lines)) <= most
        assert all(line.startswith("  ") and set(line.split()) == {"edges=1e-6,1e-5"} for line in lines)


def test_the_line_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert output.line_width() == 100, "the tests' output is no terminal"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert output.line_width() == 72
    monkeypatch.setenv("COLUMNS", "20")
    assert output.line_width() == 60
