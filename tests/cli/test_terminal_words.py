"""Figures in words, and tables that are cut on a terminal but never in a pipe."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from pipeline.terminal import Column, age, duration, figure, metrics, print_table, size


class Screen(io.StringIO):
    """A terminal as far as `isatty` says."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**50, "1024.0 TiB")]
)
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.123456, "0.1235"), (12.3456, "12.35"), (12345.6, "12,346"), (0.000012, "1.2e-05"), (-3.5, "-3.5")],
)
def test_figures(value: float, words: str) -> None:
    assert figure(value) == words


def test_ages() -> None:
    now = datetime(2026, 1, 10, 12, 0, 0, tzinfo=UTC)
    assert age("2026-01-10T11:59:30+00:00", now) == "just now"
    assert age("2026-01-10T11:05:00+00:00", now) == "55 min ago"
    assert age("2026-01-10T07:00:00", now) == "5 h ago"
    assert age("2026-01-01T12:00:00+00:00", now) == "9 d ago"
    assert age("yesterday", now) == "yesterday"


def test_the_metrics_people_follow_come_first_and_bookkeeping_is_left_out() -> None:
    seen = {"learning_rate": 1e-4, "epoch": 0.5, "grad_norm": 2, "margin": 0.25, "eval_loss": 1.5, "loss": 1.25}
    assert metrics(seen) == "loss 1.25  held-out loss 1.5  margin 0.25"
    assert metrics({"eval_runtime": 3.0}) == ""


COLUMNS = (Column("name", style="bold"), Column("n", right=True), Column("why", fold=True), Column("x", shorten=True))
ROWS = [["a", "1", "short", "y"], ["bb", "22", "word " * 30, "z" * 90]]


def test_a_pipe_gets_whole_lines_without_colours() -> None:
    out = io.StringIO()
    print_table(COLUMNS, ROWS, stream=out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert [line.split() for line in lines[:2]] == [["name", "n", "why", "x"], ["a", "1", "short", "y"]]
    assert lines[2].endswith("z" * 90)
    assert "\x1b" not in out.getvalue()
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_lines_that_fit(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    out = Screen()
    print_table(COLUMNS, ROWS, stream=out)
    lines = out.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= width
    assert "…" in out.getvalue()
