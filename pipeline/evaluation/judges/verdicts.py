"""Verdicts: read from a judge's reply, as probabilities where the server gives them, and joined over both orders.

A reply ends in its verdict: a last line that is ``A``, ``B`` or ``tie``; with a rubric, one line ``NAME: A`` for each
criterion. Marks of Markdown, brackets, quotes and a full stop around it are passed over. Anything else is no verdict.

References: Zheng et al. 2023, arXiv:2306.05685, section 3.4 (both orders; a verdict that flips is a tie); Liu et al.
2023, arXiv:2303.16634, section 2 (a judgement weighted by the probabilities of its tokens).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from pipeline.endpoints.completions import Completion, TokenLogprobs

Choice = Literal["A", "B", "tie"]
"""What a judge says of the two responses in the order in which it saw them."""

Outcome = Literal["first", "second", "tie", "flip", "equal", "error"]
"""What becomes of a pair: one response wins in both orders; no difference; the verdict flips with the order; the
responses are equal; a verdict is missing."""

PREFERRED: Mapping[Choice, Outcome] = {"A": "first", "B": "second", "tie": "tie"}
"""The outcome of a verdict that does not depend on an order."""

_MARKS = r"[\s*_`\[\]()\"'.!>#-]*"
_VERDICT = rf"{_MARKS}(A|B|[Tt]ie|TIE){_MARKS}"
_ONLY_VERDICT = re.compile(_VERDICT)
_PROBABILITY: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
_EQUAL = 1e-9
"""Largest distance from one half of a probability that prefers neither: the sum of a rubric's weights is rounded."""


class Reply(TypedDict):
    """What a server replied, as the cache holds it.

    Attributes:
        text: the text.
        logprobs: its tokens, each with the most likely verdicts at its place; empty if the server gives none.
        prompt_tokens: tokens of the request.
        completion_tokens: tokens of the reply.
    """

    text: str
    logprobs: list[tuple[str, list[tuple[str, float]]]]
    prompt_tokens: int
    completion_tokens: int


def reply_of(told: Completion) -> Reply:
    """Return what matters to a verdict of what a server replied."""
    return Reply(
        text=told.text,
        logprobs=verdict_logprobs(told.text, told.tokens),
        prompt_tokens=told.prompt_tokens,
        completion_tokens=told.completion_tokens,
    )


def verdict_logprobs(text: str, tokens: Sequence[TokenLogprobs]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the tokens of a reply with those of the most likely tokens that are verdicts; the others are not needed.

    Empty if the tokens do not make up the text, as where one of them ends inside a character.
    """
    if "".join(one.token for one in tokens) != text:
        return []
    return [(one.token, [other for other in one.top if _ONLY_VERDICT.fullmatch(other[0])]) for one in tokens]


class NoVerdictError(ValueError):
    """A reply has no verdict in the format that was asked for."""


@dataclass(frozen=True)
class OrderVerdict:
    """The verdict in one order.

    Attributes:
        choice: the response that is better, by the place in which the judge saw it.
        probability: that the response shown as A is better; 1, 0.5 or 0 if the judge only says so.
        criteria: the probability of each criterion of a rubric.
        text: the reply.
    """

    choice: Choice
    probability: float
    criteria: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


def verdict_of(probability: float, text: str = "", criteria: Mapping[str, float] | None = None) -> OrderVerdict:
    """Return the verdict of a probability that the response shown as A is better."""
    return OrderVerdict(_choice_of(probability), probability, criteria or {}, text)


def read_verdict(reply: Reply, weights: Mapping[str, float] | None = None) -> OrderVerdict:
    """Read the verdict of a reply.

    Args:
        reply: the reply.
        weights: weight of each criterion of the rubric; none without one.

    Raises:
        NoVerdictError: the reply does not end as it should.
    """
    text, tokens = reply["text"], [TokenLogprobs(*one) for one in reply["logprobs"]]
    if not text.strip():
        raise NoVerdictError("the reply is empty")
    if not weights:
        last = next(match for match in reversed(list(re.finditer(r"[^\n]+", text))) if match.group().strip())
        verdict = _ONLY_VERDICT.fullmatch(last.group())
        if verdict is None:
            raise NoVerdictError(f"its last line is {_short(last.group())}")
        choice, probability = _read_at(verdict.group(1), last.start() + verdict.start(1), tokens)
        return OrderVerdict(choice, probability, {}, text)
    criteria = {}
    for name in weights:
        line = rf"^{_MARKS}(?i:{re.escape(name)}){_MARKS}:{_VERDICT}$"
        lines = list(re.finditer(line, text, re.MULTILINE))
        if len(lines) != 1:
            raise NoVerdictError(f"it has {'no line' if not lines else 'several lines'} with a verdict on `{name}`")
        criteria[name] = _read_at(lines[0].group(1), lines[0].start(1), tokens)[1]
    combined = sum(weights[name] * value for name, value in criteria.items()) / sum(weights.values())
    return verdict_of(combined, text, criteria)


def _read_at(word: str, place: int, tokens: Sequence[TokenLogprobs]) -> tuple[Choice, float]:
    """Return the verdict at a place of a reply, by the probabilities of the token there if they are known."""
    masses = {"A": 0.0, "B": 0.0, "tie": 0.0}
    end = 0
    for one in tokens:
        end += len(one.token)
        if end > place:
            if end < place + len(word):
                break  # a word of several tokens: the probability of its first one is not that of the word
            for alternative, logprob in one.top:
                verdict = _ONLY_VERDICT.fullmatch(alternative)
                if verdict is not None:
                    masses[_named(verdict.group(1))] += math.exp(logprob)
            break
    total = sum(masses.values())
    if total == 0:
        return _named(word), _PROBABILITY[_named(word)]
    most = max(masses.values())
    best = [name for name, mass in masses.items() if mass == most]
    choice: Choice = "tie" if len(best) > 1 else _named(best[0])
    return choice, (masses["A"] + masses["tie"] / 2) / total


def _named(word: str) -> Choice:
    return "A" if word == "A" else "B" if word == "B" else "tie"


def _choice_of(probability: float) -> Choice:
    if abs(probability - 0.5) <= _EQUAL:
        return "tie"
    return "A" if probability > 0.5 else "B"


def _short(line: str) -> str:
    line = " ".join(line.split())
    return repr(line if len(line) <= 60 else f"{line[:59]}…")


def joined(straight: OrderVerdict, swapped: OrderVerdict) -> tuple[Outcome, float]:
    """Join the verdicts of both orders.

    Args:
        straight: verdict with the first response shown as A.
        swapped: verdict with the second response shown as A.

    Returns:
        The outcome, and p = (p₁ + 1 - p₂) / 2, the probability that the first response is better. A response wins only
        if it wins in both orders.
    """
    probability = (straight.probability + 1 - swapped.probability) / 2
    choices = (straight.choice, swapped.choice)
    if choices == ("A", "B"):
        return "first", probability
    if choices == ("B", "A"):
        return "second", probability
    return ("flip" if "tie" not in choices else "tie"), probability


def bradley_terry(difference: float) -> float:
    """Return the probability that the response with the score higher by ``difference`` is better.

    Reference: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1.
    """
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    return math.exp(difference) / (1 + math.exp(difference))
