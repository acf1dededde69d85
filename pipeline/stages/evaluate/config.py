"""Evaluation: let checkpoints answer held-out prompts and compare them, with intervals.

Reference: win rate over paired prompts as in Rafailov et al. 2023, section 6, ties counting one half, with a bootstrap
interval over prompts; KL by the k1 and k3 estimators of Schulman 2020. The judge is the gold function if there is one,
else the reward model. The greedily decoded baseline is a second baseline, because a win rate over samples flatters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipeline.endpoints.answers import (
    AnswerSampling,
    EndpointPass,
    Endpoints,
    answers_cache,
    cap_in_words,
    endpoint_machine_problems,
    endpoint_problems,
    pass_of,
    wanted_of,
)
from pipeline.errors import Problem, listed, nearest
from pipeline.evaluation.prompts import DEFAULT_GROUP, Asked, ask
from pipeline.kind.traits import Reading, RequestForecast, RequestRows, Requests, Traits, Workload
from pipeline.models.generate.engines.names import EngineName
from pipeline.stage import Added, Among, Code, Data, Input, StageConfig, VariantsOf, register_kind

MOST_ANSWERS = 256
"""Most answers of `best_of_n`."""
FEWER = "ask fewer prompts with `limit`"
"""What to do about too many calls."""


class Variant(StageConfig):
    """What a model is among those that differ in settings only.

    Attributes:
        stage: name that all of them have in common; the figure has a line for each.
        settings: its settings by name; the mean is taken over models that differ in `seed` only, or `NAME.seed`.
    """

    stage: str
    settings: dict[str, str | int | float | bool | None] = Field(min_length=1)


class Config(StageConfig):
    """Configuration of an evaluation.

    Attributes:
        data: held-out prompts; further columns go to the functions.
        models: checkpoints to compare.
        endpoints: models behind servers that are compared too, by name; KL is not measured of them.
        baseline: one of `models` or `endpoints`; the others are compared with it, and KL is measured to a checkpoint.
        reward: a reward model that scores the answers.
        gold: a Python function that scores the answers, with trl's signature of reward functions.
        correct: a Python function that says which answers are right (1 or 0).
        judge: whose scores decide a win; by default `gold` where there is one.
        group_by: column that names the task of a prompt.
        greedy: models also decoded greedily and listed as `NAME (greedy)`; by default the baseline.
        rounds: models of one round after another, the start first; each is also compared with the one before.
        variants: stage and settings of the models that differ in settings only; a sweep fills it in. The report has
            a table of the settings with means over seeds, and a figure of the score over KL.
        best_of_n: the baseline also answers each prompt so often that the report has the best of n, by the reward model
            (gold without one), for every n up to this: what choosing gains beside training, at a known KL.
        temperature: sampling temperature.
        max_new_tokens: longest answer.
        reference: column with the right answer, kept beside the answers; by default the first of the usual names
            (`answer`, `reference`, `solution`, …), else what follows the prompt in `messages`.
        limit: only so many prompts: a sample drawn with the seed, in which every task keeps its share.
        engine: what samples: `batched` is our own loop, `generate` that of transformers, and `vllm` is vLLM, which
            reads the checkpoints itself.
        resamples: number of resamples of every bootstrap.
        title: title of the report.
        max_errors: largest share of an endpoint's answers that may fail; a prompt without an answer is left out.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True)] = Field(default=[])
    endpoints: Endpoints = Field(default={})
    baseline: Annotated[str, Among("models")]
    reward: Annotated[str | None, Input("reward", external=True)] = None
    gold: Annotated[str | None, Code()] = None
    correct: Annotated[str | None, Code()] = None
    judge: Literal["gold", "reward"] | None = None
    group_by: str = DEFAULT_GROUP
    greedy: Annotated[list[str] | None, Among("models")] = None
    rounds: Annotated[list[str] | None, Among("models", is_sequence=True), Field(min_length=2)] = None
    variants: Annotated[dict[str, Variant], Added(), VariantsOf("models")] = Field(default={})
    best_of_n: Annotated[int | None, Added(), Field(ge=2, le=MOST_ANSWERS)] = None
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=128, ge=1)
    reference: str | None = None
    limit: int | None = Field(default=None, ge=1)
    engine: Annotated[EngineName, Added()] = "batched"
    resamples: int = Field(default=2000, ge=100)
    title: str = "Evaluation"
    max_errors: Annotated[float, Added(), Field(ge=0, le=1)] = 0.2

    @property
    def contestants(self) -> list[str]:
        """Names of all that is compared: checkpoints, then endpoints in the order of their names."""
        return [*self.models, *sorted(self.endpoints)]

    @property
    def also_greedy(self) -> list[str]:
        """Names of what is decoded greedily too."""
        return [self.baseline] if self.greedy is None else self.greedy

    @property
    def judges_by_reward(self) -> bool:
        """Whether the reward model's scores decide who wins."""
        return self.judge == "reward" or (self.judge is None and self.gold is None)

    @property
    def responses_per_prompt(self) -> int:
        """Answers to a prompt by all checkpoints, greedy ones included."""
        drawn = (self.best_of_n or 1) - 1
        return len(self.models) + sum(name in self.models for name in self.also_greedy) + drawn

    @property
    def draws(self) -> list[str]:
        """Names of the further answers of the baseline, of which the best is chosen."""
        return [f"{self.baseline} (draw {number})" for number in range(2, (self.best_of_n or 1) + 1)]

    @property
    def passes_per_response(self) -> int:
        """How often a model reads an answer: once while it is sampled, once more for the KL to the baseline."""
        return 2

    def check(self) -> list[Problem]:
        """Return problems of an unknown baseline or greedy model, of endpoints, and of a missing judge."""
        names, kinds = self.contestants, "models and endpoints" if self.endpoints else "models"
        problems = [
            Problem(f"{what} `{name}`", f"one of {kinds}: {listed(names)}", nearest(name, names))
            for what, given in (
                ("baseline", [self.baseline]),
                ("greedy", self.greedy or []),
                ("rounds", self.rounds or []),
                ("variants", list(self.variants)),
            )
            for name in given
            if names and name not in names
        ]
        if not names:
            expected = "`models`, checkpoints to compare, or `endpoints`"
            problems.append(Problem("neither models nor endpoints is set", expected))
        problems += endpoint_problems(self.endpoints, self.models)
        if self.best_of_n is not None and names and self.baseline not in self.models:
            statement = f"best_of_n is {self.best_of_n}, and the baseline {self.baseline} is no checkpoint"
            problems.append(Problem(statement, "a baseline among `models`", "leave it out"))
        if self.engine != "batched" and not self.models:
            statement, remedy = f"engine is {self.engine} without models", "leave it out: servers choose their own"
            problems.append(Problem(statement, "checkpoints that it samples from", remedy))
        if "max_errors" in self.model_fields_set and not self.endpoints:
            problems.append(Problem("max_errors has no effect without endpoints", remedy="leave it out"))
        if self.rounds is not None and len(set(self.rounds)) < len(self.rounds):
            problems.append(Problem("rounds names a model twice", "each once"))
        if self.gold is None and self.reward is None:
            problems.append(Problem("no judge", "`gold` or `reward`", "name a reward model or a Python function"))
        if self.judge is not None and getattr(self, self.judge) is None:
            problems.append(
                Problem(f"judge is {self.judge}", f"a `{self.judge}` to judge with", f"add `{self.judge}:`")
            )
        return problems


