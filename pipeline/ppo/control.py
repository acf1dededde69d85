"""What adapts while PPO runs: the KL coefficient, and the scale of the scores. Small, serialisable, pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.parallel.ranks import Ranks


@dataclass
class KLController:
    """The coefficient β of the KL penalty: fixed, or steered to a target.

    Attributes:
        coef: β in force.
        target: nats per response; None keeps β.
        horizon: responses over which β reacts.

    Reference: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """React to the mean divergence of ``responses`` responses: the error is cut to ± 0.2."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl / self.target - 1))
            self.coef *= 1 + error * responses / self.horizon


@dataclass
class ScoreScale:
    """How scores become rewards: centred, scaled, clipped.

    Attributes:
        center: subtracted; measured on the first rollout, where the policy is still the reference.
        count: scores seen.
        mean: of them.
        squares: sum of squared distances from the mean.

    Reference: the running variance is Welford's, joined in batches as in Chan et al. 1979.
    """

    center: float = 0.0
    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, scores: Sequence[float], ranks: Ranks) -> None:
        """Take up a rollout's scores, those of all processes."""
        total, count = ranks.sums(sum(scores), float(len(scores)))
        mean = total / count
        (squares,) = ranks.sums(sum((score - mean) ** 2 for score in scores))
        delta, whole = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / whole
        self.mean += delta * count / whole
        self.count = whole

    @property
    def deviation(self) -> float:
        """Running standard deviation; 1 before anything was seen or when all scores were equal."""
        return (self.squares / self.count) ** 0.5 if self.count and self.squares > 0 else 1.0

    def apply(self, score: float, *, scale: bool, clip: float) -> float:
        """Return a score as the reward sees it."""
        value = self._scaled(score, scale=scale)
        return min(clip, max(-clip, value)) if clip else value

    def is_cut(self, score: float, *, scale: bool, clip: float) -> bool:
        """Return whether `apply` cuts a score."""
        return bool(clip) and abs(self._scaled(score, scale=scale)) > clip

    def _scaled(self, score: float, *, scale: bool) -> float:
        return (score - self.center) / (self.deviation if scale else 1.0)
