"""The PPO algorithm for language models: roll out, score, estimate advantages, update, check the guards.

    for metrics in trainer.iterations(): ...

All random numbers are functions of the seed, the iteration and an index in the rollout. So a resumed run, or one on
several ranks, takes the same steps. The loss of an optimizer step is the sum over its tokens divided by their number
over all micro-batches and ranks, so the split of a minibatch does not matter either.

References: Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155; Huang et al. 2024,
arXiv:2403.17031.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.engine import Engine
from pipeline.parallel.ranks import Ranks
from pipeline.rl.policy.policy import Outputs, Policy
from pipeline.rl.ppo import measures
from pipeline.rl.ppo.advantage import old_new_divergence
from pipeline.rl.ppo.averaging import Average
from pipeline.rl.ppo.control import KLController, ScoreScale
from pipeline.rl.ppo.estimation import estimate, learnt
from pipeline.rl.ppo.guards import Guards
from pipeline.rl.ppo.loss import PolicyLoss, ValueLoss, importance_weights, kl_loss, policy_loss, value_loss
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.ppo.shaping import same_length_reward
from pipeline.rl.rollout.episodes import Episode, Prompt, idle_episode, micro_batches, pack
from pipeline.rl.rollout.rollouts import prompt_order, roll_out
from pipeline.rl.train_engines.engines import PlainEngine, TrainEngine, are_finite, clip_factors, drifted

Score = Callable[[Sequence[Episode]], list[float]]
"""Returns one score per episode; higher is better."""
LanguageLoss = Callable[[Any, int], torch.Tensor]
"""Returns the PPO-ptx loss (mean per token) of a model at an optimizer step."""

_MOST_RATIO_KL = 1.5
"""The remaining epochs are skipped once new and old policy differ by this many times `target_kl`."""


@dataclass
class PPOTrainer:
    """Trains a policy with PPO.

    Attributes:
        policy: policy, with its value function and reference.
        settings: settings of the algorithm.
        prompts: training prompts.
        score: reward function of episodes.
        engine: rollout engine, which samples responses.
        generation: limits and end tokens of a response, and how its tokens are chosen; each rollout has its own seed.
        decode_text: converts the tokens of a response, which follow those of a prompt, to text.
        held_out: prompts for evaluation; may be empty.
        seed: seed of all random numbers.
        ranks: all ranks of the run.
        language_loss: loss of PPO-ptx; None without it.
        on_step: called with (optimizer steps done, of all) during an iteration.
        stepper: train engine, which holds the optimizer; a `PlainEngine` when omitted.
        watch: scores held-out responses by a reward that is not trained on, to detect reward gaming.
        ends_are_taught: whether the chat template ends answers with an end token.
        on_skip: called with the episodes of a skipped optimizer step.
    """

    policy: Policy
    settings: PPOSettings
    prompts: Sequence[Prompt]
    score: Score
    engine: Engine
    generation: GenerationSettings
    decode_text: Callable[[Sequence[int], Sequence[int]], str]
    held_out: Sequence[Prompt] = ()
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    language_loss: LanguageLoss | None = None
    on_step: Callable[[int, int], None] | None = None
    sharded_engine: TrainEngine | None = None
    watch: Score | None = None
    ends_are_taught: bool = True
    on_skip: Callable[[Sequence[Episode]], None] | None = None

    def __post_init__(self) -> None:
        """Create the train engine if there is none, the adaptive quantities and the guards."""
        s = self.settings
        if s.rollout_batch < self.ranks.count:
            statement = f"train.rollout_batch is {s.rollout_batch} with {self.ranks.count} processes"
            raise PipelineError(
                Problem(statement, "at least one response for each", "raise it, or use fewer processes")
            )
        self.iteration = 0
        self.steps = 0
        self.kl = KLController(s.kl_coef, s.kl_target, s.kl_horizon)
        self.scale = ScoreScale()
        self.guards = Guards()
        self._reusable_pass: tuple[list[Episode], Outputs] | None = None
        self.train_engine: TrainEngine = self.sharded_engine or PlainEngine(self.policy, s, self.ranks)
        self.average = Average(self.policy, s.ema_decay) if s.ema_decay else None

    @property
    def optimizer(self) -> Any:
        """The optimizer, with two parameter groups: policy and value function."""
        return self.train_engine.optimizer

    def iterations(self) -> Iterator[dict[str, float]]:
        """Train to the end, and yield the metrics of each iteration; `iteration` counts completed ones.

        Raises:
            PipelineError: a reward is invalid, gradients are not finite repeatedly, or the reference differs from the
                starting policy.
            Stopped: a guard ended the run.
        """
        while self.iteration < self.settings.iterations:
            yield self.iterate()

    def iterate(self) -> dict[str, float]:
        """Run one iteration (rollout, measurement, estimation, update); return its metrics."""
        clock = [time.perf_counter()]
        episodes = self.roll_out()
        clock.append(time.perf_counter())
        with_reference = self.uses_kl_penalty or self.iteration == 0
        self.measure(episodes, for_update=True, reference=with_reference)
        metrics = {
            **self.estimate(episodes),
            **measures.of_rollout(episodes, self.ranks, with_reference=with_reference),
            **measures.of_engine(episodes, self.ranks),
        }
        if self.iteration == 0:
            self.guards.check_start(metrics, ends_are_taught=self.ends_are_taught)
        metrics["reward_same_length"] = same_length_reward(metrics, self.guards.start.get("length", metrics["length"]))
        clock.append(time.perf_counter())
        metrics |= self.update(episodes)
        clock.append(time.perf_counter())
        metrics["objective"] = metrics["reward"] - self.kl.coef * metrics.get("kl", 0.0)
        metrics["kl_coef"] = self.kl.coef
        for name, start, end in zip(("rollout", "score", "update"), clock, clock[1:], strict=False):
            metrics[f"seconds_{name}"] = end - start
        self.kl.update(metrics.get("kl", 0.0), self.settings.rollout_batch)
        self.iteration += 1
        if self.iteration % self.settings.eval_every == 0:
            self._check_processes()
        return metrics

    def _check_processes(self) -> None:
        """Check that all ranks still hold the same weights.

        Raises:
            PipelineError: they differ.
        """
        if self.ranks.count > 1 and drifted(self.train_engine.weights(), self.ranks):
            statement = f"the processes hold different weights after iteration {self.iteration}"
            problem = Problem(statement, "the same on all", "run again to resume from the last checkpoint")
            raise PipelineError(problem, exit_code=ExitCode.FAILED)

    def roll_out(self) -> list[Episode]:
        """Sample this rank's share of the rollout."""
        batch = self.settings.rollout_batch
        order = prompt_order(len(self.prompts), self.iteration * batch, batch, self.seed)
        own_prompts = self.ranks.shard([(place, self.prompts[index]) for place, index in enumerate(order)])
        return self._sample(own_prompts, self.seed * 1_000_003 + self.iteration)

    def _sample(self, prompts: Sequence[tuple[int, Prompt]], seed: int) -> list[Episode]:
        sampling, settings = self.train_engine.sampling(), replace(self.generation, seed=seed)
        return roll_out(sampling, self.engine, prompts, settings=settings, decode_text=self.decode_text)

    @torch.no_grad()
    def measure(self, episodes: Sequence[Episode], *, for_update: bool = False, reference: bool = True) -> None:
        """Score the episodes, and run policy, value function and, with ``reference``, the reference over them once.

        If the next update starts with the same forward pass (one minibatch of one micro-batch), its outputs are kept
        with their graph, and reused there.
        """
        self._reusable_pass = None
        if not episodes and not self.train_engine.is_collective:  # fewer held-out prompts than processes
            return
        for episode, score in zip(episodes, self.score(episodes), strict=True):  # collective for a sharded reward
            episode.score = score
        bootstrap = self.settings.truncation == "bootstrap"
        s, groups = self.settings, self._passes(episodes)
        one = len(groups) == 1 and s.minibatches == 1 and s.truncation == "terminal"
        keep = for_update and one and self.train_engine.can_reuse_forward
        for group in groups:
            if self.policy.cut is not None:
                plain = pack(group, self.policy.device)
                for episode, hidden_TH in zip(group, self.policy.lower_states(plain.ids_BT), strict=True):
                    episode.hidden_TH = hidden_TH[: episode.length].cpu().clone()
            batch = pack(group, self.policy.device, one_more=bootstrap)
            with torch.set_grad_enabled(keep):
                outputs = self.policy.forward(batch, entropy=True, entropy_gradient=s.entropy_coef > 0)
            if keep:
                self._reusable_pass = (group, outputs)
            columns = {"old_T": outputs.logp_N, "values_T": outputs.values_N, "entropy_T": outputs.entropy_N}
            if reference:
                columns["reference_T"] = self.policy.reference_logp(batch)
            for name, column_N in columns.items():
                assert column_N is not None
                rows = torch.split(column_N.detach().float().cpu(), list(batch.sizes))
                for episode, row_T in zip(group, rows, strict=True):
                    setattr(episode, name, row_T[: len(episode.response_ids)].clone())
                    if name == "values_T":
                        episode.after = float(row_T[-1]) if bootstrap else 0.0

    def _passes(self, episodes: Sequence[Episode]) -> list[list[Episode]]:
        """Split episodes into micro-batches; if passes are collective, add dummy ones until all ranks have as many."""
        groups = list(micro_batches(episodes, self.settings.token_budget))
        if not self.train_engine.is_collective:
            return groups
        missing = int(self.ranks.all_reduce_max(len(groups))) - len(groups)
        return groups + [[idle_episode()] for _ in range(missing)]

    @property
    def uses_kl_penalty(self) -> bool:
        """Whether there is a KL penalty: from the start, or since a guard raised β."""
        return self.settings.needs_reference or self.kl.coef > 0

    def estimate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Compute advantages and returns from scores; return the metrics of `estimation.estimate`."""
        metrics = estimate(
            episodes,
            self.settings,
            self.scale,
            self.ranks,
            price=self.kl.coef if self.uses_kl_penalty and not self.settings.kl_in_loss else 0.0,
            has_ends=bool(self.generation.ends),
            is_first=self.iteration == 0,
        )
        self.return_deviation = metrics["return_std"]
        return metrics

    def update(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Take the optimizer steps of one rollout; return the metrics of the update."""
        s = self.settings
        self._set_rates()
        sums = measures.UpdateSums()
        in_loss = learnt(episodes, s, has_ends=bool(self.generation.ends)).tolist()
        by_place = {episode.place: episode for episode, is_on in zip(episodes, in_loss, strict=True) if is_on}
        total, size = s.epochs * s.minibatches, s.rollout_batch // s.minibatches
        epochs_run = 0
        for epoch in range(s.epochs):
            order = list(range(s.rollout_batch))
            random.Random(f"{self.seed}/{self.iteration}/{epoch}").shuffle(order)
            for number in range(s.minibatches):
                minibatch = order[number * size : (number + 1) * size]
                own_episodes = [by_place[place] for place in minibatch if place in by_place]
                if not self._step(own_episodes, sums):
                    return self._update_metrics(sums, epochs_run)
                if self.on_step is not None:
                    self.on_step(epoch * s.minibatches + number + 1, total)
            epochs_run += 1
        return self._update_metrics(sums, epochs_run)

    def _update_metrics(self, sums: measures.UpdateSums, epochs_run: int) -> dict[str, float]:
        scaler = self.train_engine.scaler
        scale = {"loss_scale": float(scaler.get_scale())} if scaler.is_enabled() else {}
        return {**sums.metrics(self.ranks), "epochs_run": epochs_run, "lr": self.rate, **scale}

    def _step(self, episodes: Sequence[Episode], sums: measures.UpdateSums) -> bool:
        """Take one optimizer step; return False, without a step, if the new policy is too far from the old one."""
        s, policy = self.settings, self.policy
        (tokens,) = self.ranks.all_reduce_sum(float(sum(len(episode.response_ids) for episode in episodes)))
        self.train_engine.clear()
        if not tokens:
            return True
        clip = s.value_clip * max(1.0, self.return_deviation)
        divergence, largest, finite = 0.0, 0.0, True
        policy_on = 0.0 if self.iteration < s.critic_warmup else 1.0
        reusable, self._reusable_pass = self._reusable_pass, None
        with_language = self.language_loss is not None and bool(s.ptx_coef) and bool(policy_on)
        groups = [reusable[0]] if reusable is not None else self._passes(episodes)
        for number, group in enumerate(groups, start=1):
            outputs = reusable[1] if reusable is not None else self._forward(group)
            policy_part, value_part = self._losses(group, outputs, clip)
            loss = policy_on * policy_part.loss_N.sum() + s.value_coef * value_part.loss_N.sum()
            if s.kl_in_loss and self.uses_kl_penalty:
                loss = (
                    loss
                    + policy_on * self.kl.coef * kl_loss(outputs.logp_N, self._concatenated(group, "reference_T")).sum()
                )
            if s.entropy_coef and outputs.entropy_N is not None:
                loss = loss - policy_on * s.entropy_coef * outputs.entropy_N.sum()
            counted = group[0].place >= 0
            is_finite = bool(torch.isfinite(loss))
            finite = finite and is_finite
            last = number == len(groups) and not with_language
            self.train_engine.backward(loss / tokens * float(counted), last=last)
            if is_finite and counted:
                divergence += float(old_new_divergence(policy_part.log_ratio_N).sum())
                largest = max(largest, float(policy_part.log_ratio_N.max()))
                sums.add(policy_part, value_part)
        if with_language and self.language_loss is not None:
            language_loss = policy.run(lambda: self.language_loss(policy.model, self.steps))  # type: ignore[misc]
            self.train_engine.backward(s.ptx_coef * language_loss / self.ranks.count, last=True)
        elif not groups:
            self.train_engine.backward(policy.nothing(), last=True)
        (divergence,) = self.ranks.all_reduce_sum(divergence)
        too_far = bool(s.target_kl) and divergence / tokens > _MOST_RATIO_KL * s.target_kl
        if too_far or (s.max_ratio and self.ranks.all_reduce_max(largest) > math.log(s.max_ratio)):
            self.train_engine.discard()
            return False
        self._apply(episodes, sums, finite=finite)
        return True

    def _concatenated(self, group: Sequence[Episode], name: str) -> torch.Tensor:
        return torch.cat([getattr(episode, name) for episode in group]).to(self.policy.device)

    def _losses(self, group: Sequence[Episode], outputs: Outputs, clip: float) -> tuple[PolicyLoss, ValueLoss]:
        s, old_N = self.settings, self._concatenated(group, "old_T")
        weights_N = None
        if s.tis_clip and all(len(episode.sampled_T) for episode in group):
            weights_N = importance_weights(old_N, self._concatenated(group, "sampled_T"), clip=s.tis_clip)
        policy_part = policy_loss(
            outputs.logp_N,
            old_N,
            self._concatenated(group, "advantages_T"),
            clip_range=s.clip_range,
            clip_high=s.clip_high,
            dual_clip=s.dual_clip,
            weights_N=weights_N,
        )
        assert outputs.values_N is not None
        return policy_part, value_loss(
            outputs.values_N, self._concatenated(group, "values_T"), self._concatenated(group, "returns_T"), clip=clip
        )

    def _forward(self, group: Sequence[Episode]) -> Outputs:
        return self.policy.forward(pack(group, self.policy.device), entropy=self.settings.entropy_coef > 0)

    def _apply(self, episodes: Sequence[Episode], sums: measures.UpdateSums, *, finite: bool) -> None:
        """Clip the gradients and take a step; skip it on every rank if a gradient is not finite on any.

        With fp16 an overflow may only mean that the loss was scaled too far. The scale is then lowered, and the step
        does not count as skipped.
        """
        norms, scaler = self.train_engine.norms(), self.train_engine.scaler
        is_lost = bool(self.ranks.all_reduce_max(float(not finite)))
        if is_lost or self.ranks.all_reduce_max(float(not are_finite(norms))):
            was_scaled = scaler.get_scale() > 1
            self.train_engine.discard()
            if was_scaled and not is_lost:
                return
            sums.skipped += 1
            if self.on_skip is not None:
                self.on_skip(episodes)
            self.guards.step_skipped(self.settings)
            return
        self.guards.skipped = 0
        factors = clip_factors(norms, self.settings.max_grad_norm)
        self.train_engine.step(factors, policy=self.iteration >= self.settings.critic_warmup)
        self.steps += 1
        if self.average is not None:
            self.average.update()
        sums.norms.append(norms)

    def evaluate(self) -> tuple[dict[str, float], list[Episode]]:
        """Answer the held-out prompts, always with the same random numbers; return metrics and this rank's episodes."""
        if not self.held_out:
            return {}, []
        own_prompts = self.ranks.shard(list(enumerate(self.held_out)))
        episodes = self._sample(own_prompts, self.seed * 1_000_003 + 999_983)
        self.measure(episodes)
        for episode in episodes:
            episode.hidden_TH = None
        rollout_metrics = measures.of_rollout(episodes, self.ranks)
        rollout_metrics["objective"] = rollout_metrics["reward"] - self.settings.kl_coef * rollout_metrics["kl"]
        reported = ("reward", "kl", "kl_k3", "objective", "length", "eos_rate", "entropy")
        metrics = {f"eval_{name}": rollout_metrics[name] for name in reported}
        if self.watch is not None:
            watched = self.watch(episodes) if episodes or self.train_engine.is_collective else []
            mean, error = measures.mean_and_error(watched, self.ranks)
            metrics |= {"eval_watch": mean, "eval_watch_se": error}
        return metrics, episodes

    def saved_policy(self) -> AbstractContextManager[None]:
        """Return a context in which the policy has the weights that would be saved: its moving average, if enabled."""
        return nullcontext() if self.average is None else self.average.in_force()

    @property
    def rate(self) -> float:
        """The policy's learning rate of this iteration."""
        return self.settings.learning_rate * self.settings.rate_factor(self.iteration) * self.guards.rate

    def _set_rates(self) -> None:
        factor = self.settings.rate_factor(self.iteration) * self.guards.rate
        for group, rate in zip(
            self.optimizer.param_groups, (self.settings.learning_rate, self.settings.value_rate), strict=True
        ):
            group["lr"] = rate * factor
