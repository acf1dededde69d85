"""Group relative policy optimisation (GRPO): several responses of a prompt are measured against one another, with trl.

Reference: Shao et al. 2024, arXiv:2402.03300, equations 3 and 4. trl's default loss is DAPO's (`loss_type: dapo`).
`beta` is 0 by default, so there is no reference model; set `train.beta` to add the KL penalty. A group whose responses
all get the same reward has no gradient (`frac_reward_zero_std` in the metrics). Rewards are reward models, Python
functions with trl's signature, or a weighted sum of them. On one CPU process the same seed gives the same weights, also
if the run was interrupted and resumed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from pipeline.errors import Problem
from pipeline.rl.on_policy.fields import ON_POLICY, OnPolicyConfig, OnPolicyTrain
from pipeline.stage import register_kind
from pipeline.training.fields import unknown_word

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
"""Losses of trl's GRPOTrainer, which differ in the weights of tokens and in clipping."""


class Train(OnPolicyTrain):
    """`train:` of GRPO; other keys are fields of trl's GRPOConfig.

    Attributes:
        beta: strength of the pull towards the start (β of equation 3); 0 needs no reference.
        loss_type: one of `LOSSES`.
    """

    trainer: ClassVar[str] = "GRPOConfig"
    beta: float = Field(default=0.0, ge=0)
    loss_type: str = "dapo"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and a loss trl does not have."""
        unknown = [] if self.loss_type in LOSSES else [unknown_word("loss_type", self.loss_type, LOSSES)]
        return [*super().check(), *unknown]


class Config(OnPolicyConfig):
    """Configuration of a GRPO stage.

    Attributes:
        train: how to train.
    """

    train: Train = Train()


register_kind(
    "grpo",
    version=3,
    config=Config,
    run="pipeline.stages.grpo.train:run",
    makes="model",
    doc=__doc__,
    traits=replace(ON_POLICY, parallel=True),
)
