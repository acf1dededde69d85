"""The reward fields of a recipe that all on-policy stages share. No torch.

`pipeline/recipe/rewards.py` expands their short forms.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from pipeline.errors import Problem, counted
from pipeline.plain_data import JsonObject
from pipeline.stage import Code, Input, StageConfig

_ENTRY: JsonObject = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {"model": {"type": "string"}, "function": {"type": "string"}, "weight": {"type": "number"}},
        },
    ]
}
SHORT = WithJsonSchema({"anyOf": [*_ENTRY["anyOf"], {"type": "array", "items": _ENTRY}]})


TOKEN_REWARDS_REMEDY = "add one, or remove `token_rewards`"


class RewardFields(StageConfig):
    """Where a response's reward comes from.

    Attributes:
        reward: a reward model, `{function: FILE.py:NAME}`, or a list of them with weights; their weighted sum counts.
        reward_functions: Python functions with trl's signature; written as `reward: {function: …}`.
        reward_weights: one per reward, models first.
        reward_combine: `sum` or `mean`; `min` and `uwo` (mean less variance) are for ensembles of reward models, which
            are harder to game together (Coste et al. 2023, arXiv:2310.02743).
    """

    reward: Annotated[list[str], Input("reward", external=True), SHORT] = Field(default=[])
    reward_functions: Annotated[list[str], Code()] = Field(default=[])
    reward_weights: list[float] = Field(default=[])
    reward_combine: Literal["sum", "mean", "min", "uwo"] = "sum"

    def check(self) -> list[Problem]:
        """Return contradictions in the reward and in the blocks."""
        return [*self.reward_problems(), *super().check()]

    def reward_problems(self) -> list[Problem]:
        """Return a problem if there is no reward, or not one weight for each reward."""
        count = len(self.reward) + len(self.reward_functions)
        if not count:
            return [Problem("no reward", "a reward model's name or {function: FILE.py:NAME}", "add `reward:`")]
        if self.reward_weights and len(self.reward_weights) != count:
            return [
                Problem(f"{len(self.reward_weights)} reward_weights for {counted(count, 'reward')}", "one for each")
            ]
        return []

    @property
    def weights(self) -> list[float]:
        """One weight per reward, models first."""
        return list(self.reward_weights) or [1.0] * (len(self.reward) + len(self.reward_functions))


def rewards_given(config: RewardFields) -> list[str]:
    """Return the names of all rewards, models first: for metrics and messages."""
    return [*config.reward, *(spec.rpartition(":")[2] for spec in config.reward_functions)]


def no_token_rewards() -> Problem:
    """Return the problem that rewards are asked for token by token, and no reward can be given so."""
    statement = "train.token_rewards is true, and no reward is an implicit one with the policy's tokenizer"
    expected = "a stage of kind implicit_reward in `reward`, its policy trained from the same base"
    return Problem(statement, expected, TOKEN_REWARDS_REMEDY)
