"""REINFORCE leave-one-out (RLOO): each response is measured against the mean of its prompt's others, with trl.

Reference: Ahmadian et al. 2024, arXiv:2402.14740, equation 8; the KL penalty is a part of the reward (`beta`). Rewards
are reward models, Python functions with trl's signature, or a weighted sum of them. On one CPU process the same seed
gives the same weights, also if the run was interrupted and resumed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from pipeline.rl.on_policy.fields import ON_POLICY, OnPolicyConfig, OnPolicyTrain
from pipeline.stage import register_kind


class Train(OnPolicyTrain):
    """`train:` of RLOO; other keys are fields of trl's RLOOConfig.

    Attributes:
        beta: coefficient of the KL to the start, subtracted from the reward; 0 needs no reference.
        num_generations: responses sampled of each prompt; their rewards are compared with one another.
    """

    trainer: ClassVar[str] = "RLOOConfig"
    beta: float = Field(default=0.05, ge=0)
    num_generations: int = Field(default=4, ge=2)


class Config(OnPolicyConfig):
    """Configuration of a RLOO stage.

    Attributes:
        train: how to train.
    """

    train: Train = Train()


register_kind(
    "rloo",
    version=3,
    config=Config,
    run="pipeline.stages.rloo.train:run",
    makes="model",
    doc=__doc__,
    traits=replace(ON_POLICY, parallel=True),
)
