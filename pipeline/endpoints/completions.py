"""What a server replied to one request, in plain records; `client.py` reads it, judge and sampler use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TokenLogprobs(NamedTuple):
    """A token of a reply.

    Attributes:
        token: its text.
        top: text and log-probability of the most likely tokens at its place.
        logprob: its own log-probability.
    """

    token: str
    top: Sequence[tuple[str, float]]
    logprob: float = 0.0


class Completion(NamedTuple):
    """A reply.

    Attributes:
        text: the text.
        finish_reason: why it ends, in the server's word; empty if it gives none.
        tokens: its tokens; empty if the server gives no log-probabilities.
        prompt_tokens: tokens of the request.
        completion_tokens: tokens of the reply.
        is_counted: whether the server counted the tokens; else the numbers are estimates.
    """

    text: str
    finish_reason: str
    tokens: Sequence[TokenLogprobs]
    prompt_tokens: int
    completion_tokens: int
    is_counted: bool
