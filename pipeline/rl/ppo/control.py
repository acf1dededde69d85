"""The adaptive quantities of PPO: the KL coefficient, and the scale of the scores. Serialisable, without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.parallel.ranks import Ranks


@dataclass
class KLController:
    """The coefficient β of the KL penalty: fixed, or adapted to a target divergence.

    Attributes:
        coef: current β.
        target: target divergence in nats per response; None keeps β fixed.
        horizon: number of responses over which β adapts.

    Reference: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """Adapt β to the mean divergence of ``responses`` responses; the relative error is clipped to ± 0.2."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl / self.target - 1))
            self.coef *= 1 + error * responses / self.horizon


@dataclass
class ScoreScale:
    """Centres, scales and clips scores to rewards.

    Attributes:
        center: subtracted from scores; measured on the first rollout, where the policy is still the reference.
        count: number of scores seen.
        mean: running mean of the scores.
        squares: sum of squared deviations from the mean.

    Reference: the running variance is Welford's, merged batch by batch as in Chan et al. 1979.
    """

    center: float = 0.0
    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, scores: Sequence[float], ranks: Ranks) -> None:
        """Update mean and variance with a rollout's scores, those of all ranks."""
        total, count = ranks.all_reduce_sum(sum(scores), float(len(scores)))
        mean = total / count
        (squares,) = ranks.all_reduce_sum(sum((score - mean) ** 2 for score in scores))
        delta, total_count = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / total_count
        self.mean += delta * count / total_count
        self.count = total_count

    @property
    def deviation(self) -> float:
        """Running standard deviation; 1 before any score, or if all scores were equal."""
        return (self.squares / self.count) ** 0.5 if self.count and self.squares > 0 else 1.0

    def apply(self, score: float, *, scale: bool, clip: float) -> float:
        """Return the centred, scaled and clipped score; a ``clip`` of 0 does not clip."""
        value = self._scaled(score, scale=scale)
        return min(clip, max(-clip, value)) if clip else value

    def is_cut(self, score: float, *, scale: bool, clip: float) -> bool:
        """Return whether `apply` clips a score."""
        return bool(clip) and abs(self._scaled(score, scale=scale)) > clip

    def kept_share(self, score: float, *, scale: bool, clip: float) -> float:
        """Return the share of a centred and scaled score that clipping leaves: 1 if it does not clip."""
        return clip / abs(self._scaled(score, scale=scale)) if self.is_cut(score, scale=scale, clip=clip) else 1.0

    def _scaled(self, score: float, *, scale: bool) -> float:
        return (score - self.center) / (self.deviation if scale else 1.0)
