"""Trains a policy with trl's GRPOTrainer; `config.py` names the paper."""

from __future__ import annotations

from trl import GRPOConfig, GRPOTrainer

from pipeline.rl.on_policy.run import train_on_policy
from pipeline.stage import StageContext, StageResult
from pipeline.stages.grpo.config import Config


def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on its own responses."""
    train = config.train
    own = {"beta": train.beta, "loss_type": train.loss_type}
    return train_on_policy(ctx, config, train, GRPOTrainer, GRPOConfig, **own)
