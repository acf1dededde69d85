"""The win rate: how often a policy's answer beats the baseline's on the same prompt, a tie counting one half.

Owns the win rate and its counts. Knows nothing of the judge: its input is scores.

Shape legend: N prompts, S samples of the policy, T samples of the baseline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.stats.differences import paired, sign_flip, sign_test
from pipeline.evaluation.stats.estimate import Estimate, Record
from pipeline.evaluation.stats.intervals import LEVEL, RESAMPLES, Floats, Method, mean_interval, wilson


class WinRate(Record):
    """A win rate and its counts.

    Attributes:
        estimate: share of prompts won, a tie counting one half, with a bootstrap interval over prompts.
        wins: number of prompts won by the policy (more than half of its comparisons, if sampled several times).
        ties: number of ties.
        losses: number of prompts won by the baseline.
        decided: share won of the prompts that are no tie, with Wilson's interval; None when all are ties.
        p_value: p-value of no preference: the sign test without ties, or with several samples the sign-flip test.
        won_by: mean difference of the scores on prompts won; None without any.
        lost_by: mean difference on prompts lost, as a positive number; None without any.
    """

    estimate: Estimate
    wins: int
    ties: int
    losses: int
    decided: Estimate | None
    p_value: float
    won_by: float | None = None
    lost_by: float | None = None


def outcomes(policy: ArrayLike, baseline: ArrayLike, *, tie_margin: float = 0.0) -> Floats:
    """Return per prompt the share of comparisons that the policy wins, a tie counting one half; shape (N,).

    Args:
        policy: scores, shape (N,) or (N, S); higher is better.
        baseline: scores on the same prompts, shape (N,) or (N, T). All S × T pairs are compared.
        tie_margin: largest difference of scores that counts as a tie.

    Raises:
        PipelineError: the numbers of prompts differ, or a score is not finite.
    """
    paired(policy, baseline)
    if tie_margin < 0:
        raise PipelineError(Problem(f"tie margin is {tie_margin:g}", "must be ≥ 0"))
    policy_NS1 = _samples(policy)[:, :, None]
    baseline_N1T = _samples(baseline)[:, None, :]
    gap_NST = policy_NS1 - baseline_N1T
    won_NST = np.where(np.abs(gap_NST) <= tie_margin, 0.5, (gap_NST > 0).astype(np.float64))
    return np.asarray(won_NST.mean(axis=(1, 2)), dtype=np.float64)


def win_rate(
    policy: ArrayLike,
    baseline: ArrayLike,
    *,
    seed: int,
    tie_margin: float = 0.0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "bca",
) -> WinRate:
    """Return the win rate of ``policy`` over ``baseline``.

    Swapping the two gives one minus the value and the mirrored interval; a model has exactly 0.5 against itself.

    Args:
        policy: scores, shape (N,) or (N, S); higher is better.
        baseline: scores on the same prompts in the same order, shape (N,) or (N, T).
        seed: seed of the bootstrap.
        tie_margin: largest difference of scores that counts as a tie.
        resamples: number of bootstrap resamples.
        level: confidence level.
        method: method of the bootstrap.

    Raises:
        PipelineError: the numbers of prompts differ, or a score is not finite.
    """
    won_N = outcomes(policy, baseline, tie_margin=tie_margin)
    estimate = mean_interval(won_N, seed=seed, resamples=resamples, level=level, method=method, bounds=(0.0, 1.0))
    wins, losses = int((won_N > 0.5).sum()), int((won_N < 0.5).sum())
    gap_N = np.subtract(*paired(policy, baseline))
    is_single = bool(np.isin(won_N, (0.0, 0.5, 1.0)).all())
    return WinRate(
        estimate=estimate,
        wins=wins,
        ties=len(won_N) - wins - losses,
        losses=losses,
        decided=wilson(wins, wins + losses, level=level) if wins + losses else None,
        p_value=sign_test(wins, losses) if is_single else sign_flip(won_N - 0.5, seed=seed),
        won_by=float(gap_N[won_N > 0.5].mean()) if wins else None,
        lost_by=float(-gap_N[won_N < 0.5].mean()) if losses else None,
    )


def _samples(scores: ArrayLike) -> Floats:
    """Reshape scores to (N, S)."""
    array = np.asarray(scores, dtype=np.float64)
    return array.reshape(len(array), -1)
