"""Speaks to a server of OpenAI's chat completions: one request, its retries, and why it failed.

Retries after connection errors, timeouts, and the statuses 408, 409, 429 and 5xx, with random waits that double, or as
long as the server asks (`Retry-After`). Imports openai and tenacity, of the extra `judge`.
"""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import openai
import tenacity
from openai.types.chat import ChatCompletion

from pipeline.endpoints.asking import Budget, FailedCallError
from pipeline.endpoints.completions import Completion, TokenLogprobs
from pipeline.endpoints.requests import ChatRequest, tokens_of_bytes
from pipeline.endpoints.settings import ServerSettings

ReplyT = TypeVar("ReplyT")

RETRIED = frozenset({408, 409, 429})
HOPELESS = frozenset({401, 403, 404})
"""Statuses that every other request would get too."""

LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks to wait longer has failed the request."""

NO_KEY = "none"
"""Sent to servers without a key: else the library would take that of `OPENAI_API_KEY`, which is for another server."""


class Client(Generic[ReplyT]):
    """A server, asked from several threads.

    Args:
        settings: its settings.
        budget: calls and tokens that may be spent.
        stopped: is set when calls under way are to end.
        read: makes a reply of what the server returned; it raises `FailedCallError` if that is of no use.
    """

    def __init__(
        self,
        settings: ServerSettings,
        budget: Budget,
        stopped: threading.Event,
        read: Callable[[Completion], ReplyT],
    ) -> None:
        self._settings, self._budget, self._stopped, self._read = settings, budget, stopped, read
        self._client = openai.OpenAI(
            base_url=settings.url, api_key=settings.key or NO_KEY, timeout=settings.timeout_s, max_retries=0
        )

    def close(self) -> None:
        """End the connections, those in use too."""
        self._client.close()

    def ask(self, request: ChatRequest) -> ReplyT:
        """Send a request until it is answered, fails for good, or the run stops.

        Raises:
            FailedCallError: it failed.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._settings.attempts), tenacity.stop_when_event_set(self._stopped)
            ),
            wait=self._wait_s,
            retry=tenacity.retry_if_exception(_is_retried),
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            return retrying(self._attempt, request)
        except FailedCallError:
            raise
        except Exception as error:  # what the library raises on a broken answer is not documented
            attempts = int(retrying.statistics.get("attempt_number", 1))
            after = f" after {attempts} attempts" if attempts > 1 else ""
            is_hopeless = isinstance(error, openai.APIStatusError) and error.status_code in HOPELESS
            raise FailedCallError(f"{self._named(error)}{after}", is_hopeless=is_hopeless) from None

    def _attempt(self, request: ChatRequest) -> ReplyT:
        self._budget.take_call()
        completion = self._client.chat.completions.create(
            **{key: value for key, value in request.body.items() if key == "model"},
            messages=request.messages,  # type: ignore[arg-type]
            stream=False,
            extra_body={key: value for key, value in request.body.items() if key != "model"},
        )
        told = _completion(completion, request)
        self._budget.add_tokens(told.prompt_tokens + told.completion_tokens)
        return self._read(told)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = _retry_after_s(error)
        if asked is not None:
            return asked + random.uniform(0, self._settings.backoff_s)
        longest = self._settings.backoff_s * 2 ** (state.attempt_number - 1)
        return random.uniform(0, min(longest, LONGEST_BACKOFF_S))

    def _named(self, error: Exception) -> str:
        """Return an error in one line, without the key."""
        if isinstance(error, openai.APIStatusError):
            text = f"HTTP {error.status_code}: {_told(error)}"
        elif isinstance(error, openai.APITimeoutError):
            text = f"no answer within {self._settings.timeout_s:g} s"
        elif isinstance(error, openai.APIConnectionError):
            text = f"no connection: {error.__cause__ or error}"
        else:
            text = f"the answer cannot be read ({type(error).__name__}: {error})"
        if self._settings.key:
            text = text.replace(self._settings.key, "…")
        text = " ".join(text.split())
        return text if len(text) <= 200 else f"{text[:199]}…"


def _told(error: openai.APIStatusError) -> str:
    """Return what the server says of an error."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        told = inner.get("message") if isinstance(inner, dict) else inner
        return str(told or body)
    return str(body or error.message)


def _is_retried(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        is_passing = error.status_code in RETRIED or error.status_code >= 500
        return is_passing and (_retry_after_s(error) or 0.0) <= LONGEST_RETRY_AFTER_S
    return isinstance(error, openai.APIConnectionError)  # a timeout is one


def _retry_after_s(error: BaseException | None) -> float | None:
    """Return the seconds that a server asks to wait, given as a number or a date; None if it asks for nothing."""
    if not isinstance(error, openai.APIStatusError):
        return None
    value = error.response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _text(value: object) -> str:
    """Return a text of the server; empty if it is none, whatever the interface says."""
    return value if isinstance(value, str) else ""


class _Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int


def _completion(completion: object, request: ChatRequest) -> Completion:
    """Return what matters of a completion; a server that counts no tokens gets an estimate.

    Raises:
        FailedCallError: it is no completion, or has no text.
    """
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise FailedCallError("the answer is no chat completion")
    choice = completion.choices[0]
    text = choice.message.content if choice.message is not None else None
    if not isinstance(text, str):
        raise FailedCallError(f"the answer has no text (finish_reason {choice.finish_reason})")
    content = (choice.logprobs.content if choice.logprobs is not None else None) or []
    tokens = [
        TokenLogprobs(one.token, [(other.token, other.logprob) for other in one.top_logprobs], one.logprob)
        for one in content
    ]
    usage = completion.usage or _Usage(request.prompt_tokens, tokens_of_bytes(len(text.encode())))
    return Completion(
        text=text,
        finish_reason=_text(choice.finish_reason),
        tokens=tokens,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        is_counted=completion.usage is not None,
    )
