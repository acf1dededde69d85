"""Models behind servers that answer prompts: their settings, their requests, and what is forecast of them. No numerics.

Owns what is asked for an answer. `answering.py` asks for all answers of a stage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypedDict

from pipeline.endpoints.cache import ANSWERS, ReplyCache
from pipeline.endpoints.forecast import cap_problem
from pipeline.endpoints.requests import ChatRequest, request_of
from pipeline.endpoints.settings import RESERVED, ServerSettings
from pipeline.errors import Problem
from pipeline.kind.markers import Added
from pipeline.kind.traits import RequestForecast
from pipeline.plain_data import JsonObject, JsonView, ShapedRow
from pipeline.recipe.schema import NAME_PATTERN
from pipeline.records.shapes.turns import Turn


class AnswerEndpoint(ServerSettings):
    """A model behind a server that speaks OpenAI's chat completions; it answers prompts as a checkpoint does.

    Attributes:
        system: system message of the prompts that have none.
        length_field: field of a request with the longest answer; some models take `max_completion_tokens` only.
        send_seed: whether a request has a seed; some servers refuse the field.
        parameters: further fields of a request, such as `reasoning_effort`.
    """

    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_seed: bool = True

    @property
    def ref(self) -> str:
        """Model and revision, as what an answer is from."""
        return f"endpoint:{self.model}" + (f"@{self.revision}" if self.revision else "")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings that matter to an answer."""
        own = self.model_dump(include={"model", "revision", "system", "parameters", "length_field", "send_seed"})
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


Endpoints = Annotated[dict[str, AnswerEndpoint], Added()]
"""A field of a configuration with models behind servers, by the names under which they stand beside checkpoints."""

_RESERVED = (*RESERVED, "max_completion_tokens", "seed")
_NAME = re.compile(NAME_PATTERN)


def where_of(name: str) -> str:
    """Return the key of an endpoint's settings in its stage."""
    return f"endpoints.{name}"


def endpoint_problems(endpoints: Mapping[str, AnswerEndpoint], names: Iterable[str]) -> Iterator[Problem]:
    """Yield problems of endpoints; ``names`` are those of the checkpoints beside them."""
    taken, seen = set(names), dict[str, str]()
    for name, endpoint in sorted(endpoints.items()):
        where = where_of(name)
        if not _NAME.fullmatch(name):
            yield Problem(f"endpoints names one `{name}`", "letters, digits, `_`, `.` and `-`", "give it another name")
        if name in taken:
            yield Problem(f"{where} has the name of a checkpoint of `models`", "a name of its own")
        other = seen.setdefault(endpoint.fingerprint, name)
        if other != name:
            remedy = "tell them apart by `revision` if the models differ; `n` asks for more answers"
            yield Problem(f"{where} asks the same of the same model as {where_of(other)}", "one of them", remedy)
        yield from endpoint.problems(where, _RESERVED)


def endpoint_machine_problems(endpoints: Mapping[str, AnswerEndpoint]) -> Iterator[Problem]:
    """Yield what this machine lacks to ask the endpoints."""
    for name, endpoint in sorted(endpoints.items()):
        yield from endpoint.machine_problems(where_of(name))


@dataclass(frozen=True)
class AnswerSampling:
    """How an endpoint samples an answer.

    Attributes:
        temperature: sampling temperature; 0 takes the most likely token.
        max_new_tokens: longest answer.
        top_p: smallest probability that the tokens which are kept reach together; 1 keeps all, and is not sent.
        log_probabilities: whether log-probabilities are asked for.
        sample: number of the answer among those of the same temperature.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    log_probabilities: bool = False
    sample: int = 0


@dataclass(frozen=True)
class EndpointPass:
    """One answer of an endpoint to every prompt.

    Attributes:
        name: name of the endpoint.
        endpoint: its settings.
        sampling: how it samples.
        seeds: seed of each answer.
        requests: a request for each prompt, all with different keys.
    """

    name: str
    endpoint: AnswerEndpoint
    sampling: AnswerSampling
    seeds: Sequence[int]
    requests: Sequence[ChatRequest]


def pass_of(
    name: str,
    endpoint: AnswerEndpoint,
    sampling: AnswerSampling,
    rows: Sequence[ShapedRow],
    places: Sequence[int],
    seed: int,
) -> EndpointPass:
    """Return what is asked of an endpoint.

    Args:
        name: name of the endpoint.
        endpoint: its settings.
        sampling: how it samples.
        rows: rows with a prompt.
        places: identity of each row for its seed; each row has another one.
        seed: seed of the stage.
    """
    model = f"{endpoint.model}@{endpoint.revision}/{sampling.temperature}/{sampling.sample}"
    seeds = [seed_of(f"{seed}/{model}/{place}") for place in places]
    requests = [answer_request(endpoint, sampling, row, own) for row, own in zip(rows, seeds, strict=True)]
    return EndpointPass(name, endpoint, sampling, seeds, requests)


def seed_of(text: str) -> int:
    """Return the seed for what a text names: a number of 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def answer_request(endpoint: AnswerEndpoint, sampling: AnswerSampling, row: JsonView, seed: int) -> ChatRequest:
    """Return the request for an answer to the prompt of a row; ``row["tools"]`` are offered if there are any."""
    body: JsonObject = {
        "model": endpoint.model,
        "temperature": sampling.temperature,
        endpoint.length_field: sampling.max_new_tokens,
    }
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.log_probabilities:
        body["logprobs"] = True
    if endpoint.send_seed:
        body["seed"] = seed
    if row.get("tools"):
        body["tools"] = row["tools"]
    turns: Sequence[Turn] = row["prompt"]
    has_system = bool(turns) and turns[0]["role"] == "system"
    system: list[JsonObject] = [{"role": "system", "content": endpoint.system}]
    messages = [*(system if endpoint.system and not has_system else []), *map(_message, turns)]
    return request_of({**body, **endpoint.parameters}, endpoint.revision, messages, seed=seed)


