"""Metrics of a rollout and of an update, reduced over all ranks.

Reference: the metrics that tell a healthy run from a failing one, Huang et al. 2024, arXiv:2403.17031, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from pipeline.parallel.ranks import Ranks
from pipeline.rl.ppo.advantage import kl_estimate, old_new_divergence
from pipeline.rl.ppo.loss import PolicyLoss, ValueLoss
from pipeline.rl.rollout.episodes import Episode


def of_rollout(episodes: Sequence[Episode], ranks: Ranks, *, with_reference: bool = True) -> dict[str, float]:
    """Return metrics of measured episodes.

    Args:
        episodes: this rank's episodes.
        ranks: all ranks of the run.
        with_reference: whether the reference was measured; otherwise `kl` and `kl_k3` are left out.

    Returns:
        `reward` (mean score) and `score_std`; `kl` and `kl_k3` in nats per response, `entropy` in nats per token,
        `length`, `length_std`, `length_max`, `length_corr` (correlation of length and score), `eos_rate`,
        `distinct_2` (fraction of distinct bigrams, mean over responses), `tokens`.
    """
    rows = [_row(episode) for episode in episodes] or [(0.0,) * 11]  # a rank may have none
    n, score, square, kl, k3, entropy, length, ended, distinct, cross, length_square = ranks.all_reduce_sum(
        *(sum(column) for column in zip(*rows, strict=True))
    )
    mean, mean_length = score / n, length / n
    variance = max(0.0, square / n - mean * mean)
    length_variance = max(0.0, length_square / n - mean_length * mean_length)
    deviations = (variance * length_variance) ** 0.5
    divergence = {"kl": kl / n, "kl_k3": k3 / n} if with_reference else {}
    return {
        "reward": mean,
        "score_std": variance**0.5,
        **divergence,
        "entropy": entropy / length,
        "length": mean_length,
        "length_std": length_variance**0.5,
        "length_max": ranks.all_reduce_max(max((len(episode.response_ids) for episode in episodes), default=0)),
        "length_corr": (cross / n - mean * mean_length) / deviations if deviations > 1e-12 else 0.0,
        "eos_rate": ended / n,
        "distinct_2": distinct / n,
        "tokens": length,
    }


def of_engine(episodes: Sequence[Episode], ranks: Ranks) -> dict[str, float]:
    """Return the mean |difference| of log-probabilities between policy and engine, if the engine reports its own."""
    gaps = [float((e.old_T - e.sampled_T).abs().double().sum()) for e in episodes if len(e.sampled_T)]
    gap, tokens = ranks.all_reduce_sum(sum(gaps), float(sum(len(episode.sampled_T) for episode in episodes)))
    return {"rollout_logprob_gap": gap / tokens} if tokens else {}


def mean_and_error(values: Sequence[float], ranks: Ranks) -> tuple[float, float]:
    """Return the mean of the values of all ranks, and its standard error."""
    total, square, count = ranks.all_reduce_sum(sum(values), sum(value * value for value in values), float(len(values)))
    mean = total / count
    return mean, (max(0.0, square / count - mean * mean) / count) ** 0.5


def _row(episode: Episode) -> tuple[float, ...]:
    length, score = len(episode.response_ids), episode.score
    reference_T = episode.reference_T if len(episode.reference_T) else episode.old_T
    return (
        1.0,
        score,
        score * score,
        float(kl_estimate(episode.old_T, reference_T, "k1").double().sum()),
        float(kl_estimate(episode.old_T, reference_T, "k3").double().sum()),
        float(episode.entropy_T.double().sum()),
        float(length),
        float(episode.ended),
        _distinct_bigrams(episode.response_ids),
        score * length,
        float(length * length),
    )


def _distinct_bigrams(ids: Sequence[int]) -> float:
    pairs = list(pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


@dataclass
class UpdateSums:
    """Sums over the tokens of all optimizer steps of an update, on this rank.

    Attributes:
        tokens: number of tokens, counted once per epoch.
        policy: sum of the policy loss.
        value: sum of the value loss.
        clipped: tokens whose ratio was clipped.
        value_clipped: tokens whose value was clipped.
        divergence: sum of k3 of new from old policy.
        ratio: sum of the probability ratios of new to old policy.
        largest: largest probability ratio.
        norms: gradient norms of policy and value before clipping, one pair per step.
        skipped: number of skipped steps.
    """

    tokens: float = 0.0
    policy: float = 0.0
    value: float = 0.0
    clipped: float = 0.0
    value_clipped: float = 0.0
    divergence: float = 0.0
    ratio: float = 0.0
    largest: float = 0.0
    norms: list[tuple[float, float]] = field(default_factory=list)
    skipped: int = 0

    def add(self, policy: PolicyLoss, value: ValueLoss) -> None:
        """Add a micro-batch."""
        with torch.no_grad():
            log_ratio_N = policy.log_ratio_N
            k3_N = old_new_divergence(log_ratio_N)
            sums = torch.stack(
                [
                    policy.loss_N.sum(),
                    value.loss_N.sum(),
                    policy.clipped_N.float().sum(),
                    value.clipped_N.float().sum(),
                    k3_N.sum(),
                    log_ratio_N.max(),
                    log_ratio_N.clamp(-20, 20).exp().sum(),
                ]
            ).tolist()
        self.tokens += log_ratio_N.numel()
        self.policy += sums[0]
        self.value += sums[1]
        self.clipped += sums[2]
        self.value_clipped += sums[3]
        self.divergence += sums[4]
        self.largest = max(self.largest, math.exp(min(20.0, sums[5])))
        self.ratio += sums[6]

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Return means per token over all ranks, the largest ratio, and means of the gradient norms per step."""
        tokens, policy, value, clipped, value_clipped, divergence, ratio = ranks.all_reduce_sum(
            self.tokens, self.policy, self.value, self.clipped, self.value_clipped, self.divergence, self.ratio
        )
        divisor = max(tokens, 1.0)
        steps = max(len(self.norms), 1)
        return {
            "policy_loss": policy / divisor,
            "value_loss": value / divisor,
            "clipfrac": clipped / divisor,
            "value_clipfrac": value_clipped / divisor,
            "approx_kl": divergence / divisor,
            "ratio_mean": ratio / divisor if tokens else 1.0,
            "ratio_max": ranks.all_reduce_max(self.largest),
            "grad_norm": sum(policy_norm for policy_norm, _ in self.norms) / steps,
            "value_grad_norm": sum(value_norm for _, value_norm in self.norms) / steps,
            "steps": float(len(self.norms)),
            "skipped": float(self.skipped),
        }
