"""A report on a sweep: figures over seeds by hand, and a figure of the score over KL; without one nothing changes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.answers import Answers, Prompt, samples
from pipeline.evaluation.best_of_n.baseline import best_of_baseline
from pipeline.evaluation.comparison import compare, recomputed
from pipeline.evaluation.drawing import style
from pipeline.evaluation.report import frontier
from pipeline.evaluation.report.frontier import has_frontier
from pipeline.evaluation.report.record import Report, read, to_json
from pipeline.evaluation.report.sweep_section import best_of_n_table, sweep_sentence, sweep_table
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.stats.intervals import Bootstrap
from pipeline.evaluation.sweep import with_sweep
from pipeline.stages.evaluate.config import Variant

PROMPTS = [Prompt(f"question {i}", "", i) for i in range(8)]
GIVEN = {  # gold of every answer, and its KL in nats
    "sft": (1.0, None),
    "dpo-beta-0.5-seed-1": (2.0, 1.0),
    "dpo-beta-0.5-seed-2": (3.0, 2.0),
    "dpo-beta-0.1-seed-1": (4.0, 9.0),
    "dpo-beta-0.1-seed-2": (4.0, 7.0),
    "kto": (2.5, 4.0),
}
VARIANTS = {
    name: Variant(stage="dpo", settings={"beta": float(name.split("-")[2]), "seed": int(name[-1])})
    for name in GIVEN
    if name.startswith("dpo")
}


def _answers(name: str, gold: float, kl: float | None, **scores: Any) -> Answers:
    moved = {"kl": [kl] * 8, "kl_k3": [kl] * 8} if kl is not None else {}
    return Answers(name, ["x"] * 8, [3] * 8, [True] * 8, gold=[gold] * 8, **moved, **scores)


ANSWERS = [_answers(name, gold, kl) for name, (gold, kl) in GIVEN.items()]


def _report(*, variants: dict[str, Variant] = VARIANTS, answers: list[Answers] = ANSWERS) -> Report:
    return with_sweep(compare(answers, PROMPTS, baseline="sft", bootstrap=Bootstrap(seed=0, resamples=100)), variants)


def _texts(file: Path) -> list[str]:
    return re.findall(r">([^<>]+)</text>", file.read_text(encoding="utf-8"))


def test_models_that_differ_in_their_seed_only_are_one_row() -> None:
    high, low = _report().sweep or []
    assert (high.stage, high.settings, high.models) == (
        "dpo",
        {"beta": 0.5},
        ["dpo-beta-0.5-seed-1", "dpo-beta-0.5-seed-2"],
    )
    # Gold 2 and 3: mean 2.5, deviation with n - 1 is |2 - 3| / sqrt(2). KL 1 and 2, and 9 and 7 in the other row.
    assert high.figures["gold"].mean == 2.5 and high.figures["gold"].n == 2
    assert high.figures["gold"].sd == pytest.approx(1 / math.sqrt(2))
    assert low.figures["kl"].mean == pytest.approx(8.0)
    assert low.figures["kl"].sd == pytest.approx(2 / math.sqrt(2))
    assert low.figures["gold"].sd == 0 and "reward" not in low.figures
    assert sweep_table(_report()) == [
        ["setting", "models", "win rate vs sft", "gold", "KL", "tokens"],
        ["dpo, beta 0.5", "2", "100.0 ± 0.0 %", "2.50 ± 0.71", "1.50 ± 0.71", "3.0 ± 0.0"],
        ["dpo, beta 0.1", "2", "100.0 ± 0.0 %", "4.00 ± 0.00", "8.00 ± 1.41", "3.0 ± 0.0"],
    ]
    assert sweep_sentence(_report()) == "Means over 2 models that differ in the seed only, ± their standard deviation."


def test_a_seed_of_another_stage_is_a_seed_and_seeds_alone_are_one_setting() -> None:
    variants = {
        "dpo-beta-0.5-seed-1": Variant(stage="dpo", settings={"sft.seed": 1}),
        "dpo-beta-0.5-seed-2": Variant(stage="dpo", settings={"sft.seed": 2}),
        "kto": Variant(stage="kto", settings={"beta": True}),
    }
    dpo, kto = _report(variants=variants).sweep or []
    assert dpo.settings == {} and len(dpo.models) == 2
    assert kto.figures["gold"].sd is None
    assert [row[:2] for row in sweep_table(_report(variants=variants))[1:]] == [["dpo", "2"], ["kto, beta true", "1"]]
    alone = _report(variants={"kto": variants["kto"]})
    assert sweep_sentence(alone) == "One model of each setting, so nothing says how much another seed would change."
    assert sweep_table(alone)[1][3] == "2.50"


def test_the_figure_has_a_line_for_each_stage_and_points_for_the_others(tmp_path: Path) -> None:
    report = _report()
    written = {file.name for file in write(report, tmp_path)}
    assert "frontier.svg" in written
    texts = _texts(tmp_path / "frontier.svg")
    assert {"0.5", "0.1", "dpo, labelled by beta", "kto", "sft (baseline)", "mean gold score"} <= set(texts)
    assert "KL to sft (nats per answer, square-root axis)" in texts
    assert "one seed; bars are ± 1 standard deviation over seeds" in texts
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Settings" in page and "](frontier.svg)" in page and "| dpo, beta 0.1 | 2 |" in page
    assert to_json(read(tmp_path / "report.json")) == to_json(report)
    assert recomputed(report, samples(ANSWERS, PROMPTS, baseline="sft")) == report


def test_seeds_alone_are_one_point_and_the_baseline_may_be_one_of_them(tmp_path: Path) -> None:
    names = ["sft", "dpo-beta-0.5-seed-1", "dpo-beta-0.5-seed-2"]
    seeds = {name: Variant(stage="made", settings={"seed": number}) for number, name in enumerate(names)}
    report = _report(variants=seeds)
    write(report, tmp_path)
    assert (report.sweep or [])[0].figures["kl"].mean == pytest.approx(1.0)  # of 0, 1 and 2
    texts = _texts(tmp_path / "frontier.svg")
    assert "made" in texts and "sft (baseline)" not in texts


def test_labels_stand_on_no_line_and_on_the_outer_side_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages close to each other, the higher one named last: its values stand above its line."""
    given = {"low": {0.02: (2.0, 7.0), 0.05: (1.8, 6.8), 0.2: (0.6, 5.5)}, "high": {0.1: (2.2, 7.8), 1.0: (0.9, 7.2)}}
    answers, variants = [_answers("sft", 4.0, None)], {}
    for stage, settings in given.items():
        for value, (kl, gold) in settings.items():
            answers.append(_answers(f"{stage}-{value}", gold, kl))
            variants[f"{stage}-{value}"] = Variant(stage=stage, settings={"beta": value})
    answers.append(_answers("plain", 5.0, 0.5))
    variants["plain"] = Variant(stage="plain", settings={"seed": 1})
    drawn: list[Any] = []
    monkeypatch.setattr(frontier, "save", lambda figure, path, title: drawn.append(figure) or path)
    with style():
        frontier.draw_frontier(_report(variants=variants, answers=answers), Path("frontier.svg"))
        axes = drawn[0].axes[0]
        drawn[0].draw_without_rendering()
    labels = {text.get_text(): text for text in axes.texts}
    assert set(labels) == {"0.02", "0.05", "0.2", "0.1", "1"}  # none of a stage without a setting
    for text, label in labels.items():
        box = label.get_window_extent()
        for line in axes.lines:
            places = axes.transData.transform(line.get_xydata()) if len(line.get_xydata()) else []
            for (x, y), (to_x, to_y) in pairwise(places):
                pieces = [(x + (to_x - x) * i / 99, y + (to_y - y) * i / 99) for i in range(100)]
                assert not any(box.contains(*piece) for piece in pieces), text
        is_above = box.y0 > axes.transData.transform(label.xy)[1]
        assert is_above == (text in ("0.1", "1")), text


