"""Judge: a reward model, a function or a server says which of two responses is better; its verdicts become pairs.

    data:
      compared: {artifact: candidates, file: candidates.jsonl}     # of a stage of kind sample
      pairs:    {artifact: verdicts, file: preferences.jsonl}
    stages:
      verdicts: {kind: judge, data: compared, endpoint: {url: "http://127.0.0.1:8000/v1", model: judge-7b}}
      dpo:      {kind: dpo, data: pairs, model: sft}

Both orders are always asked, and a verdict that flips is a tie. `preferences.jsonl` has the pairs with a preference,
`verdicts.jsonl` every pair with what the judge said, `report.md` how it judges: how often it prefers what it sees
first, flips, prefers the longer response, fails, and agrees with people.

References: Zheng et al. 2023, arXiv:2306.05685, section 3.4 (position bias, both orders); Bai et al. 2022,
arXiv:2212.08073, section 4.1 (a model's preferences as probabilities); Lee et al. 2023, arXiv:2309.00267, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from pipeline.endpoints.forecast import cap_problem
from pipeline.errors import Problem
from pipeline.evaluation.judges.endpoint import FEWER, WHERE, Endpoint, asking_of
from pipeline.evaluation.judges.pairs import pairs_of
from pipeline.kind.traits import Reading, RequestForecast, RequestRows, Requests, Traits
from pipeline.stage import Code, Data, Input, StageConfig, register_kind

JUDGES = ("reward", "function", "endpoint")


class Config(StageConfig):
    """Configuration of a judge.

    Attributes:
        data: candidates of a stage of kind sample, or pairs of answers as in preference data.
        reward: a reward model that judges: the higher score is better.
        function: a Python function that judges. It scores responses with trl's signature of reward functions; with
            `pairwise` it compares two.
        endpoint: a server that judges.
        pairwise: whether the function gets both responses: `completions` has two for each prompt, and it returns the
            probability that the first is better.
        pairs_per_prompt: random pairs of each prompt's candidates; 0 is all. Those that `sample` drew when not given.
        limit: at most so many pairs, drawn with the seed.
        people: preferences of people; the report says how far the judge agrees on the same pairs.
        max_errors: largest share of pairs that may end without a verdict.
    """

    data: Annotated[str, Data(("preference", "candidates"))]
    reward: Annotated[str | None, Input("reward", external=True)] = None
    function: Annotated[str | None, Code()] = None
    endpoint: Endpoint | None = None
    pairwise: bool = False
    pairs_per_prompt: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    people: Annotated[str | None, Data("preference")] = None
    max_errors: float = Field(default=0.2, ge=0, le=1)

    def check(self) -> list[Problem]:
        """Return a problem unless there is exactly one judge, and those of the server's settings."""
        given = [name for name in JUDGES if getattr(self, name) is not None]
        problems = self.endpoint.check() if self.endpoint is not None else []
        if len(given) != 1:
            said = f"{' and '.join(given)} are set" if given else "no judge is set"
            problems.append(Problem(said, "one of reward, function and endpoint", "keep the one that is to judge"))
        if self.pairwise and self.function is None:
            problems.append(Problem("pairwise is true without a function", "`function`", "leave `pairwise` out"))
        return problems


def _machine_problems(config: Config) -> Iterator[Problem]:
    if config.endpoint is not None:
        yield from config.endpoint.machine_problems(WHERE)


def _forecast(config: Config, rows: RequestRows) -> list[tuple[RequestForecast, Problem | None]]:
    assert config.endpoint is not None, "only a server is asked"
    choice = pairs_of(rows.rows, rows.shape, per_prompt=config.pairs_per_prompt, limit=config.limit, seed=rows.seed)
    forecast = asking_of(config.endpoint, choice.pairs, rows.store).forecast
    return [(forecast, cap_problem(config.endpoint, WHERE, forecast, FEWER))]


def _cap(config: Config) -> str:
    assert config.endpoint is not None, "only a server is asked"
    return f"at most {config.endpoint.max_calls:,} (endpoint.max_calls)"


register_kind(
    "judge",
    version=3,
    config=Config,
    run="pipeline.stages.judge.run:run",
    makes="preferences",
    doc=__doc__,
    traits=Traits(
        reads={"data": Reading(encodings={}), "people": Reading(encodings={}, is_test=True)},
        machine_check=_machine_problems,
        requests=Requests(asks=lambda config: config.endpoint is not None, forecast=_forecast, cap=_cap),
    ),
)
