"""Figures that a run shows: rates count only new work, and listeners limit their own rate."""

from __future__ import annotations

import io

import pytest

from flows import progress
from flows.progress import Figures, LiveLine, Meter, PlainLines, clock, listening, short


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_rate_and_the_time_left_come_from_fresh_tokens(time: Clock) -> None:
    meter = Meter()
    meter.begin(1000)
    meter.add(400, 10, 100, fresh=False)
    time.now += 2
    meter.add(200, 10, 100, fresh=True)
    assert meter.figures.tokens_per_second == 100
    assert meter.figures.eta_seconds == 4
    assert meter.figures.fraction == 0.6
    assert meter.figures.line() == "600 of 1,000 tokens · 100 tokens/s · 20 entries · 200 B · ETA 0:04"


def test_without_a_total_there_is_no_fraction_and_no_eta() -> None:
    figures = Figures(None, tokens_done=5, tokens_fresh=5, seconds=1)
    assert (figures.fraction, figures.eta_seconds) == (None, None)
    assert figures.line() == "5 tokens · 5 tokens/s · 0 entries · 0 B"


def test_a_complete_run_is_all_there_was(time: Clock) -> None:
    meter = Meter()
    meter.begin(None)
    meter.add(30, 1, 1, fresh=True)
    meter.close(complete=False)
    assert meter.figures.fraction is None
    meter.close(complete=True)
    assert meter.figures.fraction == 1.0


def test_plain_lines_come_every_few_seconds_and_at_the_end(time: Clock) -> None:
    stream = io.StringIO()
    with listening(PlainLines(stream, seconds=5)):
        meter = Meter()
    meter.note("quality: fine")
    meter.begin(100)
    for _ in range(10):
        time.now += 1
        meter.add(10, 1, 1, fresh=True)
    meter.close(complete=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "quality: fine"
    assert [line.split()[0] for line in lines[1:]] == ["10", "60", "100"]


def test_a_reader_that_has_gone_stops_no_run(time: Clock) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with listening(PlainLines(Gone())):
        meter = Meter()
    meter.note("quality: fine")
    meter.begin(1)
    meter.add(1, 1, 1, fresh=True)
    meter.close(complete=True)


def test_a_run_without_blocks_writes_no_figures(time: Clock) -> None:
    stream = io.StringIO()
    with listening(PlainLines(stream)):
        meter = Meter()
    meter.begin(100)
    meter.close(complete=True)
    assert stream.getvalue() == ""


def test_the_live_line_is_drawn_and_leaves_the_last_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(LiveLine()):
        meter = Meter()
    meter.begin(100)
    meter.add(10, 1, 1, fresh=True)
    meter.note("[bold] is text, no markup")
    meter.close(complete=False)
    shown = capsys.readouterr()
    assert "10 of 100 tokens" in shown.err
    assert "[bold] is text, no markup" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (12_345_678, "12.3 M"),
        (999_600, "1 M"),
        (5e14, "500 T"),
        (5e16, "5e+04 T"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text
    assert short(number, "B") == (text if text[-1].isalpha() else f"{text} ") + "B"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
