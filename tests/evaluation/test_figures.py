"""Figures: what is drawn is what was measured."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from pipeline.evaluation.comparison import compare
from pipeline.evaluation.drawing import BASELINE, PALETTE, colours, style
from pipeline.evaluation.figures import draw
from pipeline.evaluation.report import Report


@pytest.fixture
def report(answers, prompts):
    return compare(answers, prompts, baseline="sft", seed=0)


def text_of(path):
    root = ElementTree.parse(path).getroot()
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_each_figure_says_its_values(report, tmp_path):
    assert [path.name for path in draw(report, tmp_path)] == ["win_rates.svg", "tasks.svg", "reward_gold.svg"]
    rates = text_of(tmp_path / "win_rates.svg")
    assert "dpo" in rates
    assert any(text.startswith("80.0 % [") for text in rates)
    assert "Win rate against sft, judged by the gold function" in rates
    assert "sft" not in rates  # the baseline has no win rate against itself
    tasks = text_of(tmp_path / "tasks.svg")
    assert {"sum", "fact", "dpo", "sft", "sft (greedy)", "below sft beyond noise"} <= set(tasks)
    both = text_of(tmp_path / "reward_gold.svg")
    assert {"dpo: gamed", "sft", "reward model", "gold", "gain over sft"} <= set(both)
    assert not any("greedy" in text for text in both)  # it has no KL


def test_only_what_was_measured_is_drawn(tmp_path):
    bare = Report(baseline="a", models={"a": {}, "b": {}})
    assert draw(bare, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_text_from_users_is_drawn_as_it_is(report, tmp_path):
    models = {"sft": report.models["sft"], "d$po_{1}$ <x>": report.models["dpo"]}
    draw(Report(baseline="sft", models=models), tmp_path)
    assert "d$po_{1}$ <x>" in text_of(tmp_path / "win_rates.svg")


def test_many_models_and_tasks(report, tmp_path):
    dpo = report.models["dpo"]
    tasks = {f"a rather long task {i}": dpo.tasks["sum"] for i in range(14)}
    models = {f"model {i}": dpo.model_copy(update={"tasks": tasks}) for i in range(9)}
    for path in draw(Report(baseline="model 0", models=models), tmp_path):
        width = float(ElementTree.parse(path).getroot().attrib["width"].removesuffix("pt"))
        assert width < 16 * 72


def test_colours():
    chosen = colours(["dpo", "sft", "ppo"], "sft")
    assert chosen == {"dpo": PALETTE[0], "sft": BASELINE, "ppo": PALETTE[1]}
    assert len(set(PALETTE)) == len(PALETTE)
    assert BASELINE not in PALETTE


def test_style_is_put_back():
    before = matplotlib.rcParams["font.size"]
    matplotlib.rcParams["font.size"] = 33
    try:
        with style():
            assert matplotlib.rcParams["font.size"] == 10
        assert matplotlib.rcParams["font.size"] == 33
    finally:
        matplotlib.rcParams["font.size"] = before
