"""The fields of PPO's `train:`, with their defaults and the papers these come from. No torch.

References: Schulman et al. 2017 (PPO, arXiv:1707.06347); Schulman et al. 2016 (GAE, arXiv:1506.02438); Ziegler et al.
2019 (adaptive KL, arXiv:1909.08593); Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO",
arXiv:2403.17031).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.stage import Added, Runtime, StageConfig


class PPOSettings(StageConfig):
    """Settings of PPO. One iteration samples `rollout_batch` responses and trains on them for `epochs` passes.

    Attributes:
        iterations: number of rollouts.
        rollout_batch: responses per iteration, over all processes.
        epochs: passes over each rollout.
        minibatches: optimizer steps per pass.
        max_new_tokens: longest response.
        temperature: sampling temperature; log-probabilities use the same one.
        learning_rate: learning rate of the policy.
        value_learning_rate: learning rate of the value function; five times the policy's when omitted.
        lr_scheduler_type: schedule over iterations: linear or cosine decay to zero, or constant.
        warmup_iterations: iterations of linear warm-up.
        max_grad_norm: gradient norm to clip to, for policy and value function each; 0 does not clip.
        adam_epsilon: ε of AdamW.
        weight_decay: weight decay of AdamW.
        kl_coef: β, coefficient of the KL penalty per nat of divergence from the reference.
        kl_target: divergence in nats per response that an adaptive β aims at (Ziegler et al. 2019, section 2.2); β is
            fixed when omitted.
        kl_horizon: responses over which the adaptive β adapts.
        kl_in_loss: put the divergence into the loss instead of the reward: k3's value with k2's gradient.
        gamma: discount.
        lam: λ of generalised advantage estimation.
        whiten: whiten advantages to mean 0 and variance 1 over the full rollout.
        whiten_rewards: scale rewards by their standard deviation, keeping their mean.
        clip_range: ε of the probability ratio.
        clip_range_high: ε for ratios above 1 (clip-higher, Yu et al. 2025, arXiv:2503.14476); `clip_range` when
            omitted. 0.28 keeps entropy up.
        dual_clip: bound on the loss of a negative advantage, as a ratio (Ye et al. 2020, arXiv:1912.09729); 0
            disables it.
        value_clip: clip range of the value's change, in standard deviations of the returns (at least 1); 0 does not
            clip.
        value_coef: weight of the value loss.
        value_gradient: whether the gradient of a value head on the policy's trunk reaches the trunk.
        critic_warmup: number of first iterations that train the value function only.
        entropy_coef: weight of an entropy bonus.
        target_kl: mean divergence of new from old policy; the remaining epochs of a rollout are skipped beyond 1.5
            times this. 0 never skips.
        max_ratio: probability ratio of any token beyond which they are skipped too; 0 never skips.
        tis_clip: largest weight of a token whose probability under the rollout engine differs from the trainer's
            (truncated importance sampling, Yao et al. 2025); 0 disables the weights.
        ema_decay: decay of an exponential moving average of the policy, per optimizer step; the average is evaluated
            and saved. 0 disables it.
        missing_eos_penalty: subtracted from the score of a response without an end token.
        overlong_buffer: tokens before max_new_tokens over which a response's reward falls by up to 1 (DAPO's ramp).
        truncation: value after the last token of a response without an end token: 0 (`terminal`), the value function's
            estimate (`bootstrap`); `mask` leaves such responses out of the loss.
        score_clip: scores are clipped to ± this; 0 does not clip.
        score_scaling: `running` divides scores by their running standard deviation.
        score_center: `reference` subtracts the mean score of the reference's own responses, measured once.
        token_rewards: give an implicit reward token by token, to each its share of the log-ratio, instead of all at the
            last token (Zhong et al. 2024, arXiv:2404.18922); the sum over a response is the same.
        ptx_coef: weight of a language-model loss on `ptx_data`, in the same optimizer step (PPO-ptx, InstructGPT
            equation 2).
        ptx_batch: conversations of `ptx_data` per optimizer step.
        eval_every: iterations between two evaluations on held-out prompts.
        eval_prompts: prompts of an evaluation; split off deterministically where the data holds out none.
        best_by: which evaluation's weights are the result: the one with the highest held-out reward minus β·KL
            (`objective`), or with the highest score of what the stage watches (`watch`): early stopping by a score that
            is not trained on.
        max_skipped: number of consecutive optimizer steps with a gradient that is not finite that ends the run.
        token_budget: padded tokens per forward pass.
    """

    iterations: int = Field(default=100, ge=1)
    rollout_batch: int = Field(default=64, ge=1)
    epochs: int = Field(default=4, ge=1)
    minibatches: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0)
    value_learning_rate: float | None = Field(default=None, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_iterations: int = Field(default=0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    adam_epsilon: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    kl_coef: float = Field(default=0.05, ge=0)
    kl_target: float | None = None
    kl_horizon: int = Field(default=10_000, ge=1)
    kl_in_loss: bool = False
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whiten: bool = True
    whiten_rewards: bool = False
    clip_range: float = Field(default=0.2, gt=0)
    clip_range_high: float | None = Field(default=None, gt=0)
    dual_clip: float = Field(default=3.0, ge=0)
    value_clip: float = Field(default=0.2, ge=0)
    value_coef: float = Field(default=0.1, ge=0)
    value_gradient: bool = True
    critic_warmup: int = Field(default=0, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    target_kl: float = Field(default=0.1, ge=0)
    max_ratio: float = Field(default=10.0, ge=0)
    tis_clip: float = Field(default=2.0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    overlong_buffer: int = Field(default=0, ge=0)
    truncation: Literal["terminal", "bootstrap", "mask"] = "terminal"
    score_clip: float = Field(default=10.0, ge=0)
    score_scaling: Literal["none", "running"] = "none"
    score_center: Literal["none", "reference"] = "none"
    token_rewards: Annotated[bool, Added()] = False
    ptx_coef: float = Field(default=0.0, ge=0)
    ptx_batch: int = Field(default=8, ge=1)
    eval_every: int = Field(default=10, ge=1)
    eval_prompts: int = Field(default=64, ge=1)
    best_by: Annotated[Literal["objective", "watch"], Added()] = "objective"
    max_skipped: int = Field(default=5, ge=1)
    token_budget: Annotated[int, Runtime()] = Field(default=4096, ge=1)

    @property
    def value_rate(self) -> float:
        """The value function's learning rate, with its default applied."""
        return 5 * self.learning_rate if self.value_learning_rate is None else self.value_learning_rate

    def rate_factor(self, done: int) -> float:
        """Return the schedule's factor on both learning rates after ``done`` iterations."""
        if done < self.warmup_iterations:
            return (done + 1) / (self.warmup_iterations + 1)
        share = (done - self.warmup_iterations) / max(1, self.iterations - self.warmup_iterations)
        shape = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
        return shape[self.lr_scheduler_type]

    @property
    def clip_high(self) -> float:
        """ε for ratios above 1, with its default applied."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high

    @property
    def needs_reference(self) -> bool:
        """Whether training uses a KL penalty from the start; evaluations measure the divergence in any case."""
        return self.kl_coef > 0 or self.kl_target is not None

    def check(self) -> list[Problem]:
        """Return contradictions between fields."""
        problems = []
        if self.kl_target is not None and not self.kl_target > 0:
            remedy = "give the divergence in nats you want, e.g. 6, or leave it out for a fixed kl_coef"
            problems.append(Problem(f"train.kl_target is {self.kl_target:g}", "must be > 0", remedy))
        if self.kl_target is not None and self.kl_coef == 0:
            remedy = "an adaptive coefficient is multiplied, so it never leaves 0"
            problems.append(Problem("train.kl_coef is 0 with a kl_target", "must be > 0", remedy))
        if self.rollout_batch % self.minibatches:
            fitting = [n for n in range(1, self.rollout_batch + 1) if self.rollout_batch % n == 0]
            near = min(fitting, key=lambda n: abs(n - self.minibatches))
            statement = f"train.rollout_batch {self.rollout_batch} does not divide into {self.minibatches} minibatches"
            problems.append(Problem(statement, "equal minibatches", f"use minibatches: {near}"))
        if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
            statement = f"train.dual_clip is {self.dual_clip:g}"
            problems.append(Problem(statement, f"above 1 + clip_range ({1 + self.clip_high:g})", "0 switches it off"))
        if self.max_ratio and self.max_ratio <= 1 + self.clip_high:
            statement = f"train.max_ratio is {self.max_ratio:g}"
            problems.append(Problem(statement, f"above 1 + clip_range ({1 + self.clip_high:g})", "0 switches it off"))
        if self.overlong_buffer >= self.max_new_tokens:
            statement = f"train.overlong_buffer is {self.overlong_buffer}"
            problems.append(
                Problem(statement, f"less than max_new_tokens ({self.max_new_tokens})", "0 switches it off")
            )
        return problems
