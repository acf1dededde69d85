"""What a response is worth: by hand."""

from __future__ import annotations

import pytest

from pipeline.rl.ppo.control import ScoreScale
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.ppo.shaping import overlong_penalty, same_length_reward, shaped_scores
from pipeline.rl.rollout.episodes import Episode


def episode(length: int, score: float, *, ended: bool) -> Episode:
    return Episode(0, {}, (1,), (2,) * length, ended, "", score)


def test_a_score_is_centred_clipped_and_pays_for_no_end_and_for_length() -> None:
    settings = PPOSettings(max_new_tokens=10, overlong_buffer=4, missing_eos_penalty=1.5, score_clip=3.0)
    rows = [episode(6, 5.0, ended=True), episode(8, 2.0, ended=True), episode(10, 2.0, ended=False)]
    # Centred by 1: 4 is cut to 3; 1 less half of the ramp; 1 less 1.5 less the whole ramp.
    assert shaped_scores(rows, ScoreScale(center=1.0), settings, has_ends=True) == [3.0, 0.5, -1.5]
    # Without end tokens no response lacks one.
    assert shaped_scores(rows, ScoreScale(center=1.0), settings, has_ends=False) == [3.0, 0.5, 0.0]


@pytest.mark.parametrize(("length", "cost"), [(1, 0.0), (6, 0.0), (7, 0.25), (9, 0.75), (10, 1.0)])
def test_the_ramp_of_length(length: int, cost: float) -> None:
    assert overlong_penalty(length, 10, 4) == cost
    assert overlong_penalty(length, 10, 0) == 0.0


def test_the_reward_at_the_start_s_length_takes_the_price_of_length_out() -> None:
    # Scores 1, 2, 3 for lengths 10, 20, 30: a tenth a token, so at a length of 10 they are worth 1.
    deviation = (200 / 3) ** 0.5
    metrics = {"reward": 2.0, "length": 20.0, "score_std": deviation / 10, "length_std": deviation, "length_corr": 1.0}
    assert same_length_reward(metrics, 10.0) == pytest.approx(1.0)
    assert same_length_reward({**metrics, "length_corr": 0.0}, 10.0) == 2.0
    assert same_length_reward({**metrics, "length_std": 0.0}, 10.0) == 2.0
