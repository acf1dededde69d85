"""What a response is worth to PPO: its score centred, scaled and clipped, less what its end or its length costs. Pure.

Reference: overlong penalty, Yu et al. 2025 (DAPO), arXiv:2503.14476, equation 13.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ppo.control import ScoreScale
from pipeline.ppo.episodes import Episode
from pipeline.ppo.settings import PPOSettings


def shaped_scores(
    episodes: Sequence[Episode], scale: ScoreScale, settings: PPOSettings, *, has_ends: bool
) -> list[float]:
    """Return the reward of each response, to be paid at its last token.

    Args:
        episodes: scored.
        scale: centre and deviation of scores so far.
        settings: which of them are used.
        has_ends: whether there are end tokens: without any no response is cut off.
    """
    s = settings
    shaped = []
    for episode in episodes:
        value = scale.apply(episode.score, scale=s.score_scaling == "running", clip=s.score_clip)
        if has_ends and not episode.ended:
            value -= s.missing_eos_penalty
        shaped.append(value - overlong_penalty(len(episode.response_ids), s.max_new_tokens, s.overlong_buffer))
    return shaped


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """Return what a response's length costs: 0 up to ``longest - buffer`` tokens, then along a line to 1."""
    return max(0, length - (longest - buffer)) / buffer if buffer else 0.0


def same_length_reward(metrics: dict[str, float], start_length: float) -> float:
    """Return the mean score that responses as long as at the start would have, by the rollout's own line over length.

    Args:
        metrics: of a rollout: `reward`, `length`, `score_std`, `length_std` and `length_corr`.
        start_length: mean tokens of a response of the first rollout.
    """
    slope = metrics["length_corr"] * metrics["score_std"] / metrics["length_std"] if metrics["length_std"] else 0.0
    return metrics["reward"] - slope * (metrics["length"] - start_length)
