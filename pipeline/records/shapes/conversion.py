"""Converts parsed rows to the six shapes that stages take.

    text         {"text": str}
    messages     {"messages": turns}                  ends with the assistant: a demonstration
    preference   {"prompt": turns, "chosen": turns, "rejected": turns, "margin": float | None}
    labelled     {"prompt": turns, "completion": turns, "label": bool}      a demonstration's final turn, good or bad
    prompt       {"prompt": turns}                    ends with the user
    candidates   {"prompt": turns, "candidates": [{"text": str, …}, …]}    answers to compare, as `sample` writes them

A turn has `role` (system, user, assistant, tool) and `content`. An assistant turn may have `tool_calls`,
`reasoning_content` and `train: False`; a tool turn may have `tool_call_id` and `name`. A row may also have `tools`, the
tools the assistant may call, and `plain_text: True` if all its sides were plain text, or if it says so itself, so that
it can be continued as text. Columns that are not read stay in the row unchanged.
"""

from __future__ import annotations

import json

from pipeline.plain_data import Row, ShapedRow
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.calls import tools_of
from pipeline.records.shapes.formats import FORMATS, Parsed, of_openai, parse_comparison, read_columns
from pipeline.records.shapes.plain import MARK, mark_of
from pipeline.records.shapes.turns import ROLES, Turn, Turns, check_order
from pipeline.stage import Shape

LABELS = ("label", "kto_tag", "desirable")
"""Columns that label a completion good or bad (trl's, LLaMA-Factory's, other tools'); the first with a value counts."""

SPEAKERS = ("role", "from", "speaker", "author", "sender")
"""Columns that name the speaker of a text, in files that hold one message per row."""

_LABEL_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "good", "desirable", "chosen", "positive"), True),
    **dict.fromkeys(("false", "0", "no", "bad", "undesirable", "rejected", "negative"), False),
}


def shaped(row: Row, name: str, shape: Shape, system: str | None = None) -> ShapedRow:
    """Return a row in a shape.

    Args:
        row: columns as read, renamed as the recipe asks.
        name: name of the row's format.
        shape: shape the stage takes, one that the format can give.
        system: system message for a conversation that has none.

    Raises:
        BadRowError: the row is bad.
    """
    if shape == "prompt" and name in ("text", "prompt"):
        _check_speaker(row)
    is_asked_only = shape == "prompt" and name == "comparison"
    parsed = parse_comparison(row, is_prompt=True) if is_asked_only else FORMATS[name].parse(row)
    if shape == "text":
        # Turns joined by a blank line: raw material for a tokenizer or for pretraining, no chat template.
        turns = parsed.turns + parsed.chosen
        result: ShapedRow = {"text": parsed.text or "\n\n".join(filter(None, map(_said, turns)))}
    else:
        result = _conversation(parsed, name, shape, parsed.system or system or "")
        tools = tools_of(of_openai(row)) if name != "text" else []
        if tools:
            result["tools"] = tools
        if (parsed.is_plain or mark_of(row)) and not parsed.system and not system and not tools:
            result[MARK] = True
    # A prompt row keeps the columns it does not use: an answer beside the prompt is what a reward function checks.
    used = frozenset({"prompt"}) if shape in ("prompt", "candidates") else read_columns(name, row)
    used |= {MARK}
    if shape == "labelled":
        column, result["label"] = _label(row)
        used |= {column}
    return {**{column: value for column, value in row.items() if column not in used}, **result}


def _check_speaker(row: Row) -> None:
    """Check that a message used as a prompt is the user's and the first of its conversation.

    Raises:
        BadRowError: the row says that it is not.
    """
    asked = next((name for name in ("text", "prompt", "instruction") if isinstance(row.get(name), str)), None)
    speakers = {name: row[name].strip() for name in SPEAKERS if isinstance(row.get(name), str)}
    roles = {name: ROLES[speaker.casefold()] for name, speaker in speakers.items() if speaker.casefold() in ROLES}
    other = next((name for name, role in roles.items() if role != "user"), None)
    if asked and other:
        raise BadRowError(f"`{other}` is {speakers[other]}, so `{asked}` is no prompt", "a message of the user")
    if asked and roles and row.get("parent_id"):
        raise BadRowError(f"`parent_id` is set, so `{asked}` is the middle of a conversation", "its first message")


def _said(turn: Turn) -> str:
    """Return a turn as text: reasoning, content and calls, one per line."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join(filter(None, (turn.get("reasoning_content", ""), turn["content"], *calls)))


def _conversation(parsed: Parsed, row_format: str, shape: Shape, system: str) -> ShapedRow:
    name = "conversations" if row_format == "sharegpt" else row_format  # the column's name, for messages
    turns = parsed.turns or [{"role": "user", "content": parsed.text}]
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    if shape in ("messages", "labelled"):
        turns = turns + parsed.chosen
        check_order(turns, name, last="assistant")
        _check_learnt(turns if shape == "messages" else turns[-1:])
        return {"messages": turns} if shape == "messages" else {"prompt": turns[:-1], "completion": turns[-1:]}
    if shape == "preference":
        return {"prompt": turns, "chosen": parsed.chosen, "rejected": parsed.rejected, "margin": parsed.margin}
    if turns[-1]["role"] == "assistant" and "messages" in FORMATS[row_format].shapes:
        turns = turns[:-1]
    check_order(turns, name, last="user")
    return {"prompt": turns}


def _check_learnt(turns: Turns) -> None:
    """Check that a row has an assistant turn to train on.

    Raises:
        BadRowError: every assistant turn is excluded from training.
    """
    if all(turn.get("train") is False for turn in turns if turn["role"] == "assistant"):
        raise BadRowError("no turn of the assistant is to be learnt", "one without `weight: 0` or `train: false`")


def _label(row: Row) -> tuple[str, bool]:
    """Return the column of a row's label, and whether the label is good."""
    labels = [name for name in LABELS if row.get(name) not in (None, "")]
    if not labels:
        raise BadRowError("`label` is missing", "true or false")
    column, label = labels[0], label_in(row[labels[0]])
    if label is None:
        raise BadRowError(f"`{column}` is {row[column]!r}"[:60], "true or false (or 1 or 0)")
    other = next((name for name in labels if label_in(row[name]) is (not label)), None)
    if other is not None:
        raise BadRowError(f"`{column}` is {row[column]!r} and `{other}` is {row[other]!r}"[:80], "one label")
    return column, label


def label_in(value: object) -> bool | None:
    """Return a label's value as a boolean; None if it is not a label."""
    if isinstance(value, str):  # CSV has text only
        return _LABEL_WORDS.get(value.strip().casefold())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
