"""Implicit reward: score a response by how much likelier a preference-trained policy finds it than its reference does.

    r(x, y) = β · [log π_policy(y|x) − log π_reference(y|x)], summed over the response's tokens, end token included

Nothing is trained: the artifact holds both models, and every stage that takes a reward model takes it.

    taste: {kind: dpo, data: pairs, model: base, train: {beta: 0.2}}
    rm: {kind: implicit_reward, policy: taste, reference: base, beta: 0.2, test: pairs_test}
    ppo: {kind: ppo, data: prompts, model: sft, reward: rm}

Reference: Rafailov et al. 2023, arXiv:2305.18290, section 5; as a reward for reinforcement learning Zhong et al. 2024,
arXiv:2404.18922; for a policy that any of these losses trained Yuan et al. 2024, arXiv:2412.01981. A likelihood as a
reward (`reference_weight` below 1): Huang et al. 2024, arXiv:2412.01951.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import Reading, Traits, Workload
from pipeline.stage import Data, Input, StageConfig, register_kind


class Config(StageConfig):
    """Configuration of an implicit reward.

    Attributes:
        policy: the language model that learnt the preferences.
        reference: the language model it is compared with: the one it learnt them from.
        beta: factor of the log-ratio: the β that the policy was trained with.
        reference_weight: weight w of the reference, 0 to 1: r = β · (log π_policy − w · log π_reference). Below 1, what
            both models find unlikely costs reward, so that the policy trained on it does not wander there; longer
            responses then cost a little too.
        test: held-out pairs for the report.
        group_by: column to report accuracy by. Columns `gold_chosen` and `gold_rejected`, where the rows have them,
            are true scores: agreement with them is reported.
        property_column: column that names the one property in which the answers of a pair differ, such as `answer` or
            `polite`; empty or null where they differ in several. The report has the accuracy by property.
    """

    policy: Annotated[str, Input(external=True)]
    reference: Annotated[str, Input(external=True)]
    beta: float = Field(gt=0, allow_inf_nan=False)
    reference_weight: float = Field(default=1.0, ge=0, le=1)
    test: Annotated[str | None, Data("preference")] = None
    group_by: str | None = None
    property_column: str | None = None

    def check(self) -> list[Problem]:
        """Return a problem if every reward would be 0, or the report is asked for without pairs."""
        problems = super().check()
        if self.policy == self.reference and self.reference_weight == 1:
            statement = f"policy and reference are both `{self.policy}`: every reward would be 0"
            problems.append(Problem(statement, "the model that the policy was trained from as `reference`"))
        for field in ("group_by", "property_column"):
            if getattr(self, field) is not None and self.test is None:
                statement = f"{field} is `{getattr(self, field)}`, and there are no pairs to report on"
                problems.append(Problem(statement, "pairs in `test`", f"name them, or remove `{field}`"))
        return problems


register_kind(
    "implicit_reward",
    version=1,
    config=Config,
    run="pipeline.stages.implicit_reward.run:run",
    makes="reward",
    doc=__doc__,
    traits=Traits(
        reads={
            "test": Reading(
                is_test=True,
                bound="context",
                held_out_only=True,
                columns=frozenset({"gold_chosen", "gold_rejected"}),
            )
        },
        workload=Workload(over="candidates", sequences_per_row=2, dropout=False),
        holds=("policy", "reference"),
    ),
)
