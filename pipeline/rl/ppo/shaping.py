"""Reward shaping for PPO: centres, scales and clips scores, and subtracts penalties. Pure functions.

Reference: overlong penalty, Yu et al. 2025 (DAPO), arXiv:2503.14476, equation 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.rl.ppo.control import ScoreScale
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.rollout.episodes import Episode, padded


def shaped_scores(
    episodes: Sequence[Episode], scale: ScoreScale, settings: PPOSettings, *, has_ends: bool
) -> list[float]:
    """Return the reward of each response, all its tokens together.

    Args:
        episodes: scored episodes.
        scale: centre and deviation of the scores so far.
        settings: settings of the algorithm.
        has_ends: whether there are end tokens; without any, no response counts as truncated.
    """
    s = settings
    shaped = []
    for episode in episodes:
        value = scale.apply(episode.score, scale=s.score_scaling == "running", clip=s.score_clip)
        if has_ends and not episode.ended:
            value -= s.missing_eos_penalty
        shaped.append(value - overlong_penalty(len(episode.response_ids), s.max_new_tokens, s.overlong_buffer))
    return shaped


def earned_rewards(episodes: Sequence[Episode], scale: ScoreScale, settings: PPOSettings) -> Tensor:
    """Return the part of the reward that each token earned, in the units of `shaped_scores`, padded, (B, T).

    Clipping a score scales the parts of its tokens alike. Else the last token would pay for what the others earned.

    Args:
        episodes: scored episodes with `earned_T`.
        scale: centre and deviation of the scores so far.
        settings: settings of the algorithm.
    """
    is_scaled, clip = settings.score_scaling == "running", settings.score_clip
    kept_B = torch.tensor([scale.kept_share(episode.score, scale=is_scaled, clip=clip) for episode in episodes])
    earned_BT, _ = padded([episode.earned_T for episode in episodes])
    return kept_B[:, None] * earned_BT / (scale.deviation if is_scaled else 1.0)


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """Return the penalty on a response's length: 0 up to ``longest - buffer`` tokens, then rising linearly to 1."""
    return max(0, length - (longest - buffer)) / buffer if buffer else 0.0


def same_length_reward(metrics: dict[str, float], start_length: float) -> float:
    """Return the mean score adjusted to the starting length, by linear regression of score on length in the rollout.

    Args:
        metrics: metrics of a rollout: `reward`, `length`, `score_std`, `length_std` and `length_corr`.
        start_length: mean response length of the first rollout, in tokens.
    """
    slope = metrics["length_corr"] * metrics["score_std"] / metrics["length_std"] if metrics["length_std"] else 0.0
    return metrics["reward"] - slope * (metrics["length"] - start_length)
