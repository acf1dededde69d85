"""One row as tokens, by the functions that encode all rows of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.models.tokenizer.template import Messages
from pipeline.training.data.encoding import EncodedRows, encode_labelled, encode_messages, encode_prompts


@dataclass(frozen=True)
class Conversation:
    """A conversation as tokens.

    Attributes:
        ids: token ids.
        labels: the same ids where the assistant speaks (its end-of-turn token included), `IGNORE` elsewhere.
    """

    ids: list[int]
    labels: list[int]


def encode_conversation(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None = None) -> Conversation:
    """Encode one conversation; one whose template rewrites earlier turns gives the text of its last answer.

    Raises:
        PipelineError: it cannot be rendered.
    """
    (*_, last) = _one(encode_messages(tokenizer, [{"messages": messages, "tools": tools}]))
    return Conversation(last["input_ids"], last["labels"])


def encode_prompt(tokenizer: Any, prompt: Messages, tools: Sequence[Any] | None = None) -> list[int]:
    """Return the ids of a prompt up to where the assistant's answer begins.

    Raises:
        PipelineError: it cannot be rendered.
    """
    (made,) = _one(encode_prompts(tokenizer, [{"prompt": prompt, "tools": tools}]))
    return list(made["prompt_ids"])


def encode_pair(tokenizer: Any, prompt: Messages, response: Messages) -> tuple[list[int], list[int]]:
    """Return ``(prompt ids, response ids)``; the response ends with the end-of-turn token.

    Raises:
        PipelineError: it cannot be rendered.
    """
    (made,) = _one(encode_labelled(tokenizer, [{"prompt": prompt, "completion": response, "label": True}]))
    return made["prompt_ids"], made["completion_ids"]


def _one(made: EncodedRows) -> list[dict[str, Any]]:
    if made.faults:
        raise PipelineError(Problem(f"the conversation {made.faults[0].reason}"))
    return made.rows
