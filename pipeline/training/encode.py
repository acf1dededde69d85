"""Rows to token ids: conversations through the tokenizer's chat template, with a mask of what the assistant said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.models.labels import IGNORE

Messages = Sequence[dict[str, str]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Conversation:
    """A conversation as tokens.

    Attributes:
        ids: token ids.
        labels: the same ids where the assistant speaks (its end-of-turn token included), `IGNORE` elsewhere.
    """

    ids: list[int]
    labels: list[int]


def encode_conversation(tokenizer: Any, messages: Messages) -> Conversation:
    """Encode a conversation for training on the assistant's tokens only.

    The mask comes from the template's ``{% generation %}`` markers; a template without them is rendered turn by turn,
    and what each assistant turn adds to its prompt is what it said.

    Raises:
        PipelineError: the template cannot be masked because a turn changes the text before it.
    """
    if _GENERATION.search(tokenizer.chat_template or ""):
        out = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = list(out["input_ids"]), list(out["assistant_masks"])
        return Conversation(ids, [token if on else IGNORE for token, on in zip(ids, mask, strict=True)])
    return _encode_by_turns(tokenizer, messages)


def _encode_by_turns(tokenizer: Any, messages: Messages) -> Conversation:
    ids = render(tokenizer, messages)
    labels = [IGNORE] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:turn], add_generation_prompt=True)
        after = render(tokenizer, messages[: turn + 1])
        if ids[: len(before)] != before or ids[: len(after)] != after:
            raise PipelineError(
                Problem(
                    "the chat template rewrites earlier turns, so the assistant's tokens cannot be found",
                    "a template with {% generation %} markers",
                    "give the tokenizer stage (or the model's folder) a chat template that has them",
                )
            )
        labels[len(before) : len(after)] = ids[len(before) : len(after)]
    return Conversation(ids, labels)


def render(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool = False) -> list[int]:
    """Return the token ids of ``messages`` through the chat template."""
    out = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
    )
    return list(out["input_ids"])


def encode_prompt(tokenizer: Any, prompt: Messages) -> list[int]:
    """Return the ids of a prompt up to where the assistant's answer begins."""
    return render(tokenizer, prompt, add_generation_prompt=True)


def encode_pair(tokenizer: Any, prompt: Messages, response: Messages) -> tuple[list[int], list[int]]:
    """Return ``(prompt ids, response ids)``; the response ends with the end-of-turn token.

    Raises:
        PipelineError: the rendered prompt is not a prefix of prompt and response.
    """
    before = encode_prompt(tokenizer, prompt)
    whole = render(tokenizer, [*prompt, *response])
    if whole[: len(before)] != before:
        raise PipelineError(
            Problem(
                "the chat template renders a prompt differently once the response follows",
                "the prompt to be a prefix of prompt and response",
                "give the model a chat template without such rewriting",
            )
        )
    return before, whole[len(before) :]


def packed(rows: Sequence[dict[str, list[int]]], length: int) -> list[dict[str, list[int]]]:
    """Join encoded conversations to rows of at most ``length`` tokens, the longest first; `seq_lengths` says where.

    Reference: best-fit decreasing, Ding et al. 2024, arXiv:2404.10830; the code is trl's.
    """
    from datasets import Dataset
    from trl import pack_dataset

    # What a conversation's first token is must not be learnt from the conversation before it.
    heads = [{**row, "labels": [IGNORE, *row["labels"][1:]]} for row in rows]
    joined: list[dict[str, list[int]]] = pack_dataset(Dataset.from_list(heads), length, "bfd").to_list()
    return joined


def context_length(model: Any, asked: int | None) -> int:
    """Return the longest row to train on: what was asked, at most the model's context.

    Raises:
        PipelineError: more was asked than the model has.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if asked is None:
        return min(int(limit), 2048) if limit else 2048
    if limit and asked > limit:
        raise PipelineError(
            Problem(f"train.max_length is {asked}", f"at most the model's context of {limit} tokens", "lower it")
        )
    return asked
