"""Sample: checkpoints answer prompts, several times each; the answers are candidates for people or a judge to compare.

Models behind servers answer beside them (`endpoints`).

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

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

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
from pipeline.errors import Problem
from pipeline.kind.traits import Reading, RequestForecast, RequestRows, Requests, Traits, Workload
from pipeline.models.generate.engines.names import EngineName
from pipeline.plain_data import ShapedRow
from pipeline.records.pair_choice import BY_SCORE, LEAST_RANKED, PairChoice
from pipeline.stage import Added, Data, Input, register_kind

FEWER = "ask for fewer answers with `limit` or `n`"
"""What to do about too many calls."""

_NAMES = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Config(PairChoice):
    """Configuration of sampling.

    Attributes:
        data: prompts.
        models: checkpoints that answer.
        endpoints: models behind servers that answer too, by name.
        temperatures: sampling temperatures; every model answers at each.
        n: answers of a model to a prompt at each temperature.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all.
        max_new_tokens: longest answer.
        stop: strings before which an answer is cut.
        log_probabilities: whether the log-probability of each answer is computed, by a pass of its own.
        reward: reward models that score every answer, one name or a list; `pair_choice` needs them.
        limit: only so many prompts, drawn with the seed.
        engine: what samples: `batched` is our own loop, `generate` that of transformers, and `vllm` is vLLM, which
            reads the checkpoints itself.
        max_errors: largest share of an endpoint's answers that may fail; those that failed are left out.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True)] = Field(default=[])
    endpoints: Endpoints = Field(default={})
    temperatures: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(default=[1.0])
    n: int = Field(default=2, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=128, ge=1)
    stop: list[str] = Field(default=[])
    log_probabilities: bool = False
    reward: Annotated[list[str], Input("reward", external=True), BeforeValidator(_listed), _NAMES] = Field(default=[])
    limit: int | None = Field(default=None, ge=1)
    engine: Annotated[EngineName, Added()] = "batched"
    max_errors: Annotated[float, Added(), Field(ge=0, le=1)] = 0.2

    @property
    def responses_per_prompt(self) -> int:
        """Answers to a prompt by all checkpoints."""
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
        count = len(self.models) + len(self.endpoints)
        if not count:
            expected = "`models`, checkpoints that answer, or `endpoints`, models behind servers"
            problems.append(Problem("neither models nor endpoints is set", expected))
        elif count * len(self.temperatures) * self.n < 2:
            problems.append(Problem("n is 1, with one model at one temperature", "two answers to compare", "raise n"))
        elif self.pair_choice == "rank" and (each := count * len(self.temperatures) * self.n) < LEAST_RANKED:
            statement = f"n is {self.n}, and each prompt has {each} answers"
            problems.append(Problem(statement, f"{LEAST_RANKED} answers or more to rank", "raise n"))
        problems += self._endpoint_problems()
        if self.pair_choice in BY_SCORE and not self.reward:
            statement = f"pair_choice is {self.pair_choice}, and no reward model says what to expect"
            problems.append(
                Problem(statement, "`reward`, a reward model or a list of them", "or leave pair_choice out")
            )
        return problems

    def _endpoint_problems(self) -> Iterator[Problem]:
        yield from endpoint_problems(self.endpoints, self.models)
        for name, endpoint in sorted(self.endpoints.items()):
            if self.top_k and "top_k" not in endpoint.parameters:
                remedy = f"write it into endpoints.{name}.parameters too, if the server knows it"
                yield Problem(f"top_k is {self.top_k}, which chat completions do not have", "0 for an endpoint", remedy)
        if self.engine != "batched" and not self.models:
            statement, remedy = f"engine is {self.engine} without models", "leave it out: servers choose their own"
            yield Problem(statement, "checkpoints that it samples from", remedy)
        if "max_errors" in self.model_fields_set and not self.endpoints:
            yield Problem("max_errors has no effect without endpoints", remedy="leave it out")


def drawn(places: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Return the places of the prompts that are answered: all, or ``limit`` of them, drawn with the seed."""
    if limit is None or limit >= len(places):
        return list(places)
    return sorted(random.Random(seed).sample(places, limit))


def endpoint_passes(
    config: Config, prompts: Sequence[ShapedRow], places: Sequence[int], seed: int
) -> list[EndpointPass]:
    """Return what the endpoints are asked, by name, temperature and number of the answer."""
    heats, samples = config.temperatures, range(config.n)
    return [
        pass_of(
            name,
            endpoint,
            AnswerSampling(heat, config.max_new_tokens, config.top_p, config.log_probabilities, sample),
            prompts,
            places,
            seed,
        )
        for (name, endpoint), heat, sample in product(sorted(config.endpoints.items()), heats, samples)
    ]


def _forecast(config: Config, rows: RequestRows) -> list[tuple[RequestForecast, Problem | None]]:
    places = drawn(range(len(rows.rows)), config.limit, rows.seed)
    passes = endpoint_passes(config, [rows.rows[place] for place in places], places, rows.seed)
    return [(one.forecast, one.problem) for one in wanted_of(passes, answers_cache(rows.store), FEWER).values()]


register_kind(
    "sample",
    version=4,
    config=Config,
    run="pipeline.stages.sample.run:run",
    makes="candidates",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        replicated=True,
        reads={"data": Reading(long_prompts="answered")},
        workload=Workload(over="answers", dropout=False),
        machine_check=lambda config: endpoint_machine_problems(config.endpoints),
        requests=Requests(
            asks=lambda config: bool(config.endpoints),
            forecast=_forecast,
            cap=lambda config: cap_in_words(config.endpoints),
        ),
    ),
)
