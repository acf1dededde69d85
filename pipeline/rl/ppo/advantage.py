"""Token rewards with a KL penalty, generalised advantage estimation, whitening. Pure tensor functions.

Everything is padded on the right and masked. Masked-out values never enter a sum (`where`, not a product), so they may
be anything, including NaN.

References: Schulman et al. 2016, arXiv:1506.02438 (GAE); Schulman 2020, "Approximating KL divergence" (k1, k2, k3).

Shapes: B responses, T response tokens, N response tokens of all rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.parallel.ranks import Ranks

_FLOOR = 1e-8


def kl_estimate(logp: Tensor, reference: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Return an estimate of the KL divergence of the policy from the reference per token, in nats.

    Args:
        logp: log-probabilities under the policy that sampled the tokens.
        reference: log-probabilities under the reference, same shape.
        kind: `k1` is unbiased and may be negative; `k2` is half its square; `k3` is unbiased and never negative.
    """
    ratio = (reference - logp).clamp(-20, 20)  # log of reference over policy
    if kind == "k1":
        return -ratio
    if kind == "k2":
        return ratio.square() / 2
    return ratio.expm1() - ratio


def old_new_divergence(log_ratio_N: Tensor) -> Tensor:
    """Return k3 of the old policy from the new, per token sampled by the old: ρ − 1 − log ρ, where ρ = new / old."""
    return kl_estimate(torch.zeros_like(log_ratio_N), log_ratio_N, "k3")


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Return r_t = −β·kl_t, with the score added at the last unmasked token of each response, shape (B, T).

    Raises:
        ValueError: a response has no token to add its score to.
    """
    lengths_B = mask_BT.long().cumsum(dim=1).argmax(dim=1)  # index of the last real token
    if not bool(mask_BT.any(dim=1).all()):
        raise ValueError("a response without tokens has no place for its score")
    rewards_BT = torch.where(mask_BT, -kl_coef * kl_BT, 0.0)
    at_last_BT = torch.zeros_like(rewards_BT).scatter(1, lengths_B[:, None], scores_B[:, None].to(rewards_BT.dtype))
    return rewards_BT + at_last_BT


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and returns (advantage plus value), both (B, T), and 0 where masked out.

    Masked-out tokens are skipped as if they did not exist: they add neither a delta nor a decay. So tokens that were
    not sampled (a tool result) may occur in the middle.

    Args:
        rewards_BT: reward of each token.
        values_BT: V(s_t), estimated before token t.
        mask_BT: true for sampled tokens.
        gamma: discount.
        lam: λ; 1 gives Monte-Carlo returns minus values, 0 the temporal-difference error.
        bootstrap_B: value after the last token, for truncated responses; 0 when omitted.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0]) if bootstrap_B is None else bootstrap_B.to(rewards_BT.dtype)
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(rewards_BT.shape[1])):
        on_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        next_advantage_B = torch.where(on_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(on_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(on_B, advantage_B, 0.0)
    returns_BT = torch.where(mask_BT, advantages_BT + values_BT, 0.0)
    return advantages_BT, returns_BT


def masked_moments(x_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> tuple[float, float, int]:
    """Return mean, population variance and count of the unmasked values over all ranks; sums are in float64."""
    unmasked = torch.where(mask_BT, x_BT, 0.0).double()
    total, count = ranks.all_reduce_sum(float(unmasked.sum()), float(mask_BT.sum()))
    if not count:
        return 0.0, 0.0, 0
    mean = total / count
    (squares,) = ranks.all_reduce_sum(float(torch.where(mask_BT, x_BT.double() - mean, 0.0).square().sum()))
    return mean, squares / count, int(count)


def whiten(x_BT: Tensor, mask_BT: Tensor, ranks: Ranks, *, shift_mean: bool = True) -> Tensor:
    """Scale unmasked values to variance 1, and to mean 0 unless ``shift_mean`` is false; 0 where masked out.

    Mean and variance are those of the full rollout over all ranks, so the result does not depend on their number.
    Values without variance become zeros (or their mean).
    """
    mean, variance, _ = masked_moments(x_BT, mask_BT, ranks)
    scaled = (x_BT.double() - mean) / (variance + _FLOOR) ** 0.5
    if not shift_mean:
        scaled = scaled + mean
    return torch.where(mask_BT, scaled, 0.0).to(x_BT.dtype)
