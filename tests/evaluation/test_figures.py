"""Figures: what is drawn is what was measured."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from pipeline.evaluation.comparison import compare
from pipeline.evaluation.drawing import BASELINE, PALETTE, colours, style
from pipeline.evaluation.report.figures import draw
from pipeline.evaluation.report.record import Report
from pipeline.evaluation.stats.intervals import Bootstrap


@pytest.fixture
def report(answers, prompts):
    return compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")


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


LONG = "llama-3.1-8b-instruct-{}-beta-0.05-round-2-of-the-second-series"


def boxes(path):
    """Return the box of every upright text of a figure: DejaVu's letters are about 0.6 of their height wide."""
    for element in ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text"):
        style_of, move = element.attrib["style"], element.attrib.get("transform", "")
        if "-90" in move:
            continue
        size = float(re.search(r"([\d.]+)px", style_of)[1])
        place = re.search(r"translate\(([-\d.]+)[ ,]+([-\d.]+)\)", move)
        x, y = map(float, place.groups()) if place else (float(element.attrib["x"]), float(element.attrib["y"]))
        wide = 0.6 * size * len(element.text)
        left = x - {"middle": wide / 2, "end": wide}.get((re.search(r"anchor: (\w+)", style_of) or ["", ""])[1], 0)
        yield element.text, left, left + wide, y - 0.7 * size, y


def overlapping(path):
    """Return the pairs of texts that cover one another."""
    texts = list(boxes(path))
    return [
        (a[0], b[0])
        for place, a in enumerate(texts)
        for b in texts[place + 1 :]
        if min(a[2], b[2]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[3], b[3]) > 1
    ]


@pytest.mark.parametrize("name", ["model {}", LONG])
@pytest.mark.parametrize("task", ["{}", "a_rather_long_name_of_task_number_{}"])
def test_no_label_covers_another(report, tmp_path, name, task):
    # All have one KL and one gain, as models of one run nearly do.
    dpo = report.models["dpo"]
    tasks = {task.format(i): dpo.tasks["sum"] for i in range(14)}
    models = {name.format(i): dpo.model_copy(update={"tasks": tasks}) for i in range(9)}
    for path in draw(Report(baseline=name.format(0), models=models), tmp_path):
        assert overlapping(path) == []
        width = float(ElementTree.parse(path).getroot().attrib["width"].removesuffix("pt"))
        # Letters of 10 points are 7 pixels high and more on a telephone of 390.
        assert width < 10 / 7 * 390


def test_a_glyph_that_a_font_lacks_warns_nobody(report, tmp_path, recwarn):
    models = {"sft": report.models["sft"], "模型": report.models["dpo"]}
    draw(Report(baseline="sft", models=models), tmp_path)
    assert "模型" in text_of(tmp_path / "win_rates.svg")
    assert [str(each.message) for each in recwarn] == []


def test_more_models_than_colours_are_told_apart():
    # The palette has seven; those after them are darker, none has the colour of another.
    chosen = colours([str(i) for i in range(20)])
    assert len(set(chosen.values())) == 20
    assert chosen["7"] == "#003f62"  # 0.55 of #0072b2: 0, 62.7, 97.9


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
