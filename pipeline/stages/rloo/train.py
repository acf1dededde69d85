"""Trains a policy with trl's RLOOTrainer; `config.py` names the paper."""

from __future__ import annotations

from trl import RLOOConfig, RLOOTrainer

from pipeline.rl.on_policy.run import train_on_policy
from pipeline.stage import StageContext, StageResult
from pipeline.stages.rloo.config import Config


def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on its own responses."""
    return train_on_policy(ctx, config, config.train, RLOOTrainer, RLOOConfig, beta=config.train.beta)
