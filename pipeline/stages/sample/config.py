"""Sample: checkpoints answer prompts, several times each; the answers are candidates for people or a judge to compare.

    data:
      asks:  {path: prompts.jsonl}
      pairs: {artifact: candidates, file: pairs.jsonl}
    stages:
      candidates: {kind: sample, data: asks, models: [sft, dpo], temperatures: [0.7, 1.0], n: 2}
      labels:     {kind: collect, data: pairs}

`candidates.jsonl` has a row for each prompt with all its answers: text, model, temperature, seed, length, why it ends.
Answers that are equal but for white space are one. Answers that name a model are marked, and stand in no pair, since
the comparison is blind. `pairs.jsonl` has `pairs_per_prompt` pairs of each prompt's answers, each with the probability
with which it was chosen: random ones, or with `pair_choice` those of which reward models expect the most.

References: Stiennon et al. 2020, arXiv:2009.01325, section 3.3 (samples of several policies are compared); Chiang et
al. 2024, arXiv:2403.04132, section 3 (answers that give the model's identity away are left out).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from pipeline.errors import Problem
from pipeline.kind.traits import Reading, Traits, Workload
from pipeline.records.pair_choice import BY_SCORE, PairChoice
from pipeline.stage import Data, Input, register_kind

_NAMES = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Config(PairChoice):
    """Configuration of sampling.

    Attributes:
        data: prompts.
        models: checkpoints that answer.
        temperatures: sampling temperatures; every model answers at each.
        n: answers of a model to a prompt at each temperature.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all.
        max_new_tokens: longest answer.
        stop: strings before which an answer is cut.
        log_probabilities: whether the log-probability of each answer is computed, by a pass of its own.
        reward: reward models that score every answer, one name or a list; `pair_choice` needs them.
        limit: only so many prompts, drawn with the seed.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True), Field(min_length=1)]
    temperatures: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(default=[1.0])
    n: int = Field(default=2, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=128, ge=1)
    stop: list[str] = Field(default=[])
    log_probabilities: bool = False
    reward: Annotated[list[str], Input("reward", external=True), BeforeValidator(_listed), _NAMES] = Field(default=[])
    limit: int | None = Field(default=None, ge=1)

    @property
    def responses_per_prompt(self) -> int:
        """Answers to a prompt by all models."""
        return len(self.models) * len(self.temperatures) * self.n

    @property
    def passes_per_response(self) -> int:
        """How often a model reads an answer: once while it is sampled, once more for its log-probability."""
        return 1 + self.log_probabilities

    def check(self) -> list[Problem]:
        """Return a problem if there is nothing to compare, or if a model or temperature is named twice."""
        problems = super().check()
        for word, given in (("models", self.models), ("temperatures", self.temperatures), ("reward", self.reward)):
            if len(set(given)) < len(given):
                remedy = "" if word == "reward" else "`n` asks for more answers"
                problems.append(Problem(f"{word} names one twice", "each once", remedy))
        if self.responses_per_prompt < 2:
            problems.append(Problem("n is 1, with one model at one temperature", "two answers to compare", "raise n"))
        if self.pair_choice in BY_SCORE and not self.reward:
            statement = f"pair_choice is {self.pair_choice}, and no reward model says what to expect"
            problems.append(
                Problem(statement, "`reward`, a reward model or a list of them", "or leave pair_choice out")
            )
        return problems


register_kind(
    "sample",
    version=3,
    config=Config,
    run="pipeline.stages.sample.run:run",
    makes="candidates",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        replicated=True,
        reads={"data": Reading(long_prompts="answered")},
        workload=Workload(over="answers", dropout=False),
    ),
)