def _message(turn: Turn) -> JsonObject:
    """Return a turn as a message: without what only training reads, and with the arguments of calls as text."""
    message: JsonObject = {key: turn[key] for key in ("role", "content", "tool_call_id", "name") if key in turn}
    if "tool_calls" in turn:
        message["tool_calls"] = [_call(dict(call)) for call in turn["tool_calls"]]
    return message


def _call(call: JsonObject) -> JsonObject:
    function = {**call["function"], "arguments": json.dumps(call["function"].get("arguments", {}), ensure_ascii=False)}
    return {**call, "function": function}


class AnswerReply(TypedDict):
    """What a server replied, as the cache holds it.

    Attributes:
        text: the text.
        finish_reason: why it ends, in the server's word; empty if it gives none.
        log_probability: sum over the tokens; None if the server gives none.
        prompt_tokens: tokens of the request.
        completion_tokens: tokens of the reply.
        is_counted: whether the server counted the tokens; else the numbers are estimates.
    """

    text: str
    finish_reason: str
    log_probability: float | None
    prompt_tokens: int
    completion_tokens: int
    is_counted: bool


def answers_cache(store: Path) -> ReplyCache[AnswerReply]:
    """Return the cache of a store's answers of endpoints."""
    return ReplyCache(store / ANSWERS)


class Wanted(NamedTuple):
    """What is to be asked of one endpoint.

    Attributes:
        endpoint: its settings.
        requests: all its requests, by key.
        known: the replies that are cached.
        forecast: calls and tokens of the others.
        problem: that these are more than its settings allow.
    """

    endpoint: AnswerEndpoint
    requests: dict[str, ChatRequest]
    known: dict[str, AnswerReply]
    forecast: RequestForecast
    problem: Problem | None


def wanted_of(passes: Sequence[EndpointPass], cache: ReplyCache[AnswerReply], fewer: str) -> dict[str, Wanted]:
    """Return what is to be asked of each endpoint, by name.

    Args:
        passes: the passes of all endpoints.
        cache: replies of before.
        fewer: what a user does to have fewer calls.
    """
    wanted: dict[str, Wanted] = {}
    for name in dict.fromkeys(one.name for one in passes):
        own = [one for one in passes if one.name == name]
        endpoint = own[0].endpoint
        lengths = {request.key: one.sampling.max_new_tokens for one in own for request in one.requests}
        requests = {request.key: request for one in own for request in one.requests}
        known = cache.known(list(requests))
        missing = [key for key in requests if key not in known]
        forecast = RequestForecast(
            items=len(requests),
            calls=len(requests),
            cached=len(known),
            prompt_tokens=sum(requests[key].prompt_tokens for key in missing),
            completion_tokens=sum(lengths[key] for key in missing),
            server=endpoint.server,
            noun="answer",
            verb="sample",
        )
        wanted[name] = Wanted(
            endpoint, requests, known, forecast, cap_problem(endpoint, where_of(name), forecast, fewer)
        )
    return wanted


def cap_in_words(endpoints: Mapping[str, AnswerEndpoint]) -> str:
    """Return the largest numbers of calls, for prompts that are not there yet."""
    told = (f"{one.max_calls:,} ({where_of(name)}.max_calls)" for name, one in sorted(endpoints.items()))
    return f"at most {', '.join(told)}"
