"""Loss curves: what is kept of a trainer's log, and what is drawn."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pipeline.evaluation.curves.loss_curve import draw_curve, metric_rows, read_rows, write_curve
from pipeline.evaluation.curves.series import limits, smoothed

# As transformers logs: training rows, evaluation rows, and a summary of the run.
HISTORY = [
    {"loss": 2.5, "grad_norm": np.float32(1.5), "learning_rate": 1e-3, "epoch": 0.5, "step": 10},
    {"eval_loss": 2.25, "eval_runtime": 1.2, "eval_samples_per_second": 80.1, "epoch": 0.5, "step": 10},
    {"loss": float("nan"), "learning_rate": 5e-4, "epoch": 1.0, "step": 20},
    {"loss": 1.5, "learning_rate": 0.0, "epoch": 1.5, "step": 30},
    {"epoch": 1.5, "step": 30, "memory/allocated": 3.3, "train_runtime": 9.0},
    {"train_runtime": 9.1, "train_steps_per_second": 3.3, "train_loss": 2.0, "epoch": 1.5, "step": 30},
]


def test_rows_hold_nothing_a_clock_gave():
    assert metric_rows(HISTORY) == [
        {"step": 10, "epoch": 0.5, "grad_norm": 1.5, "learning_rate": 1e-3, "loss": 2.5},
        {"step": 10, "epoch": 0.5, "eval_loss": 2.25},
        {"step": 20, "epoch": 1.0, "learning_rate": 5e-4, "loss": None},
        {"step": 30, "epoch": 1.5, "learning_rate": 0.0, "loss": 1.5},
        {"step": 30, "epoch": 1.5, "train_loss": 2.0},
    ]


def test_two_runs_that_differ_in_speed_write_the_same_bytes(tmp_path):
    slower = [
        {key: 9 * value if "runtime" in key or "second" in key else value for key, value in row.items()}
        for row in HISTORY
    ]
    for name, history in (("fast", HISTORY), ("slow", slower)):
        assert [path.name for path in write_curve(history, tmp_path / name, title="sft")] == [
            "metrics.jsonl",
            "loss.svg",
        ]
    for file in ("metrics.jsonl", "loss.svg"):
        assert (tmp_path / "fast" / file).read_bytes() == (tmp_path / "slow" / file).read_bytes()


def test_file_is_one_json_object_a_line(tmp_path):
    write_curve(HISTORY, tmp_path, title="sft")
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == metric_rows(HISTORY)
    assert read_rows(tmp_path / "metrics.jsonl") == metric_rows(HISTORY)
    assert "NaN" not in text


def test_order_of_keys_in_the_log_does_not_matter(tmp_path):
    turned = [dict(reversed(row.items())) for row in HISTORY]
    write_curve(HISTORY, tmp_path / "a", title="sft")
    write_curve(turned, tmp_path / "b", title="sft")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_picture_shows_both_losses_and_the_rate(tmp_path):
    write_curve(HISTORY, tmp_path, title="sft <1>")
    text = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    for words in ("training", "held out", "learning rate", "sft &lt;1&gt;", "2.250"):
        assert words in text
    assert "<dc:date>" not in text


def test_no_loss_no_picture(tmp_path):
    assert [path.name for path in write_curve([{"step": 1, "reward": 0.5}], tmp_path, title="x")] == ["metrics.jsonl"]
    assert write_curve([], tmp_path / "empty", title="x")[0].read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "eval_loss": 0.0}],
        [{"step": 1, "loss": 2.0, "learning_rate": 0.0}, {"step": 2, "loss": 2.0, "learning_rate": 0.0}],
        [{"step": i, "loss": -float(i)} for i in range(60)],
        [{"step": i, "loss": 1e9 if i == 0 else 1.0} for i in range(5_000)],
    ],
)
def test_odd_histories_are_drawn(history, tmp_path):
    picture = ElementTree.fromstring(write_curve(history, tmp_path, title="odd")[1].read_text(encoding="utf-8"))
    assert picture.tag.endswith("svg") and "nan" not in ElementTree.tostring(picture, encoding="unicode")


def test_trend_by_hand():
    # Reach 2: ends shrink symmetrically: 0; (0+3+6)/3; (0+3+6+9+12)/5; then mirrored.
    points = [(i, 3.0 * i) for i in range(5)]
    assert smoothed(points) == points
    assert [value for _, value in smoothed([(i, v) for i, v in enumerate([0, 0, 5, 0, 0])])] == [
        0, pytest.approx(5 / 3), 1, pytest.approx(5 / 3), 0,
    ]  # fmt: skip


def test_limits():
    # 1 to 2: from 0.88 (12 % below) to 2.12, since zero is far; 0.1 to 2: from zero.
    assert limits([1.2, 2.0]) == pytest.approx((1.2 - 0.12 * 0.8, 2 + 0.12 * 0.8))
    assert limits([0.1, 2.0])[0] == 0
    # One huge value among a hundred does not set the scale; a steep start does.
    assert limits([500.0] + [1.0] * 99)[1] < 2
    assert limits([10.0, 8.0, 6.0] + [5.5] * 97)[1] > 10


def test_the_lowest_held_out_loss_is_named_in_the_legend_where_no_curve_covers_it(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.9}]
    held_out = [{"step": 1, "eval_loss": 1.8}, {"step": 2, "eval_loss": 1.75}]
    drawn = draw_curve([*rows, *held_out], tmp_path / "loss.svg", title="sft").read_text(encoding="utf-8")
    assert ">held out, lowest 1.750 at step 2</text>" in drawn


def test_steps_are_whole_numbers(tmp_path):
    drawn = draw_curve([{"step": 1, "loss": 0.69}], tmp_path / "loss.svg", title="sft").read_text(encoding="utf-8")
    assert re.findall(r"text-anchor: middle[^>]*>([\d.]+)</text>", drawn) == ["1"]
