"""The request for a verdict: prompt template, rubric, and the key under which a reply is cached. No numerics."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from pipeline.errors import Problem, listed, nearest
from pipeline.evaluation.judges.pairs import Pair, conversation_text
from pipeline.plain_data import JsonObject
from pipeline.stage import StageConfig

REQUIRED = ("prompt", "first", "second")
PLACEHOLDERS = (*REQUIRED, "rubric", "format")
"""What a template may contain in braces; it must contain those of `REQUIRED`."""

DEFAULT_TEMPLATE = """\
Two assistants answered the same request. Judge which answer is better: what is true and what was asked for counts, the
order and the length of the answers do not.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

{rubric}{format}"""

REPLY_FORMAT = "End with one line that holds your verdict alone: A, B or tie."
RUBRIC_FORMAT = "End with one line for each criterion, its name, a colon and your verdict on it, A, B or tie:"

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 that are counted as one token in an estimate."""

TOKENS_PER_MESSAGE = 8
"""Tokens that a chat template adds to a message, in an estimate."""

CACHE_FORMAT = 1
"""Raised when the same request is to be asked anew."""


class Criterion(StageConfig):
    """A criterion of a rubric.

    Attributes:
        name: a short name, which the judge repeats.
        description: what the judge is told of it.
        weight: its share of the verdict.
    """

    name: str = Field(pattern=r"^\w[\w -]*$")
    description: str = ""
    weight: float = Field(default=1.0, gt=0)


class VerdictRequest(NamedTuple):
    """One request for a verdict.

    Attributes:
        key: SHA-256 of everything that matters to the reply.
        body: the request without the messages.
        messages: the messages.
    """

    key: str
    body: JsonObject
    messages: list[dict[str, str]]

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the messages have."""
        sizes = (len(message["content"].encode()) for message in self.messages)
        return sum(-(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for size in sizes)


def template_problems(template: str, rubric: Sequence[Criterion]) -> Iterator[Problem]:
    """Yield problems of a template: a placeholder that is unknown or missing, a brace that stands alone."""
    expected = listed(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        remedy = "write {{ and }} for braces of the text"
        yield Problem(f"endpoint.template has a brace that stands alone ({error})", expected, remedy)
        return
    for name in dict.fromkeys(parts):
        if name not in PLACEHOLDERS:
            remedy = nearest(name, PLACEHOLDERS) or "write {{ and }} for braces of the text"
            yield Problem(f"endpoint.template has the placeholder {{{name}}}", f"one of {expected}", remedy)
    needed = [*REQUIRED, *(["rubric"] if rubric else [])]
    missing = [f"{{{name}}}" for name in needed if name not in parts]
    if missing:
        yield Problem(f"endpoint.template lacks {' and '.join(missing)}", expected, "add it to the template")


def rubric_problems(rubric: Sequence[Criterion]) -> Iterator[Problem]:
    """Yield a problem if two criteria have one name."""
    names = [criterion.name for criterion in rubric]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield Problem(f"endpoint.rubric names `{name}` twice", "each criterion once")


def weights_of(rubric: Sequence[Criterion]) -> Mapping[str, float]:
    """Return the weight of each criterion."""
    return {criterion.name: criterion.weight for criterion in rubric}


def filled(template: str, rubric: Sequence[Criterion], pair: Pair, *, swapped: bool) -> str:
    """Return the text that asks for a verdict; all criteria of a rubric are asked in one request."""
    first, second = (conversation_text(turns) for turns in (pair.first, pair.second))
    told = "".join(f"- {one.name}: {one.description}\n" if one.description else f"- {one.name}\n" for one in rubric)
    form = "\n".join([RUBRIC_FORMAT, *(f"{one.name}: …" for one in rubric)]) if rubric else REPLY_FORMAT
    return template.format(
        prompt=conversation_text(pair.row["prompt"]),
        first=second if swapped else first,
        second=first if swapped else second,
        rubric=f"Judge by each of these criteria alone:\n{told}\n" if rubric else "",
        format=form,
    )


def request_of(body: JsonObject, revision: str, messages: list[dict[str, str]]) -> VerdictRequest:
    """Return a request with its key."""
    content = {"format": CACHE_FORMAT, "revision": revision, "body": body, "messages": messages}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return VerdictRequest(hashlib.sha256(text.encode()).hexdigest(), body, messages)