def endpoint_passes(config: Config, asked: Asked, seed: int) -> dict[str, EndpointPass]:
    """Return what the endpoints are asked, by name in the report."""
    return {
        f"{name} (greedy)" if is_greedy else name: pass_of(
            name,
            endpoint,
            AnswerSampling(0.0 if is_greedy else config.temperature, config.max_new_tokens),
            asked.rows,
            asked.places,
            seed,
        )
        for name, endpoint in sorted(config.endpoints.items())
        for is_greedy in ((False, True) if name in config.also_greedy else (False,))
    }


def _forecast(config: Config, rows: RequestRows) -> Iterator[tuple[RequestForecast, Problem | None]]:
    prompts = rows.rows[-rows.held_out :] if rows.held_out else rows.rows
    asked = ask(prompts, group_by=config.group_by, reference=config.reference, limit=config.limit, seed=rows.seed)
    passes = endpoint_passes(config, asked, rows.seed)
    for one in wanted_of(list(passes.values()), answers_cache(rows.store), FEWER).values():
        yield one.forecast, one.problem


register_kind(
    "evaluate",
    version=4,
    config=Config,
    run="pipeline.stages.evaluate.run:run",
    makes="report",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        replicated=True,
        reads={"data": Reading(long_prompts="answered", held_out_only=True)},
        workload=Workload(over="answers", dropout=False),
        machine_check=lambda config: endpoint_machine_problems(config.endpoints),
        requests=Requests(
            asks=lambda config: bool(config.endpoints),
            forecast=lambda config, rows: list(_forecast(config, rows)),
            cap=lambda config: cap_in_words(config.endpoints),
        ),
    ),
)
