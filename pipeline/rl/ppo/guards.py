"""Guards that detect the known failures of PPO from its metrics, and report cause and remedy.

Each guard checks the metrics of one iteration. A notice is given once. A failure that cannot recover ends the run, and
the best checkpoint so far remains the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.rl.ppo.control import KLController
from pipeline.rl.ppo.settings import PPOSettings

START_KL = 1e-2
"""Largest divergence, in nats per response, that counts as rounding where it should be zero."""
LARGEST_KL = 50.0
"""Largest divergence from the reference in nats per response, by k1."""
LARGEST_TOKEN_KL = 0.5
"""Largest divergence from the reference in nats per token, by k3."""
RARE_END = 0.2
"""Fraction of responses with an end token below which a guard reports."""
PATIENCE = 3
NEGATIVE_PATIENCE = 5
MOST_RAISES = 1
LEAST_PRICE = 0.02
"""Smallest β after a guard raised it, also for a run that had none."""


class Stopped(Exception):  # noqa: N818  (an end, not an error)
    """A guard ended the run; the best checkpoint so far is the result.

    Attributes:
        problem: cause and remedy.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.found)
        self.problem = problem


@dataclass
class Guards:
    """The guards, with their state between iterations.

    Attributes:
        told: notices already given.
        high_kl: consecutive iterations with too large a divergence.
        negative_kl: consecutive iterations with a negative divergence.
        wild_ratio: consecutive iterations whose epochs were cut short.
        unexplained: consecutive iterations in which the value function was worse than the mean return.
        skipped: consecutive skipped optimizer steps.
        rate: factor on both learning rates.
        raised: times β was raised.
        gamed: consecutive evaluations in which the watched score fell while the reward rose.
        start: metrics of the first rollout.
        watched: metrics of the first evaluation that has a watched score.
    """

    told: list[str] = field(default_factory=list)
    high_kl: int = 0
    negative_kl: int = 0
    wild_ratio: int = 0
    unexplained: int = 0
    skipped: int = 0
    rate: float = 1.0
    raised: int = 0
    gamed: int = 0
    start: dict[str, float] = field(default_factory=dict)
    watched: dict[str, float] = field(default_factory=dict)

    def plain(self) -> JsonObject:
        """Return the state as plain data for JSON."""
        return asdict(self)

    def step_skipped(self, settings: PPOSettings) -> None:
        """Count a skipped optimizer step.

        Raises:
            PipelineError: too many consecutive steps were skipped.
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

    def check_start(self, metrics: Mapping[str, float], *, ends_are_taught: bool) -> None:
        """Check the first rollout, before the first update.

        Raises:
            PipelineError: the reference differs from the starting policy, or the policy never learnt to end responses.
        """
        self.start = dict(metrics)
        if abs(metrics["kl"]) > START_KL or metrics["kl_k3"] > START_KL:
            raise PipelineError(
                Problem(
                    f"policy and reference differ by {metrics['kl']:.3g} nats before the first update",
                    "0: the reference is the policy the stage starts from",
                    "report this with the model's architecture",
                ),
                exit_code=ExitCode.FAILED,
            )
        if metrics["eos_rate"] < RARE_END and not ends_are_taught:
            raise PipelineError(
                Problem(
                    f"only {metrics['eos_rate']:.0%} of responses end by themselves",
                    "a policy that learnt to end: its template leaves the end token out of the assistant's turn",
                    "put the end token inside {% generation %}, and tune on demonstrations first",
                )
            )

    def look(
        self, metrics: Mapping[str, float], settings: PPOSettings, iteration: int, kl: KLController | None = None
    ) -> list[str]:
        """Check an iteration; return new notices, and adapt β or the learning rates if needed.

        Raises:
            Stopped: the policy stays too far from the reference, or scoring and sampling disagree.
        """
        if not self.start:
            self.start = dict(metrics)
        notices = [
            *self._about_divergence(metrics, settings, kl),
            *self._about_responses(metrics),
            *self._about_learning(metrics, settings, iteration),
        ]
        new = [text for key, text in notices if key not in self.told]
        self.told += [key for key, _ in notices if key not in self.told]
        return new

    def look_at_evaluation(self, metrics: Mapping[str, float], unpriced: KLController | None = None) -> list[str]:
        """Check an evaluation; return new notices, such as that the watched score falls while the reward rises.

        Args:
            metrics: metrics of the evaluation.
            unpriced: the KL controller, if training has no KL penalty and so does not measure the divergence;
                evaluations then check it.

        Raises:
            Stopped: a failure lasted for several consecutive evaluations.
        """
        if unpriced is not None and "eval_kl" in metrics:
            far = self._check_distance(metrics["eval_kl"], metrics["eval_kl_k3"], metrics["eval_length"], unpriced)
            return [text for _, text in far] + self._about_gaming(metrics)
        return self._about_gaming(metrics)

    def _about_gaming(self, metrics: Mapping[str, float]) -> list[str]:
        if "eval_watch" not in metrics:
            return []
        if not self.watched:
            self.watched = {name: metrics[name] for name in ("eval_reward", "eval_watch", "eval_watch_se")}
            return []
        start, error = self.watched, 2 * max(self.watched["eval_watch_se"], metrics["eval_watch_se"])
        is_gamed = metrics["eval_reward"] > start["eval_reward"] and metrics["eval_watch"] < start["eval_watch"] - error
        self.gamed = self.gamed + 1 if is_gamed else 0
        text = (
            f"the held-out reward rose from {start['eval_reward']:.3g} to {metrics['eval_reward']:.3g} while what is "
            f"watched fell from {start['eval_watch']:.3g} to {metrics['eval_watch']:.3g}: the reward is being gamed"
        )
        remedy = "raise train.kl_coef, or put what is watched into `reward` with reward_combine: min"
        if self.gamed >= PATIENCE:
            raise Stopped(Problem(text, "both to rise", remedy))
        if is_gamed and "gamed" not in self.told:
            self.told.append("gamed")
            return [f"{text}; {remedy}"]
        return []

    def _about_divergence(
        self, metrics: Mapping[str, float], settings: PPOSettings, kl: KLController | None
    ) -> list[tuple[str, str]]:
        """Check the divergence from the reference, and count iterations that were cut short."""
        self.wild_ratio = self.wild_ratio + 1 if metrics["epochs_run"] < settings.epochs else 0
        if "kl" not in metrics:
            return []
        self.negative_kl = self.negative_kl + 1 if metrics["kl"] < -START_KL else 0
        if self.negative_kl >= NEGATIVE_PATIENCE:
            raise Stopped(
                Problem(
                    f"the divergence from the reference is negative ({metrics['kl']:.3g} nats) for {NEGATIVE_PATIENCE} "
                    "iterations: responses are not sampled from the law they are scored with",
                    "temperature, end tokens and positions that agree in sampling and scoring",
                    "try train.temperature: 1.0 and rollout_engine: batched",
                )
            )
        return self._check_distance(metrics["kl"], metrics["kl_k3"], metrics["length"], kl)

    def _check_distance(self, k1: float, k3: float, length: float, kl: KLController | None) -> list[tuple[str, str]]:
        """Raise β if the divergence stays too large; stop the run if β was already raised."""
        too_far = k1 > LARGEST_KL or k3 / max(length, 1.0) > LARGEST_TOKEN_KL
        self.high_kl = self.high_kl + 1 if too_far else 0
        if self.high_kl < PATIENCE:
            return []
        away = f"the policy is {k1:.3g} nats per response away from its reference"
        if kl is not None and self.raised < MOST_RAISES:
            kl.coef, self.high_kl, self.raised = max(2 * kl.coef, LEAST_PRICE), 0, self.raised + 1
            return [(f"price {self.raised}", f"{away}: kl_coef is now {kl.coef:.3g}")]
        raise Stopped(
            Problem(
                away,
                f"at most {LARGEST_KL:g}, and {LARGEST_TOKEN_KL:g} per token",
                "lower train.learning_rate, raise train.kl_coef, or set train.kl_target",
            )
        )

    def _about_responses(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        notices = []
        if metrics["eos_rate"] < RARE_END:
            share = f"{metrics['eos_rate']:.0%}"
            text = f"only {share} of responses end by themselves: raise max_new_tokens, or tune on answers that end"
            notices.append(("eos", text))
        elif metrics["eos_rate"] < 0.5 <= self.start["eos_rate"]:
            text = "more than half of the responses run to max_new_tokens: raise kl_coef, or set overlong_buffer"
            notices.append(("longest", text))
        if metrics["distinct_2"] < 0.2:
            notices.append(("repetition", "responses repeat themselves (distinct bigrams below 20 %): raise kl_coef"))
        grown = metrics["length"] > 1.5 * self.start["length"] and metrics["reward"] > self.start["reward"]
        if metrics["length_corr"] > 0.7 and grown:
            text = (
                "the reward pays for length (correlation above 0.7; reward_same_length has it taken out): see the "
                "reward model's report, or set overlong_buffer"
            )
            notices.append(("length", text))
        if metrics["entropy"] < 0.1 * self.start["entropy"]:
            text = (
                "entropy fell below a tenth of its start: raise entropy_coef, set clip_range_high: 0.28, or lower "
                "learning_rate"
            )
            notices.append(("entropy", text))
        return notices

    def _about_learning(
        self, metrics: Mapping[str, float], settings: PPOSettings, iteration: int
    ) -> list[tuple[str, str]]:
        notices = []
        if self.wild_ratio >= PATIENCE:
            self.rate, self.wild_ratio = self.rate / 2, 0
            text = f"target_kl or max_ratio cut {PATIENCE} rollouts short in a row: rates are now × {self.rate:g}"
            notices.append((f"rate {self.rate}", text))
        self.unexplained = self.unexplained + 1 if metrics["explained_variance"] < 0 else 0
        if iteration >= settings.critic_warmup + 10 and self.unexplained >= NEGATIVE_PATIENCE:
            text = (
                f"the value function explained nothing in {NEGATIVE_PATIENCE} iterations: raise value_learning_rate or "
                "critic_warmup"
            )
            notices.append(("critic", text))
        if metrics["score_std"] > 5:
            notices.append(("wide", "scores spread by more than 5: try score_scaling: running"))
        if metrics["score_std"] < 0.05 and settings.score_scaling == "none":
            notices.append(
                ("narrow", "scores hardly differ (standard deviation below 0.05): try score_scaling: running")
            )
        return notices
