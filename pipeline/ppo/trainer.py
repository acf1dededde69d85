"""PPO for language models, whole: roll out, score, estimate advantages, update; then look whether all is well.

    for metrics in trainer.iterations(): ...

Everything random is a function of the seed, the iteration and a place in the rollout, so a run resumed at an
iteration, or
spread over several processes, takes the same steps. The loss of an optimizer step is the sum over its tokens divided by
their number over all micro-batches and processes, so how a minibatch is cut does not matter either.

References: Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155; Huang et al. 2024,
arXiv:2403.17031.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.parallel.ranks import Ranks
from pipeline.ppo import measures
from pipeline.ppo.advantage import old_new_divergence
from pipeline.ppo.averaging import Average
from pipeline.ppo.control import KLController, ScoreScale
from pipeline.ppo.episodes import Episode, Prompt, idle_episode, micro_batches, pack
from pipeline.ppo.estimation import estimate, learnt
from pipeline.ppo.guards import Guards
from pipeline.ppo.loss import PolicyLoss, ValueLoss, importance_weights, kl_loss, policy_loss, value_loss
from pipeline.ppo.policy import Outputs, Policy
from pipeline.ppo.rollout import Engine, prompt_order, roll_out
from pipeline.ppo.settings import PPOSettings
from pipeline.ppo.shaping import same_length_reward
from pipeline.ppo.steppers import PlainEngine, TrainEngine, are_finite, clip_factors, drifted

Score = Callable[[Sequence[Episode]], list[float]]
"""Returns one score per episode, higher is better."""
LanguageLoss = Callable[[Any, int], torch.Tensor]
"""Returns the PPO-ptx loss of a model at an optimizer step, mean per token."""

_MOST_RATIO_KL = 1.5
"""The remaining epochs are skipped once new and old policy differ by this many times `target_kl`."""


@dataclass
class PPOTrainer:
    """Trains a policy.

    Attributes:
        policy: with its value function and reference.
        settings: of the algorithm.
        prompts: to sample from.
        score: the reward.
        engine: samples.
        eos_ids: tokens that end a response; none for responses of a fixed length.
        decode_text: tokens to text.
        held_out: prompts of the evaluation; may be empty.
        seed: of everything random.
        ranks: the processes of the run.
        language_loss: for PPO-ptx.
        on_step: told (optimizer steps done, of all) while an iteration runs.
        stepper: what holds the optimizer; a plain one when omitted.
        watch: scores held-out responses by what nobody learns from, to see whether the reward is gamed.
        ends_are_taught: whether the chat template's answers end with an end token.
        on_skip: given the episodes of an optimizer step that was left out.
    """

    policy: Policy
    settings: PPOSettings
    prompts: Sequence[Prompt]
    score: Score
    engine: Engine
    eos_ids: Sequence[int]
    decode_text: Callable[[Sequence[int]], str]
    held_out: Sequence[Prompt] = ()
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    language_loss: LanguageLoss | None = None
    on_step: Callable[[int, int], None] | None = None
    stepper: TrainEngine | None = None
    watch: Score | None = None
    ends_are_taught: bool = True
    on_skip: Callable[[Sequence[Episode]], None] | None = None

    def __post_init__(self) -> None:
        """Make the optimizer, where there is none, and what adapts."""
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
        self._kept: tuple[list[Episode], Outputs] | None = None
        self.steps_with: TrainEngine = self.stepper or PlainEngine(self.policy, s, self.ranks)
        self.average = Average(self.policy, s.ema_decay) if s.ema_decay else None

    @property
    def optimizer(self) -> Any:
        """The optimizer, with two groups: policy and value."""
        return self.steps_with.optimizer

    def iterations(self) -> Iterator[dict[str, float]]:
        """Train to the end, yielding the metrics of each iteration; `iteration` counts those done.

        Raises:
            PipelineError: a reward is wrong, gradients stay not finite, or the reference is not the start.
            Stopped: a guard ended the run.
        """
        while self.iteration < self.settings.iterations:
            yield self.iterate()

    def iterate(self) -> dict[str, float]:
        """Do one iteration."""
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
        """Look whether all processes still hold the same policy.

        Raises:
            PipelineError: they do not.
        """
        if self.ranks.count > 1 and drifted(self.steps_with.weights(), self.ranks):
            statement = f"the processes hold different weights after iteration {self.iteration}"
            problem = Problem(statement, "the same on all", "run again to resume from the last checkpoint")
            raise PipelineError(problem, exit_code=ExitCode.FAILED)

    def roll_out(self) -> list[Episode]:
        """Sample this process's share of the rollout."""
        batch = self.settings.rollout_batch
        order = prompt_order(len(self.prompts), self.iteration * batch, batch, self.seed)
        mine = self.ranks.shard([(place, self.prompts[index]) for place, index in enumerate(order)])
        return self._sample(mine, self.seed * 1_000_003 + self.iteration)

    def _sample(self, prompts: Sequence[tuple[int, Prompt]], seed: int) -> list[Episode]:
        return roll_out(
            self.steps_with.sampling(),
            self.engine,
            prompts,
            seed=seed,
            eos_ids=self.eos_ids,
            decode_text=self.decode_text,
        )

    @torch.no_grad()
    def measure(self, episodes: Sequence[Episode], *, for_update: bool = False, reference: bool = True) -> None:
        """Score the episodes, and run policy, value function and, if asked, the reference over them once.

        Where the first optimizer step of the update that follows sees the same rollout in the same forward pass (one
        minibatch of one micro-batch), that pass is kept with its graph instead of being run again.
        """
        self._kept = None
        if not episodes and not self.steps_with.in_step:  # fewer held-out prompts than processes
            return
        for episode, score in zip(episodes, self.score(episodes), strict=True):  # together, where it is sharded
            episode.score = score
        bootstrap = self.settings.truncation == "bootstrap"
        s, groups = self.settings, self._passes(episodes)
        one = len(groups) == 1 and s.minibatches == 1 and s.truncation == "terminal"
        keep = for_update and one and self.steps_with.may_keep
        for group in groups:
            if self.policy.cut is not None:
                plain = pack(group, self.policy.device)
                for episode, hidden_TH in zip(group, self.policy.lower_states(plain.ids_BT), strict=True):
                    episode.hidden_TH = hidden_TH[: episode.length].cpu().clone()
            batch = pack(group, self.policy.device, one_more=bootstrap)
            with torch.set_grad_enabled(keep):
                outputs = self.policy.forward(batch, entropy=True, entropy_gradient=s.entropy_coef > 0)
            if keep:
                self._kept = (group, outputs)
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
        """Cut episodes into micro-batches; where passes are collective, fill up with one that nobody counts."""
        groups = list(micro_batches(episodes, self.settings.token_budget))
        if not self.steps_with.in_step:
            return groups
        missing = int(self.ranks.all_reduce_max(len(groups))) - len(groups)
        return groups + [[idle_episode()] for _ in range(missing)]

    @property
    def uses_kl_penalty(self) -> bool:
        """Whether the divergence from the reference costs something: from the start, or since a guard raised β."""
        return self.settings.needs_reference or self.kl.coef > 0

    def estimate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Turn scores into advantages and returns."""
        found = estimate(
            episodes,
            self.settings,
            self.scale,
            self.ranks,
            price=self.kl.coef if self.uses_kl_penalty and not self.settings.kl_in_loss else 0.0,
            has_ends=bool(self.eos_ids),
            is_first=self.iteration == 0,
        )
        self.return_deviation = found["return_std"]
        return found

    def update(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Take the optimizer steps of one rollout."""
        s = self.settings
        self._set_rates()
        sums = measures.UpdateSums()
        on = learnt(episodes, s, has_ends=bool(self.eos_ids)).tolist()
        by_place = {episode.place: episode for episode, is_on in zip(episodes, on, strict=True) if is_on}
        total, size = s.epochs * s.minibatches, s.rollout_batch // s.minibatches
        epochs_run = 0
        for epoch in range(s.epochs):
            order = list(range(s.rollout_batch))
            random.Random(f"{self.seed}/{self.iteration}/{epoch}").shuffle(order)
            for number in range(s.minibatches):
                chosen = order[number * size : (number + 1) * size]
                mine = [by_place[place] for place in chosen if place in by_place]
                if not self._step(mine, sums):
                    return self._update_metrics(sums, epochs_run)
                if self.on_step is not None:
                    self.on_step(epoch * s.minibatches + number + 1, total)
            epochs_run += 1
        return self._update_metrics(sums, epochs_run)

    def _update_metrics(self, sums: measures.UpdateSums, epochs_run: int) -> dict[str, float]:
        scaler = self.steps_with.scaler
        scale = {"loss_scale": float(scaler.get_scale())} if scaler.is_enabled() else {}
        return {**sums.metrics(self.ranks), "epochs_run": epochs_run, "lr": self.rate, **scale}

    def _step(self, episodes: Sequence[Episode], sums: measures.UpdateSums) -> bool:
        """Take one optimizer step; return False when the new policy is too far from the old to go on."""
        s, policy = self.settings, self.policy
        (tokens,) = self.ranks.sums(float(sum(len(episode.response_ids) for episode in episodes)))
        self.steps_with.clear()
        if not tokens:
            return True
        clip = s.value_clip * max(1.0, self.return_deviation)
        divergence, largest, finite = 0.0, 0.0, True
        policy_on = 0.0 if self.iteration < s.critic_warmup else 1.0
        kept, self._kept = self._kept, None
        with_language = self.language_loss is not None and bool(s.ptx_coef) and bool(policy_on)
        groups = [kept[0]] if kept is not None else self._passes(episodes)
        for number, group in enumerate(groups, start=1):
            outputs = kept[1] if kept is not None else self._forward(group)
            policy_part, value_part = self._losses(group, outputs, clip)
            loss = policy_on * policy_part.loss_N.sum() + s.value_coef * value_part.loss_N.sum()
            if s.kl_in_loss and self.uses_kl_penalty:
                loss = loss + policy_on * self.kl.coef * kl_loss(outputs.logp_N, self._of(group, "reference_T")).sum()
            if s.entropy_coef and outputs.entropy_N is not None:
                loss = loss - policy_on * s.entropy_coef * outputs.entropy_N.sum()
            counted = group[0].place >= 0
            is_finite = bool(torch.isfinite(loss))
            finite = finite and is_finite
            last = number == len(groups) and not with_language
            self.steps_with.backward(loss / tokens * float(counted), last=last)
            if is_finite and counted:
                divergence += float(old_new_divergence(policy_part.log_ratio_N).sum())
                largest = max(largest, float(policy_part.log_ratio_N.max()))
                sums.add(policy_part, value_part)
        if with_language and self.language_loss is not None:
            spoken = policy.run(lambda: self.language_loss(policy.model, self.steps))  # type: ignore[misc]
            self.steps_with.backward(s.ptx_coef * spoken / self.ranks.count, last=True)
        elif not groups:
            self.steps_with.backward(policy.nothing(), last=True)
        (divergence,) = self.ranks.sums(divergence)
        too_far = bool(s.target_kl) and divergence / tokens > _MOST_RATIO_KL * s.target_kl
        if too_far or (s.max_ratio and self.ranks.all_reduce_max(largest) > math.log(s.max_ratio)):
            self.steps_with.discard()
            return False
        self._apply(episodes, sums, finite=finite)
        return True

    def _of(self, group: Sequence[Episode], name: str) -> torch.Tensor:
        return torch.cat([getattr(episode, name) for episode in group]).to(self.policy.device)

    def _losses(self, group: Sequence[Episode], outputs: Outputs, clip: float) -> tuple[PolicyLoss, ValueLoss]:
        s, old_N = self.settings, self._of(group, "old_T")
        weights_N = None
        if s.tis_clip and all(len(episode.sampled_T) for episode in group):
            weights_N = importance_weights(old_N, self._of(group, "sampled_T"), clip=s.tis_clip)
        policy_part = policy_loss(
            outputs.logp_N,
            old_N,
            self._of(group, "advantages_T"),
            clip_range=s.clip_range,
            clip_high=s.clip_high,
            dual_clip=s.dual_clip,
            weights_N=weights_N,
        )
        assert outputs.values_N is not None
        return policy_part, value_loss(
            outputs.values_N, self._of(group, "values_T"), self._of(group, "returns_T"), clip=clip
        )

    def _forward(self, group: Sequence[Episode]) -> Outputs:
        return self.policy.forward(pack(group, self.policy.device), entropy=self.settings.entropy_coef > 0)

    def _apply(self, episodes: Sequence[Episode], sums: measures.UpdateSums, *, finite: bool) -> None:
        """Clip and step; a step with a gradient that is not finite is left out on every process.

        In fp16 that may only mean that the loss was scaled too far. The scale halves then and nothing is wrong yet.
        """
        norms, scaler = self.steps_with.norms(), self.steps_with.scaler
        is_lost = bool(self.ranks.all_reduce_max(float(not finite)))
        if is_lost or self.ranks.all_reduce_max(float(not are_finite(norms))):
            was_scaled = scaler.get_scale() > 1
            self.steps_with.discard()
            if was_scaled and not is_lost:
                return
            sums.skipped += 1
            if self.on_skip is not None:
                self.on_skip(episodes)
            self.guards.step_skipped(self.settings)
            return
        self.guards.skipped = 0
        factors = clip_factors(norms, self.settings.max_grad_norm)
        self.steps_with.step(factors, policy=self.iteration >= self.settings.critic_warmup)
        self.steps += 1
        if self.average is not None:
            self.average.update()
        sums.norms.append(norms)

    def evaluate(self) -> tuple[dict[str, float], list[Episode]]:
        """Answer the held-out prompts, always with the same random numbers; return metrics and own episodes."""
        if not self.held_out:
            return {}, []
        mine = self.ranks.shard(list(enumerate(self.held_out)))
        episodes = self._sample(mine, self.seed * 1_000_003 + 999_983)
        self.measure(episodes)
        for episode in episodes:
            episode.hidden_TH = None
        found = measures.of_rollout(episodes, self.ranks)
        found["objective"] = found["reward"] - self.settings.kl_coef * found["kl"]
        kept = ("reward", "kl", "kl_k3", "objective", "length", "eos_rate", "entropy")
        metrics = {f"eval_{name}": found[name] for name in kept}
        if self.watch is not None:
            watched = self.watch(episodes) if episodes or self.steps_with.in_step else []
            mean, error = measures.mean_and_error(watched, self.ranks)
            metrics |= {"eval_watch": mean, "eval_watch_se": error}
        return metrics, episodes

    def kept_policy(self) -> AbstractContextManager[None]:
        """Make the policy what would be kept of it: its average, where there is one."""
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
