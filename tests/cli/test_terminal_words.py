"""Figures in words, and tables that are cut on a terminal but never in a pipe."""

from __future__ import annotations

import io
import shlex
from datetime import UTC, datetime

import pytest

from pipeline.cli.terminal import Column, age, duration, figure, metrics, print_command, print_table, size, wrapped


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
    assert metrics({"tokens_per_s": 1234.4}) == "tokens/s 1,234"


COLUMNS = (
    Column("name", style="bold"),
    Column("n", right=True),
    Column("why not", fold=True),
    Column("what it does", fold=True),
)
ROWS = [
    ["a", "1", "short", "y"],
    ["bb", "22", "several of the words of a sentence " * 4, "a baseline that is compared with another one"],
]
WORDS = sorted(" ".join([*(column.title for column in COLUMNS), *(cell for row in ROWS for cell in row)]).split())


def test_a_pipe_gets_whole_lines_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    print_table(COLUMNS, ROWS, stream=out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert [line.split() for line in lines[:2]] == [
        ["name", "n", "why", "not", "what", "it", "does"],
        ["a", "1", "short", "y"],
    ]
    assert lines[2].endswith("compared with another one")
    assert "\x1b" not in out.getvalue()
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_a_table_fits_in_whole_words_and_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch, width: int, stream: type[io.StringIO]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    out = stream()
    print_table(COLUMNS, ROWS, stream=out)
    lines = out.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= width
    assert sorted(out.getvalue().split()) == WORDS


def test_a_last_column_without_room_goes_beneath_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    columns = (Column("artifact"), Column("fingerprint"), Column("summary", fold=True))
    print_table(columns, [["base@v1", "0123456789ab", "loss 0.5 on 1,234 rows"]], stream=out)
    assert out.getvalue().splitlines() == [
        "artifact  fingerprint",
        "  summary",
        "base@v1   0123456789ab",
        "  loss 0.5 on 1,234 rows",
    ]


def test_a_table_of_figures_without_room_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    out = io.StringIO()
    columns = (Column("MiB"), *(Column(title, right=True) for title in ("weights", "activ.", "logits", "peak")))
    print_table(columns, [["sft", "1,918", "4,304", "20", "8"], ["dpo", "1", "2", "3", "4"]], stream=out)
    assert out.getvalue().splitlines() == [
        "MiB        sft  dpo",
        "weights  1,918    1",
        "activ.   4,304    2",
        "logits      20    3",
        "peak         8    4",
    ]


def test_a_table_without_room_for_its_columns_is_a_list_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    columns = (Column("artifact"), Column("fingerprint", fold=True), Column("n", right=True))
    print_table(columns, [["base@v1", "0123456789ab", "7"], ["sft@v1", "ba9876543210", "8"]], stream=out)
    assert out.getvalue().splitlines() == [
        "artifact     base@v1",
        "fingerprint  0123456789ab",  # a word that is wider than the line stays whole
        "n            7",
        "",
        "artifact     sft@v1",
        "fingerprint  ba9876543210",
        "n            8",
    ]


def test_a_word_of_a_table_breaks_after_a_slash_where_nothing_else_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    out = io.StringIO()
    print_table(
        (Column("n"), Column("file", fold=True), Column("x")), [["1", "/usr/share/words/english", "y"]], stream=out
    )
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["n", "file", "x"],
        ["1", "/usr/share/words/", "y"],
        ["english"],
    ]


def test_wide_characters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    print_table((Column("word"), Column("n")), [["日本", "1"], ["ab", "2"]], stream=out)
    assert out.getvalue().splitlines() == ["word  n", "日本  1", "ab    2"]


def test_lines_break_between_words_and_go_on_indented() -> None:
    assert wrapped("note: one two three", 12, "  ") == ["note: one", "  two three"]
    assert wrapped("note: incomprehensible", 12, "  ") == ["note:", "  incomprehensible"]
    assert wrapped("as long as it is", None) == ["as long as it is"]
    assert wrapped("74.2\u00a0% [70.1,\u00a078.0]", 12) == ["74.2 %", "[70.1, 78.0]"]


def test_a_long_command_goes_on_as_a_shell_takes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    print_command("trueup run mine.yaml --set stages.dpo.train.beta=0.05")
    printed = capsys.readouterr().out
    assert printed == "  trueup run mine.yaml --set \\\n    stages.dpo.train.beta=0.05\n"
    words = ["trueup", "run", "mine.yaml", "--set", "stages.dpo.train.beta=0.05"]
    assert shlex.split(printed.replace("\\\n", "")) == words
