"""Watches a PPO run for the known ways to fail, and says the cause and the remedy.

Each guard looks at the metrics of one iteration. A notice is told once; what cannot get better ends the run with an
error, and the best checkpoint so far remains the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.ppo.settings import PPOSettings

START_KL = 1e-2
"""Nats per response that rounding may make of a divergence that should be zero."""
LARGEST_KL = 50.0
"""Nats per response."""
LARGEST_TOKEN_KL = 0.5
"""Nats per token, by k3."""
PATIENCE = 3
NEGATIVE_PATIENCE = 5


class Stopped(Exception):  # noqa: N818  (an end, not an error)
    """A guard ends the run; what was learnt up to the best checkpoint stays.

    Attributes:
        problem: cause and remedy.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.found)
        self.problem = problem


@dataclass
class Guards:
    """The memory of the guards between iterations.

    Attributes:
        told: notices given already.
        high_kl: iterations in a row with a divergence that is too large.
        negative_kl: iterations in a row with a negative divergence.
        wild_ratio: iterations in a row that were cut short.
        skipped: optimizer steps skipped in a row.
        rate: factor on both learning rates.
        start: metrics of the first iteration.
    """

    told: list[str] = field(default_factory=list)
    high_kl: int = 0
    negative_kl: int = 0
    wild_ratio: int = 0
    skipped: int = 0
    rate: float = 1.0
    start: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the memory as JSON."""
        return asdict(self)

    def step_skipped(self, settings: PPOSettings) -> None:
        """Count a skipped optimizer step.

        Raises:
            PipelineError: too many in a row.
        """
        self.skipped += 1
        if self.skipped >= settings.max_skipped:
            raise PipelineError(
                Problem(
                    f"{self.skipped} optimizer steps in a row had a gradient that is not finite",
                    "finite numbers",
                    "lower train.learning_rate, or check the reward for huge values; the last checkpoint is kept",
                ),
                exit_code=ExitCode.FAILED,
            )

    def look(self, metrics: Mapping[str, float], settings: PPOSettings, iteration: int) -> list[str]:
        """Return notices about an iteration.

        Raises:
            Stopped: the policy left the reference for good.
            PipelineError: the reference is not the policy it started from.
        """
        if iteration == 0:
            self.start = dict(metrics)
            self._check_start(metrics)
        self._check_divergence(metrics, settings)
        found = [*self._about_responses(metrics), *self._about_learning(metrics, settings, iteration)]
        new = [text for key, text in found if key not in self.told]
        self.told += [key for key, _ in found if key not in self.told]
        return new

    def _check_start(self, metrics: Mapping[str, float]) -> None:
        if abs(metrics["kl"]) > START_KL or metrics["kl_k3"] > START_KL:
            raise PipelineError(
                Problem(
                    f"policy and reference differ by {metrics['kl']:.3g} nats before the first update",
                    "0: the reference is the policy the stage starts from",
                    "report this with the model's architecture",
                ),
                exit_code=ExitCode.FAILED,
            )

    def _check_divergence(self, metrics: Mapping[str, float], settings: PPOSettings) -> None:
        tokens = max(metrics["length"], 1.0)
        too_far = metrics["kl"] > LARGEST_KL or metrics["kl_k3"] / tokens > LARGEST_TOKEN_KL
        self.high_kl = self.high_kl + 1 if too_far else 0
        self.negative_kl = self.negative_kl + 1 if metrics["kl"] < -START_KL else 0
        self.wild_ratio = self.wild_ratio + 1 if metrics["epochs_run"] < settings.epochs else 0
        if self.high_kl >= PATIENCE:
            raise Stopped(
                Problem(
                    f"the policy is {metrics['kl']:.3g} nats per response away from its reference",
                    f"at most {LARGEST_KL:g}, and {LARGEST_TOKEN_KL:g} per token",
                    "lower train.learning_rate, raise train.kl_coef, or set train.kl_target",
                )
            )
        if self.negative_kl >= NEGATIVE_PATIENCE:
            raise Stopped(
                Problem(
                    f"the divergence from the reference is negative ({metrics['kl']:.3g} nats) for {NEGATIVE_PATIENCE} "
                    "iterations: responses are not sampled from the law they are scored with",
                    "temperature, end tokens and positions that agree in sampling and scoring",
                    "try train.temperature: 1.0 and rollout_engine: batched",
                )
            )

    def _about_responses(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        found = []
        if metrics["eos_rate"] < 0.2:
            share = f"{metrics['eos_rate']:.0%}"
            text = f"only {share} of responses end by themselves: raise max_new_tokens, or tune on answers that end"
            found.append(("eos", text))
        if metrics["distinct_2"] < 0.2:
            found.append(("repetition", "responses repeat themselves (distinct bigrams below 20 %): raise kl_coef"))
        grown = metrics["length"] > 1.5 * self.start["length"] and metrics["reward"] > self.start["reward"]
        if metrics["length_corr"] > 0.7 and grown:
            text = "the reward pays for length (correlation above 0.7): see the reward model's report"
            found.append(("length", text))
        if metrics["entropy"] < 0.1 * self.start["entropy"]:
            text = "entropy fell below a tenth of its start: raise entropy_coef or kl_coef, or lower learning_rate"
            found.append(("entropy", text))
        return found

    def _about_learning(
        self, metrics: Mapping[str, float], settings: PPOSettings, iteration: int
    ) -> list[tuple[str, str]]:
        found = []
        if self.wild_ratio >= PATIENCE:
            self.rate, self.wild_ratio = self.rate / 2, 0
            text = f"target_kl cut {PATIENCE} rollouts short in a row: learning rates are now × {self.rate:g}"
            found.append((f"rate {self.rate}", text))
        if iteration >= settings.critic_warmup + 10 and metrics["explained_variance"] < 0:
            text = "the value function explains nothing after 10 iterations: raise value_learning_rate or critic_warmup"
            found.append(("critic", text))
        if metrics["score_std"] > 5:
            found.append(("wide", "scores spread by more than 5: try score_scaling: running"))
        if metrics["score_std"] < 0.05 and settings.score_scaling == "none":
            found.append(("narrow", "scores hardly differ (standard deviation below 0.05): try score_scaling: running"))
        return found