def test_the_line_goes_from_value_to_value(tmp_path: Path) -> None:
    """In the file's units x is the root of the KL and y the gold: β 0.1 comes first, at KL 8, then 0.5 at 1.5."""
    write(_report(), tmp_path)
    text = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    line = next(m for m in re.findall(r'<path d="([^"]+)"[^>]*stroke: #0072b2; stroke-width: 1.4', text))
    (x_low, y_low), (x_high, y_high) = [
        tuple(map(float, one.split())) for one in re.findall(r"[ML] ([\d.]+ [\d.]+)", line)
    ]
    assert x_low > x_high and y_low < y_high  # y of a file points down: gold 4 is above gold 2.5


def test_without_a_sweep_or_with_few_models_there_is_no_figure(tmp_path: Path) -> None:
    plain = _report(variants={})
    assert plain.sweep is None and not has_frontier(plain)
    assert "frontier.svg" not in {file.name for file in write(plain, tmp_path)}
    assert not {"sweep", "best_of_n"} & set(json.loads(to_json(plain)))
    assert "## Settings" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not has_frontier(_report(answers=ANSWERS[:2]))  # the baseline and one more
    assert has_frontier(_report(answers=ANSWERS[:3]))


def test_the_score_is_gold_only_where_all_have_it(tmp_path: Path) -> None:
    rewarded = [
        Answers(one.name, one.responses, one.lengths, one.ended, reward=[2.0] * 8, kl=one.kl, kl_k3=one.kl_k3)
        for one in ANSWERS
    ]
    write(_report(answers=rewarded), tmp_path)
    assert "mean score by the reward model" in _texts(tmp_path / "frontier.svg")


