"""Rounds: each model beside the one before, as figures, a table, a sentence and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.answers import Answers, Prompt, samples
from pipeline.evaluation.comparison import compare, recomputed
from pipeline.evaluation.report.page import render
from pipeline.evaluation.report.record import Report, read, to_json
from pipeline.evaluation.report.rounds_section import rounds_sentence, rounds_table
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.stats.intervals import Bootstrap

GOLD = {"sft": [1] * 20, "dpo-1": [2] * 15 + [1] * 2 + [0] * 3, "dpo-2": [2] * 20, "dpo-3": [2] * 12 + [0] * 8}
PROMPTS = [Prompt(f"question {i}", "", i) for i in range(20)]
ANSWERS = [Answers(name, ["x"] * 20, [3] * 20, [True] * 20, gold=gold) for name, gold in GOLD.items()]


def _report(*rounds: str) -> Report:
    return compare(ANSWERS, PROMPTS, baseline="sft", bootstrap=Bootstrap(seed=0), rounds=rounds)


def test_each_round_is_compared_with_the_one_before() -> None:
    report = _report("sft", "dpo-1", "dpo-2", "dpo-3")
    first, second, third = report.rounds or []
    # dpo-1 against sft: 15 won, 2 tied, 3 lost: 16 of 20. Means 32 / 20 = 1.6 and 1.
    assert (first.before, first.model, first.win_rate.value) == ("sft", "dpo-1", 0.8)
    assert first.delta.value == pytest.approx(0.6, abs=1e-9)
    # dpo-2 against dpo-1: 5 won, 15 tied: 12.5 of 20. Means 2 and 1.6; the change is 1 twice and 2 three times.
    assert (second.before, second.win_rate.value) == ("dpo-1", 0.625)
    assert second.delta.value == pytest.approx(0.4, abs=1e-9)
    # dpo-3 against dpo-2: 12 tied, 8 lost: 6 of 20. Means 24 / 20 = 1.2 and 2.
    assert (third.before, third.win_rate.value) == ("dpo-2", 0.3)
    assert third.delta.value == pytest.approx(-0.8, abs=1e-9)
    assert third.delta.is_below() and not third.delta.is_above()
    table = rounds_table(report)
    assert table[0] == ["round", "model", "mean gold score", "change", "win rate vs the round before"]
    assert [row[:2] for row in table[1:]] == [["start", "sft"], ["1", "dpo-1"], ["2", "dpo-2"], ["3", "dpo-3"]]
    assert table[1][3:] == ["–", "–"] and table[2][4].startswith("80.0 % [")
    assert table[4][3].startswith("-0.80 [") and table[4][3].endswith("▼")


def test_the_sentence_says_which_rounds_rise() -> None:
    # The sign-flip test of dpo-2 has 5 changes that all rise: p = 2 / 2^5 = 0.0625, within noise.
    assert rounds_sentence(_report("sft", "dpo-1", "dpo-2", "dpo-3")) == (
        "Against the round before, by gold: rises: dpo-1; falls: dpo-3; cannot be told from it: dpo-2."
    )
    assert rounds_sentence(_report("sft", "dpo-2")) == "Every round rises over the one before, beyond noise (gold)."


def test_page_picture_and_file_show_the_rounds(tmp_path: Path) -> None:
    report = _report("sft", "dpo-1", "dpo-2")
    files = write(report, tmp_path)
    assert tmp_path / "rounds.svg" in files
    drawn = (tmp_path / "rounds.svg").read_text(encoding="utf-8")
    assert all(text in drawn for text in ("dpo-1", "dpo-2", "1.60", "2.00", "judged by the gold function"))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Rounds" in page and "](rounds.svg)" in page and "| 2 | dpo-2 | 2.00 [2.00, 2.00] |" in page
    assert to_json(read(tmp_path / "report.json")) == to_json(report)
    shown = samples(ANSWERS, PROMPTS, baseline="sft")
    assert recomputed(report, shown).rounds == report.rounds


def test_a_report_on_no_rounds_says_nothing_of_them(tmp_path: Path) -> None:
    report = _report()
    files = write(report, tmp_path)
    assert "rounds.svg" not in {file.name for file in files}
    assert "rounds" not in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "## Rounds" not in render(report, (), ())


def test_many_rounds_keep_their_names_apart(tmp_path: Path) -> None:
    names = [f"dpo-{number}" for number in range(12)]
    many = [Answers(name, ["x"] * 20, [3] * 20, [True] * 20, gold=GOLD["sft"]) for name in names]
    report = compare(many, PROMPTS, baseline="dpo-0", bootstrap=Bootstrap(seed=0), rounds=names)
    write(report, tmp_path)
    assert "rotate(-90)" in (tmp_path / "rounds.svg").read_text(encoding="utf-8")


def test_a_round_without_scores_is_refused() -> None:
    some = [*ANSWERS[:2], Answers("dpo-2", ["x"] * 20, [3] * 20, [True] * 20, reward=[1] * 20)]
    with pytest.raises(PipelineError, match="has no gold scores"):
        compare(some, PROMPTS, baseline="sft", bootstrap=Bootstrap(seed=0), judge="gold", rounds=["sft", "dpo-2"])


def test_the_stage_wants_rounds_among_its_models() -> None:
    from pipeline.stages.evaluate.config import Config

    given = {"data": "asks", "models": ["sft", "dpo-1"], "baseline": "sft", "gold": "g.py:gold"}
    assert Config(**given, rounds=["sft", "dpo-1"]).check() == []  # type: ignore[arg-type]
    (problem,) = Config(**given, rounds=["sft", "dpo-2"]).check()  # type: ignore[arg-type]
    assert "rounds `dpo-2`; expected one of models: sft, dpo-1" in str(problem)
    (problem,) = Config(**given, rounds=["sft", "sft"]).check()  # type: ignore[arg-type]
    assert str(problem) == "rounds names a model twice; expected each once"
