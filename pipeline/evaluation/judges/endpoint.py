"""A judge behind an endpoint of OpenAI's chat completions: its settings, its requests, and their forecast. No numerics.

Owns what is asked. `pipeline/endpoints/` sends the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from pipeline.endpoints.cache import VERDICTS, ReplyCache
from pipeline.endpoints.requests import ChatRequest, request_of
from pipeline.endpoints.settings import ServerSettings
from pipeline.errors import Problem
from pipeline.evaluation.judges.pairs import Pair
from pipeline.evaluation.judges.prompting import (
    DEFAULT_TEMPLATE,
    Criterion,
    filled,
    rubric_problems,
    template_problems,
)
from pipeline.evaluation.judges.verdicts import Reply
from pipeline.kind.traits import RequestForecast
from pipeline.plain_data import JsonObject

WHERE = "endpoint"
"""Key of the settings in a recipe."""

FEWER = "judge fewer pairs with `limit` or `pairs_per_prompt`"
"""What to do about too many requests."""

TOP_LOGPROBS = 20
"""Most likely tokens that are asked for at each place: the most that OpenAI's interface gives."""


class Endpoint(ServerSettings):
    """A server that speaks OpenAI's chat completions, and what it is asked.

    Attributes:
        template: text of the request, with `{prompt}`, `{first}`, `{second}`, `{rubric}` and `{format}`.
        system: system message before it.
        rubric: criteria, each with a weight; all are asked in one request.
        temperature: sampling temperature; null leaves it to the server.
        max_tokens: longest reply; null leaves it to the server.
        logprobs: whether the probabilities of the verdict are asked for; many servers pass over that.
    """

    template: str = DEFAULT_TEMPLATE
    rubric: list[Criterion] = Field(default=[])
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int | None = Field(default=256, ge=1)
    logprobs: bool = True

    def check(self) -> list[Problem]:
        """Return problems of the address, the template, the rubric and further parameters."""
        return [
            *self.problems(WHERE),
            *template_problems(self.template, self.rubric),
            *rubric_problems(self.rubric),
        ]

    def body(self) -> JsonObject:
        """Return a request without its messages."""
        body: JsonObject = {"model": self.model}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return {**body, **self.parameters}

    def requests(self, pair: Pair) -> tuple[ChatRequest, ChatRequest]:
        """Return the requests for both orders of a pair."""
        return self._request(pair, swapped=False), self._request(pair, swapped=True)

    def _request(self, pair: Pair, *, swapped: bool) -> ChatRequest:
        text = filled(self.template, self.rubric, pair, swapped=swapped)
        system: list[JsonObject] = [{"role": "system", "content": self.system}] if self.system else []
        return request_of(self.body(), self.revision, [*system, {"role": "user", "content": text}])


class Asking(NamedTuple):
    """The requests of a run.

    Attributes:
        requests: requests of both orders of each pair, by the pair's index; equal responses need none.
        forecast: their number, and the tokens of those that are not cached.
    """

    requests: dict[int, tuple[ChatRequest, ChatRequest]]
    forecast: RequestForecast


def cache_of(store: Path) -> ReplyCache[Reply]:
    """Return the cache of a store's verdicts."""
    return ReplyCache(store / VERDICTS)


def asking_of(endpoint: Endpoint, pairs: Sequence[Pair], store: Path) -> Asking:
    """Return the requests for pairs and their forecast, with what the store has in its cache."""
    requests = {i: endpoint.requests(pair) for i, pair in enumerate(pairs) if not pair.is_equal}
    unique = {request.key: request for both in requests.values() for request in both}
    known = cache_of(store).known(list(unique))
    wanted = [request for key, request in unique.items() if key not in known]
    forecast = RequestForecast(
        items=len(pairs),
        calls=len(unique),
        cached=len(known),
        prompt_tokens=sum(request.prompt_tokens for request in wanted),
        completion_tokens=None if endpoint.max_tokens is None else len(wanted) * endpoint.max_tokens,
        server=endpoint.server,
    )
    return Asking(requests, forecast)
