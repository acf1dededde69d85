"""Trains a policy with trl's RLOOTrainer; `config.py` names the paper."""

from __future__ import annotations

from trl import RLOOConfig, RLOOTrainer

from pipeline.rl.on_policy.run import train_on_policy
from pipeline.rl.on_policy.trainer import OnPolicy
from pipeline.stage import StageContext, StageResult
from pipeline.stages.rloo.config import Config


class OnPolicyRLOOTrainer(OnPolicy, RLOOTrainer):  # type: ignore[misc]
    """trl's RLOOTrainer with our order of prompts, and checkpoints that include its rollouts."""


def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on its own responses."""
    return train_on_policy(ctx, config, config.train, OnPolicyRLOOTrainer, RLOOConfig, beta=config.train.beta)
