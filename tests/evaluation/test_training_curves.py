"""The picture of a reinforcement learning run: every number that was logged is in it, and nothing else."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pipeline.evaluation.curves.training_curves import draw_training

ROWS = [
    {
        "step": step,
        "reward": 0.1 * step,
        "objective": 0.1 * step - 0.05,
        "kl": 0.2 * step,
        "kl_target": 6.0,
        "length": 20.0 + step,
        "eos_rate": 0.9,
        "entropy": 1.0 / step,
    }
    for step in range(1, 11)
] + [
    {"step": 5, "eval_reward": 0.4, "eval_watch": 2.0, "eval_watch_se": 0.1},
    {"step": 10, "eval_reward": 0.9, "eval_watch": 1.0, "eval_watch_se": 0.1},
]

PANELS = {
    "Reward": ("reward", "objective", "eval_reward"),
    "What is watched, not trained on": ("eval_watch",),
    "KL to the reference": ("kl",),
    "Response length": ("length", "eos_rate"),
    "Entropy of the policy": ("entropy",),
}


def drawn(rows, tmp_path, name="training"):
    path = draw_training(rows, tmp_path / f"{name}.svg", title="ppo <1> $x$")
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    return text


def only(*keys):
    return [{key: row[key] for key in ("step", *keys) if key in row} for row in ROWS]


def test_all_panels_and_all_lines(tmp_path):
    text = drawn(ROWS, tmp_path)
    for words in (
        *PANELS,
        "mean score",
        "score - β KL",
        "held out",
        "target 6",
        "tokens",
        "ended",
        "ppo &lt;1&gt; $x$",
    ):
        assert words in text, words
    assert "<dc:date>" not in text


@pytest.mark.parametrize(("title", "key"), [(title, key) for title, keys in PANELS.items() for key in keys])
def test_one_number_gives_one_panel(title, key, tmp_path):
    text = drawn(only(key), tmp_path)
    assert [each for each in PANELS if each in text] == [title]
    # Its line is there: 10 points (2 of what is held out) that no other panel could have drawn.
    points = 2 if key.startswith("eval_") else 10
    lines = re.findall(r'<path d="([^"]*)" clip-path', text)
    assert any(line.count("L ") == points - 1 for line in lines)


def test_a_target_alone_is_no_panel(tmp_path):
    assert not any(title in drawn(only("kl_target"), tmp_path) for title in PANELS)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "reward": float("nan")}], [{"kl": 1.0}]])
def test_nothing_logged_says_so(rows, tmp_path):
    assert "nothing was logged" in drawn(rows, tmp_path)


def test_scale_of_the_panels(tmp_path):
    # The KL axis reaches the target, which no KL came near; 11 to 20 tokens are not drawn from zero.
    labels = re.findall(r">(\d+)</text>", drawn(only("kl", "kl_target"), tmp_path))
    assert {"0", "6"} <= set(labels)
    assert ">100 %<" in drawn(only("eos_rate"), tmp_path)


def test_a_long_run_is_smoothed(tmp_path):
    rows = [{"step": step, "reward": float(step % 7), "kl": 0.01 * step} for step in range(200)]
    assert "mean score (smoothed)" in drawn(rows, tmp_path)
    assert "(smoothed)" not in drawn(ROWS, tmp_path)


def test_same_numbers_same_bytes(tmp_path):
    slower = [
        {key: np.float64(value) if key != "step" else value for key, value in reversed(row.items())}
        | {"seconds_rollout": place}
        for place, row in enumerate(ROWS)
    ]
    assert drawn(ROWS, tmp_path, "a") == drawn(slower, tmp_path, "b")
    moved = [row | ({"reward": 0.5} if "reward" in row else {}) for row in ROWS]
    assert drawn(ROWS, tmp_path, "a") != drawn(moved, tmp_path, "c")


@pytest.mark.parametrize(
    "row",
    [
        {"reward": 0.0, "objective": -3.0, "kl": 0.0, "length": 1, "eos_rate": 0.0, "entropy": 0.0},
        {"reward": 1e9, "objective": -1e9, "kl": -0.1, "length": 1e5, "eos_rate": 1.0, "entropy": 1e-9},
    ],
)
def test_odd_numbers_are_drawn(row, tmp_path):
    for count in (1, 60):
        picture = drawn([{"step": step, **row} for step in range(count)], tmp_path)
        assert "<path" in picture and "nan" not in picture
