"""KL divergence of a policy from its reference, estimated on the policy's own samples.

Owns the k1 and k3 estimators of KL(policy ‖ reference). Knows nothing of models: its input is log-probabilities of the
sampled tokens under the sampled distribution (same temperature, EOS included, padding masked).

Shape legend: B sequences, T tokens.

Reference: Schulman (2020), Approximating KL divergence, http://joschu.net/blog/kl-approx.html. With
r = reference / policy at a sampled token: k1 = -log r is unbiased and noisy and may be negative; k3 = (r - 1) - log r
is unbiased where the reference does not leave the policy's support, never negative, and less noisy near the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.stats.estimate import Estimate, Record
from pipeline.evaluation.stats.intervals import LEVEL, RESAMPLES, Floats, Method, mean_interval, ratio_interval


class Divergence(Record):
    """KL(policy ‖ reference) in nats, by two estimators and two units.

    Attributes:
        k1_per_sequence: mean over sequences of Σ k1 over tokens; `objective/kl` of trl.
        k3_per_sequence: mean over sequences of Σ k3 over tokens.
        k1_per_token: Σ k1 / Σ tokens.
        k3_per_token: Σ k3 / Σ tokens.
        tokens: number of tokens.
    """

    k1_per_sequence: Estimate
    k3_per_sequence: Estimate
    k1_per_token: Estimate
    k3_per_token: Estimate
    tokens: int


def divergence(
    policy_logprobs_BT: ArrayLike,
    reference_logprobs_BT: ArrayLike,
    mask_BT: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "bca",
) -> Divergence:
    """Estimate KL(policy ‖ reference) from tokens sampled from the policy.

    Args:
        policy_logprobs_BT: log-probability of each sampled token under the policy.
        reference_logprobs_BT: log-probability of the same token under the reference.
        mask_BT: true for tokens that count; masked values may be anything.
        seed: seed of the bootstrap over sequences.
        resamples: number of bootstrap resamples.
        level: confidence level.
        method: method of the bootstrap.

    Raises:
        PipelineError: shapes differ, a sequence has no token, or an unmasked log-probability is above 0 or not finite.
    """
    sums = per_sequence(policy_logprobs_BT, reference_logprobs_BT, mask_BT)
    return summarized(sums, seed=seed, resamples=resamples, level=level, method=method)


class SequenceKL(NamedTuple):
    """Sums per sequence: Σ k1 and Σ k3 over its tokens, and the number of tokens; shape (B,) each."""

    k1_B: Floats
    k3_B: Floats
    tokens_B: Floats


def per_sequence(policy_logprobs_BT: ArrayLike, reference_logprobs_BT: ArrayLike, mask_BT: ArrayLike) -> SequenceKL:
    """Return both estimators summed over the tokens of each sequence; arguments are those of `divergence`.

    Raises:
        PipelineError: as `divergence` does.
    """
    k1_BT, k3_BT, tokens_B = _per_token(policy_logprobs_BT, reference_logprobs_BT, mask_BT)
    return SequenceKL(k1_BT.sum(axis=1), k3_BT.sum(axis=1), tokens_B)


def summarized(
    sums: SequenceKL, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL, method: Method = "bca"
) -> Divergence:
    """Return means over sequences and over tokens, with intervals.

    Args:
        sums: sums of each sequence.
        seed: seed of the bootstrap over sequences.
        resamples: number of bootstrap resamples.
        level: confidence level.
        method: method of the bootstrap.
    """

    def mean(sums_B: Floats) -> Estimate:
        return mean_interval(sums_B, seed=seed, resamples=resamples, level=level, method=method)

    def per_token(sums_B: Floats) -> Estimate:
        return ratio_interval(sums_B, sums.tokens_B, seed=seed, resamples=resamples, level=level, method=method)

    return Divergence(
        k1_per_sequence=mean(sums.k1_B),
        k3_per_sequence=mean(sums.k3_B),
        k1_per_token=per_token(sums.k1_B),
        k3_per_token=per_token(sums.k3_B),
        tokens=int(sums.tokens_B.sum()),
    )


def _per_token(policy: ArrayLike, reference: ArrayLike, mask: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return k1 and k3 per token, zero where masked, and the number of tokens per sequence."""
    policy_BT = np.asarray(policy, dtype=np.float64)
    reference_BT = np.asarray(reference, dtype=np.float64)
    mask_BT = np.asarray(mask, dtype=bool)
    if policy_BT.ndim != 2 or not policy_BT.shape == reference_BT.shape == mask_BT.shape:
        raise PipelineError(
            Problem(
                f"shapes policy {policy_BT.shape}, reference {reference_BT.shape}, mask {mask_BT.shape}",
                "three equal shapes (sequences, tokens)",
            )
        )
    counts_B = mask_BT.sum(axis=1).astype(np.float64)
    empty = int((counts_B == 0).sum())
    if empty:
        raise PipelineError(
            Problem(
                f"{empty} of {counted(len(counts_B), 'sequence')} {agreeing(empty, 'has', 'have')} no token",
                "every response has one token or more",
                "count the EOS token: it was sampled too",
            )
        )
    for name, logprobs_BT in (("policy", policy_BT), ("reference", reference_BT)):
        unmasked = logprobs_BT[mask_BT]
        bad = int((~np.isfinite(unmasked) | (unmasked > 1e-4)).sum())
        if bad:
            raise PipelineError(
                Problem(f"{bad} log-probabilities of the {name} are not finite or above 0", "finite numbers ≤ 0")
            )
    log_ratio_BT = np.where(mask_BT, reference_BT, 0.0) - np.where(mask_BT, policy_BT, 0.0)  # log r
    return -log_ratio_BT, np.expm1(log_ratio_BT) - log_ratio_BT, counts_B
