"""Evaluation: let checkpoints answer held-out prompts and compare them, with intervals.

Reference: win rate over paired prompts as in Rafailov et al. 2023, section 6, ties counting one half, with a bootstrap
interval over prompts; KL by the k1 and k3 estimators of Schulman 2020. The judge is the gold function if there is one,
else the reward model. The greedily decoded baseline is a second baseline, because a win rate over samples flatters.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem, listed, nearest
from pipeline.evaluation.prompts import DEFAULT_GROUP
from pipeline.kind.traits import Reading, Traits, Workload
from pipeline.stage import Among, Code, Data, Input, StageConfig, register_kind


class Config(StageConfig):
    """Configuration of an evaluation.

    Attributes:
        data: held-out prompts; further columns go to the functions.
        models: checkpoints to compare.
        baseline: one of `models`; the others are compared with it, and KL is measured to it.
        reward: a reward model that scores the answers.
        gold: a Python function that scores the answers, with trl's signature of reward functions.
        correct: a Python function that says which answers are right (1 or 0).
        judge: whose scores decide a win; by default `gold` where there is one.
        group_by: column that names the task of a prompt.
        greedy: models also decoded greedily and listed as `NAME (greedy)`; by default the baseline.
        rounds: models of one round after another, the start first; each is also compared with the one before.
        temperature: sampling temperature.
        max_new_tokens: longest answer.
        reference: column with the right answer, kept beside the answers; by default the first of the usual names
            (`answer`, `reference`, `solution`, …), else what follows the prompt in `messages`.
        limit: only so many prompts: a sample drawn with the seed, in which every task keeps its share.
        resamples: number of resamples of every bootstrap.
        title: title of the report.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True), Field(min_length=1)]
    baseline: Annotated[str, Among("models")]
    reward: Annotated[str | None, Input("reward", external=True)] = None
    gold: Annotated[str | None, Code()] = None
    correct: Annotated[str | None, Code()] = None
    judge: Literal["gold", "reward"] | None = None
    group_by: str = DEFAULT_GROUP
    greedy: Annotated[list[str] | None, Among("models")] = None
    rounds: Annotated[list[str] | None, Among("models"), Field(min_length=2)] = None
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=128, ge=1)
    reference: str | None = None
    limit: int | None = Field(default=None, ge=1)
    resamples: int = Field(default=2000, ge=100)
    title: str = "Evaluation"

    @property
    def judges_by_reward(self) -> bool:
        """Whether the reward model's scores decide who wins."""
        return self.judge == "reward" or (self.judge is None and self.gold is None)

    @property
    def responses_per_prompt(self) -> int:
        """Answers to a prompt by all models, greedy ones included."""
        return len(self.models) + (1 if self.greedy is None else len(self.greedy))

    @property
    def passes_per_response(self) -> int:
        """How often a model reads an answer: once while it is sampled, once more for the KL to the baseline."""
        return 2

    def check(self) -> list[Problem]:
        """Return problems of an unknown baseline or greedy model, and of a missing judge."""
        problems = [
            Problem(f"{what} `{name}`", f"one of models: {listed(self.models)}", nearest(name, self.models))
            for what, names in (
                ("baseline", [self.baseline]),
                ("greedy", self.greedy or []),
                ("rounds", self.rounds or []),
            )
            for name in names
            if name not in self.models
        ]
        if self.rounds is not None and len(set(self.rounds)) < len(self.rounds):
            problems.append(Problem("rounds names a model twice", "each once"))
        if self.gold is None and self.reward is None:
            problems.append(Problem("no judge", "`gold` or `reward`", "name a reward model or a Python function"))
        if self.judge is not None and getattr(self, self.judge) is None:
            problems.append(
                Problem(f"judge is {self.judge}", f"a `{self.judge}` to judge with", f"add `{self.judge}:`")
            )
        return problems


register_kind(
    "evaluate",
    version=3,
    config=Config,
    run="pipeline.stages.evaluate.run:run",
    makes="report",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        replicated=True,
        reads={"data": Reading(long_prompts="answered", held_out_only=True)},
        workload=Workload(over="answers", dropout=False),
    ),
)