def test_gold_and_reward_have_a_panel_each_where_all_models_have_both(tmp_path: Path) -> None:
    """Kto's reward is the highest and its gold the lowest: the figure has both, over the same KL."""
    both = [
        Answers(one.name, one.responses, one.lengths, one.ended, [reward] * 8, one.gold, kl=one.kl, kl_k3=one.kl_k3)
        for one, reward in zip(ANSWERS, range(len(ANSWERS)), strict=True)
    ]
    write(_report(answers=both), tmp_path)
    texts = _texts(tmp_path / "frontier.svg")
    assert {"Gold and reward over KL", "mean gold score", "mean score by the reward model"} <= set(texts)
    assert texts.count("kto") == 1 and texts.count("0.5") == 2  # one legend; each panel labels its points
    write(_report(answers=[replace(both[0], reward=None), *both[1:]]), tmp_path)
    assert "mean score by the reward model" not in _texts(tmp_path / "frontier.svg")


def test_the_best_of_n_is_chosen_by_the_reward_and_measured_by_gold() -> None:
    # The second draw always has the higher reward and the lower gold; of two, the best is always the second.
    draws = [_answers("a", 1.0, None, reward=[0.0] * 8), _answers("b", 0.0, None, reward=[5.0] * 8)]
    best = best_of_baseline(draws, Bootstrap(seed=0, resamples=100))
    one, two = best.points
    assert best.chosen_by == "reward" and (one.n, two.n) == (1, 2)
    assert one.gold and two.gold and one.reward and two.reward
    assert (one.gold.value, one.reward.value, one.kl) == (0.5, 2.5, 0.0)
    assert (two.gold.value, two.reward.value) == (0.0, 5.0)
    assert two.kl == pytest.approx(math.log(2) - 0.5)
    alone = best_of_baseline([_answers("a", 1.0, None), _answers("b", 3.0, None)], Bootstrap(seed=0, resamples=100))
    assert alone.chosen_by == "gold" and alone.points[1].reward is None
    assert [point.gold.value for point in alone.points if point.gold] == [2.0, 3.0]


def test_the_best_of_n_stands_in_table_and_figure(tmp_path: Path) -> None:
    draws = [_answers(f"{i}", float(i), None) for i in range(5)]
    best = best_of_baseline(draws, Bootstrap(seed=0, resamples=100))
    report = _report().model_copy(update={"best_of_n": best})
    # Of 0, 1, 2, 3, 4 the best of 2 is i in i of the 10 pairs: 0 + 1 + 4 + 9 + 16 = 30 / 10; of 4: (3 + 4 x 4) / 5.
    assert [row[0] for row in best_of_n_table(report)] == ["n", "1", "2", "4", "5"]
    assert [row[1].split(" ")[0] for row in best_of_n_table(report)[1:]] == ["2.00", "3.00", "3.80", "4.00"]
    assert [row[2] for row in best_of_n_table(report)] == ["KL, at most", "0.00", "0.19", "0.64", "0.81"]
    write(report, tmp_path)
    texts = _texts(tmp_path / "frontier.svg")
    assert "best of n of sft, n up to 5; KL at most log n - (n - 1) / n" in texts and {"2", "4"} <= set(texts)
    assert "## Best of n" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert recomputed(report, samples(ANSWERS, PROMPTS, baseline="sft")) == report
    assert has_frontier(report.model_copy(update={"sweep": None}))


def test_labels_of_settings_that_are_close_stay_apart(tmp_path: Path) -> None:
    """Seven settings at nearly one place: no two labels overlap."""
    names = [f"dpo-beta-{number}-seed-1" for number in range(7)]
    answers = [ANSWERS[0], *(_answers(name, 2 + 0.01 * i, 9 + 0.2 * i) for i, name in enumerate(names))]
    variants = {name: Variant(stage="dpo", settings={"beta": 0.01 + i}) for i, name in enumerate(names)}
    write(_report(answers=answers, variants=variants), tmp_path)
    text = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    label = r'text-anchor: (start|end); [^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>\d\.01</text>'
    ends = [(anchor, float(x), float(y)) for anchor, x, y in re.findall(label, text)]
    assert len(ends) == 7
    lefts = [(x if anchor == "start" else x - 24, y) for anchor, x, y in ends]  # a label is about 24 by 9 points
    close = [(one, other) for one, other in combinations(lefts, 2) if abs(one[0] - other[0]) < 22]
    assert all(abs(one[1] - other[1]) > 7 for one, other in close)
