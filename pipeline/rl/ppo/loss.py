"""PPO's losses, one value per token; the caller sums them and divides by the minibatch's tokens. Pure functions.

References: Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9; Ye et al. 2020, arXiv:1912.09729, equation 5
(dual clip); Engstrom et al. 2020, arXiv:2005.12729 (value clipping).

Shapes: N response tokens of a micro-batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.rl.ppo.advantage import kl_estimate

_LARGEST_LOG_RATIO = 20.0


class PolicyLoss(NamedTuple):
    """The clipped policy loss, the log-ratios, and which tokens were clipped; each of shape (N,)."""

    loss_N: Tensor
    log_ratio_N: Tensor
    clipped_N: Tensor


def policy_loss(
    logp_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_range: float,
    clip_high: float | None = None,
    dual_clip: float = 0.0,
    weights_N: Tensor | None = None,
) -> PolicyLoss:
    """Return −min(ρA, clip(ρ)A), bounded by −cA where A < 0 and ``dual_clip`` is c.

    Args:
        logp_N: log-probabilities under the policy being trained.
        old_N: log-probabilities under the policy that sampled.
        advantages_N: advantages A, whitened or not.
        clip_range: ε.
        clip_high: ε for ratios above 1 (DAPO's clip-higher); ``clip_range`` when omitted.
        dual_clip: c > 1 + ε; 0 disables the bound.
        weights_N: weight of each token (truncated importance sampling); 1 when omitted.
    """
    log_ratio_N = logp_N - old_N
    ratio_N = log_ratio_N.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    plain_N = -ratio_N * advantages_N
    high = clip_range if clip_high is None else clip_high
    clipped_N = -ratio_N.clamp(1 - clip_range, 1 + high) * advantages_N
    loss_N = torch.maximum(plain_N, clipped_N)
    if dual_clip:
        loss_N = torch.where(advantages_N < 0, torch.minimum(loss_N, -dual_clip * advantages_N), loss_N)
    if weights_N is not None:
        loss_N = weights_N * loss_N
    return PolicyLoss(loss_N, log_ratio_N.detach(), (clipped_N > plain_N).detach())


def kl_loss(logp_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return the divergence from the reference per token, with k3's value and the unbiased gradient of k2.

    Reference: Schulman 2020, "Approximating KL divergence"; k3 itself has a biased gradient.
    """
    k2_N = (logp_N - reference_N).square() / 2
    return kl_estimate(logp_N, reference_N, "k3").detach() + k2_N - k2_N.detach()


def importance_weights(trained_N: Tensor, sampled_N: Tensor, *, clip: float) -> Tensor:
    """Return min(π_trainer / π_sampler, clip) per token: corrects for an engine that samples from another distribution.

    Reference: truncated importance sampling, Ionides 2008; for rollout engines Yao et al. 2025.
    """
    return (trained_N - sampled_N).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp().clamp(max=clip)


class ValueLoss(NamedTuple):
    """Half the clipped squared error, and which tokens were clipped; each of shape (N,)."""

    loss_N: Tensor
    clipped_N: Tensor


def value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, *, clip: float) -> ValueLoss:
    """Return ½·max((V − R)², (V_clipped − R)²), where V_clipped stays within ``clip`` of the old value.

    Args:
        values_N: values V of the value function being trained.
        old_N: its values when the responses were sampled.
        returns_N: returns R, the targets.
        clip: largest change of a value that still gets a gradient; 0 does not clip.
    """
    plain_N = (values_N - returns_N).square()
    if not clip:
        return ValueLoss(plain_N / 2, torch.zeros_like(plain_N, dtype=torch.bool))
    change_N = values_N - old_N
    clipped_N = (old_N + change_N.clamp(-clip, clip) - returns_N).square()
    is_clipped_N = (clipped_N > plain_N) & (change_N.abs() > clip)  # within the clip the two differ by rounding only
    return ValueLoss(torch.maximum(plain_N, clipped_N) / 2, is_clipped_N.detach())
