"""A judge behind an endpoint of OpenAI's chat completions: its settings, its requests, and their forecast. No numerics.

Owns what is asked. `asking.py` sends the requests, `client.py` speaks to the server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from pipeline.errors import Problem, agreeing
from pipeline.evaluation.judges.cache import ReplyCache
from pipeline.evaluation.judges.pairs import Pair
from pipeline.evaluation.judges.prompting import (
    DEFAULT_TEMPLATE,
    Criterion,
    VerdictRequest,
    filled,
    request_of,
    rubric_problems,
    template_problems,
)
from pipeline.kind.traits import RequestForecast
from pipeline.models.load.kernels import has
from pipeline.plain_data import JsonObject
from pipeline.stage import Runtime, StageConfig

MODULES = ("openai", "tenacity")
INSTALL = "pip install 'trueup[judge]'"
RESERVED = ("model", "messages", "stream", "n", "temperature", "max_tokens", "logprobs", "top_logprobs")
"""Fields of a request that have a key of their own, or none."""

TOP_LOGPROBS = 20
"""Most likely tokens that are asked for at each place: the most that OpenAI's interface gives."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Endpoint(StageConfig):
    """A server that speaks OpenAI's chat completions, and what it is asked.

    Attributes:
        url: base URL of the server, such as `http://127.0.0.1:8000/v1`.
        model: name of the model at the server.
        revision: free text that tells two models of one name apart; another one asks everything anew.
        key_env: name of the environment variable that holds the API key; a server on this machine needs none.
        template: text of the request, with `{prompt}`, `{first}`, `{second}`, `{rubric}` and `{format}`.
        system: system message before it.
        rubric: criteria, each with a weight; all are asked in one request.
        temperature: sampling temperature; null leaves it to the server.
        max_tokens: longest reply; null leaves it to the server.
        logprobs: whether the probabilities of the verdict are asked for; many servers pass over that.
        parameters: further fields of the request, such as `seed` or `max_completion_tokens`.
        parallel: requests at a time.
        timeout_s: longest time of a request.
        attempts: most attempts of a request.
        backoff_s: longest random wait before the second attempt; it doubles with each further one.
        max_calls: most calls of a run, repeated attempts included; more are refused before the first is sent.
        max_tokens_total: most tokens of a run, requests and replies together.
    """

    url: Annotated[str, Runtime()]
    model: str = Field(min_length=1)
    revision: str = ""
    key_env: Annotated[str | None, Runtime()] = None
    template: str = DEFAULT_TEMPLATE
    system: str = ""
    rubric: list[Criterion] = Field(default=[])
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int | None = Field(default=256, ge=1)
    logprobs: bool = True
    parameters: JsonObject = Field(default={})
    parallel: Annotated[int, Runtime(), Field(ge=1, le=256)] = 8
    timeout_s: Annotated[float, Runtime(), Field(gt=0)] = 60.0
    attempts: Annotated[int, Runtime(), Field(ge=1)] = 5
    backoff_s: Annotated[float, Runtime(), Field(ge=0)] = 0.5
    max_calls: Annotated[int, Runtime(), Field(ge=1)] = 20_000
    max_tokens_total: Annotated[int | None, Runtime(), Field(ge=1)] = None

    def check(self) -> list[Problem]:
        """Return problems of the address, the template, the rubric and further parameters."""
        problems = [*_address_problems(self.url), *template_problems(self.template, self.rubric)]
        problems += rubric_problems(self.rubric)
        for name in self.parameters:
            if name in RESERVED:
                own = f"endpoint.{name} is the key for it" if name in type(self).model_fields else ""
                problems.append(Problem(f"endpoint.parameters names `{name}`", "further fields of the request", own))
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            # The value is not shown: it may be the key itself.
            remedy = "put the key into a variable, such as JUDGE_KEY, and its name here"
            problems.append(Problem("endpoint.key_env is no name of an environment variable", "a name", remedy))
        return problems

    def machine_problems(self) -> Iterator[Problem]:
        """Yield what this machine lacks: libraries, and the variable with the key."""
        missing = [module for module in MODULES if not has(module)]
        if missing:
            are = agreeing(len(missing), "is", "are")
            yield Problem(f"endpoint is set, and {', '.join(missing)} {are} not installed", "", INSTALL)
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            statement = f"the value of {self.key_env} has characters that no key has"
            yield Problem(statement, "letters, digits and signs of ASCII", f"export {self.key_env} again")
        if self.key_env is not None and not self.key:
            remedy = f"run `export {self.key_env}=…` first, or leave endpoint.key_env out if the server needs no key"
            yield Problem(f"endpoint.key_env is {self.key_env}, and that variable is not set", "", remedy)

    @property
    def key(self) -> str:
        """The API key; empty if the server needs none."""
        return os.environ.get(self.key_env, "").strip() if self.key_env is not None else ""

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

    def requests(self, pair: Pair) -> tuple[VerdictRequest, VerdictRequest]:
        """Return the requests for both orders of a pair."""
        return self._request(pair, swapped=False), self._request(pair, swapped=True)

    def _request(self, pair: Pair, *, swapped: bool) -> VerdictRequest:
        text = filled(self.template, self.rubric, pair, swapped=swapped)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return request_of(self.body(), self.revision, [*system, {"role": "user", "content": text}])


class Asking(NamedTuple):
    """The requests of a run.

    Attributes:
        requests: requests of both orders of each pair, by the pair's index; equal responses need none.
        forecast: their number, and the tokens of those that are not cached.
    """

    requests: dict[int, tuple[VerdictRequest, VerdictRequest]]
    forecast: RequestForecast


def asking_of(endpoint: Endpoint, pairs: Sequence[Pair], store: Path) -> Asking:
    """Return the requests for pairs and their forecast, with what the store has in its cache."""
    requests = {i: endpoint.requests(pair) for i, pair in enumerate(pairs) if not pair.is_equal}
    unique = {request.key: request for both in requests.values() for request in both}
    known = ReplyCache(store).known(list(unique))
    wanted = [request for key, request in unique.items() if key not in known]
    forecast = RequestForecast(
        pairs=len(pairs),
        calls=len(unique),
        cached=len(known),
        prompt_tokens=sum(request.prompt_tokens for request in wanted),
        completion_tokens=None if endpoint.max_tokens is None else len(wanted) * endpoint.max_tokens,
        server=f"{endpoint.model} at {urlsplit(endpoint.url).netloc}",
    )
    return Asking(requests, forecast)


def cap_problem(endpoint: Endpoint, forecast: RequestForecast) -> Problem | None:
    """Return a problem if a forecast is over what the endpoint's settings allow."""
    remedy = "raise it, or judge fewer pairs with `limit` or `pairs_per_prompt`"
    if forecast.sent > endpoint.max_calls:
        return Problem(f"endpoint.max_calls is {endpoint.max_calls:,}", f"there are {forecast}", remedy)
    most = endpoint.max_tokens_total
    if most is not None and forecast.tokens > most:
        return Problem(f"endpoint.max_tokens_total is {most:,}", f"there are {forecast}", remedy)
    return None


def _address_problems(url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        parts, is_address = None, False
    if parts is None or not is_address:
        yield Problem(f"endpoint.url is {url!r}", "the base URL of a server, such as http://127.0.0.1:8000/v1")
    elif parts.username or parts.password:
        yield Problem("endpoint.url holds a user or a password", "an address", "name the key's variable as key_env")
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        base = url.rstrip("/").removesuffix("/chat/completions")
        yield Problem(f"endpoint.url is {url!r}", "the base URL", f"write {base}")
