"""One request of OpenAI's chat completions, and the key under which its reply is cached. No numerics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.plain_data import JsonObject

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 that are counted as one token in an estimate."""

TOKENS_PER_MESSAGE = 8
"""Tokens that a chat template adds to a message, in an estimate."""

CACHE_FORMAT = 1
"""Raised when the same request is to be asked anew."""


class ChatRequest(NamedTuple):
    """One request.

    Attributes:
        key: SHA-256 of everything that matters to the reply.
        body: the request without the messages.
        messages: the messages.
    """

    key: str
    body: JsonObject
    messages: list[JsonObject]

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the messages have."""
        sizes = (len(str(message.get("content") or "").encode()) for message in self.messages)
        return sum(tokens_of_bytes(size) + TOKENS_PER_MESSAGE for size in sizes)


def tokens_of_bytes(size: int) -> int:
    """Return about how many tokens a text of ``size`` bytes has."""
    return -(-size // BYTES_PER_TOKEN)


def request_of(body: JsonObject, revision: str, messages: Sequence[JsonObject], **further: object) -> ChatRequest:
    """Return a request with its key.

    Args:
        body: the request without the messages.
        revision: text that tells two models of one name apart.
        messages: the messages.
        further: plain data that tells two requests apart which are otherwise equal; it is not sent.
    """
    content = {"format": CACHE_FORMAT, "revision": revision, "body": body, "messages": list(messages), **further}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return ChatRequest(hashlib.sha256(text.encode()).hexdigest(), body, list(messages))
