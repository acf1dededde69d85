"""Computes the advantages and returns of every token from a rollout's scores.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.parallel.ranks import Ranks
from pipeline.rl.ppo.advantage import gae, kl_estimate, masked_moments, token_rewards, whiten
from pipeline.rl.ppo.control import ScoreScale
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.ppo.shaping import earned_rewards, shaped_scores
from pipeline.rl.rollout.episodes import Episode, padded


def estimate(
    episodes: Sequence[Episode],
    settings: PPOSettings,
    scale: ScoreScale,
    ranks: Ranks,
    *,
    price: float,
    has_ends: bool,
    is_first: bool,
) -> dict[str, float]:
    """Compute advantages and returns from scores, and write them into the episodes.

    Args:
        episodes: this rank's episodes, scored and measured.
        settings: settings of the algorithm.
        scale: centre and deviation of the scores; updated with these scores.
        ranks: all ranks of the run.
        price: β of the KL penalty in the reward; 0 leaves it out.
        has_ends: whether there are end tokens; without any, no response counts as truncated.
        is_first: whether the policy is still the reference, so that the centre can be measured.

    Returns:
        `return_mean`, `return_std`, `explained_variance`, `score_clipfrac` (fraction of clipped scores).
    """
    s, raw = settings, [episode.score for episode in episodes]
    if is_first and s.score_center == "reference":
        total, count = ranks.all_reduce_sum(sum(raw), float(len(raw)))
        scale.center = total / count
    scale.see(raw, ranks)
    shaped = shaped_scores(episodes, scale, s, has_ends=has_ends)
    old_BT, mask_BT = padded([episode.old_T for episode in episodes])
    values_BT, _ = padded([episode.values_T for episode in episodes])
    kl_BT = torch.zeros_like(old_BT)
    if price:
        kl_BT = kl_estimate(old_BT, padded([episode.reference_T for episode in episodes])[0], "k1")
    earned_BT = earned_rewards(episodes, scale, s) if s.token_rewards else torch.zeros_like(old_BT)
    at_last_B = torch.tensor(shaped) - earned_BT.sum(dim=1)
    rewards_BT = token_rewards(at_last_B, kl_BT, mask_BT, price) + earned_BT
    if s.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, ranks, shift_mean=False)
    after_B = torch.tensor([0.0 if episode.ended else episode.after for episode in episodes])
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=s.gamma, lam=s.lam, bootstrap_B=after_B)
    learnt_BT = mask_BT & learnt(episodes, s, has_ends=has_ends)[:, None]
    mean, variance, _ = masked_moments(returns_BT, learnt_BT, ranks)
    _, unexplained, _ = masked_moments(returns_BT - values_BT, learnt_BT, ranks)
    if s.whiten:
        advantages_BT = whiten(advantages_BT, learnt_BT, ranks)
    for row, episode in enumerate(episodes):
        length = len(episode.response_ids)
        episode.advantages_T, episode.returns_T = advantages_BT[row, :length], returns_BT[row, :length]
    cut = sum(scale.is_cut(score, scale=s.score_scaling == "running", clip=s.score_clip) for score in raw)
    clipped, count = ranks.all_reduce_sum(float(cut), float(len(raw)))
    return {
        "return_mean": mean,
        "return_std": variance**0.5,
        "explained_variance": 1 - unexplained / variance if variance > 1e-12 else 0.0,
        "score_clipfrac": clipped / count,
    }


def learnt(episodes: Sequence[Episode], settings: PPOSettings, *, has_ends: bool) -> Tensor:
    """Return which episodes enter the loss, (B,): with `truncation: mask` only those with an end token."""
    if settings.truncation != "mask" or not has_ends:
        return torch.ones(len(episodes), dtype=torch.bool)
    return torch.tensor([episode.ended for episode in episodes], dtype=torch.bool)
