"""How several rewards become one number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.rl.rewards import sources as sources_module
from pipeline.rl.rewards.sources import RewardSources, Sample, TokenScorer, combine


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", 6.0),
        ("mean", 2.0),
        ("min", 1.0),
        ("uwo", 2.0 - 2 / 3),  # mean 2, variance (1 + 0 + 1) / 3
    ],
)
def test_combinations_by_hand(how: str, expected: float) -> None:
    assert combine([1.0, 2.0, 3.0], how) == pytest.approx(expected)
    assert combine([], how) == 0.0


def test_a_reward_that_does_not_apply_is_left_out_of_every_combination() -> None:
    parts = {"a": [1.0, 4.0], "b": [math.nan, 1.0]}
    for how, expected in (("sum", [2.0, 11.0]), ("min", [2.0, 3.0])):
        sources = RewardSources(("a", "b"), (2.0, 3.0), (), how)
        assert sources.combined(parts) == expected


def test_what_tokens_earned_is_weighted_and_what_functions_give_is_in_the_whole_alone() -> None:
    class Shares(TokenScorer):
        def by_token(self, samples: Any) -> list[list[float]]:
            return [[0.5 * token for token in sample.response_ids] for sample in samples]

    samples = [Sample({}, (1,), (2, 4), "a"), Sample({}, (1,), (6,), "b")]
    implicit: Any = Shares(None, "rm")  # type: ignore[arg-type]
    sources = RewardSources(("rm", "f"), (2.0, 10.0), (implicit, lambda samples, offered: [1.0, math.nan]))
    assert sources.has_token_rewards
    assert sources.by_token(samples) == ([2 * 3.0 + 10.0, 2 * 3.0], [[2.0, 4.0], [6.0]])
    assert sources(samples) == sources.by_token(samples)[0]
    assert not RewardSources(("f",), (1.0,), (lambda samples, offered: [1.0, 1.0],)).has_token_rewards


def test_an_implicit_reward_without_a_finite_score_is_told_and_not_taken_for_one_that_does_not_apply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources_module, "token_scores", lambda model, answers: [[1.0, math.nan] for _ in answers])
    scorer: Any = TokenScorer(None, "taste")  # type: ignore[arg-type]
    sources = RewardSources(("rm",), (1.0,), (scorer,))
    for ask in (sources, sources.by_token):
        with pytest.raises(PipelineError, match="taste gives a score that is no finite number"):
            ask([Sample({}, (1,), (2, 4), "a")])
