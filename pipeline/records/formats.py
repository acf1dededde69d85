"""Row formats: how people write demonstrations, preferences, prompts and text, and the five shapes stages take.

Owns the detection of a format, one function per format, and the shapes. Knows nothing of files.

A format function reads a row into `Parsed`; a shape function turns that into the row a stage gets:

    text         {"text": str}
    messages     {"messages": turns}                  ends with the assistant: a demonstration
    preference   {"prompt": turns, "chosen": turns, "rejected": turns, "margin": float | None}
    labelled     {"prompt": turns, "completion": turns, "label": bool}      a demonstration's final turn, good or bad
    prompt       {"prompt": turns}                    ends with the user

A turn is ``{"role": "system" | "user" | "assistant", "content": str}``. Columns that did not go into the shape stay in
the row as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.records.turns import (
    SHAREGPT_ROLES,
    TRANSCRIPT_TURN,
    BadRowError,
    Turns,
    check_order,
    text_of,
    transcript_turns,
    turns_of,
)
from pipeline.stage import Shape

Row = Mapping[str, Any]

LABELS = ("label", "kto_tag", "desirable")
"""Columns that say whether a completion is good, the first that a row fills: trl's, LLaMA-Factory's, other tools'."""

_LABEL_WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclass
class Parsed:
    """What a row says, whatever its format.

    Attributes:
        turns: the conversation, or the prompt of a pair.
        text: of a text row.
        chosen: preferred continuation of ``turns``.
        rejected: the other continuation.
        margin: by how much the chosen one is better.
        system: system turn from a column of its own.
    """

    turns: Turns = field(default_factory=list)
    text: str = ""
    chosen: Turns = field(default_factory=list)
    rejected: Turns = field(default_factory=list)
    margin: float | None = None
    system: str = ""


def _parse_text(row: Row) -> Parsed:
    return Parsed(text=text_of(row.get("text"), "`text`"))


def _parse_messages(row: Row) -> Parsed:
    return Parsed(turns_of(row.get("messages"), "messages"))


def _parse_prompt_completion(row: Row) -> Parsed:
    prompt = _side(row.get("prompt"), "prompt", role="user")
    completion = _side(row.get("completion"), "completion", role="assistant")
    check_order(prompt, "prompt", last="user")
    check_order(completion, "completion", first="assistant", last="assistant")
    return Parsed(prompt + completion, system=_system(row))


def _parse_sharegpt(row: Row) -> Parsed:
    value = row.get("conversations")
    is_openai = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]
    if is_openai:
        return Parsed(turns_of(value, "conversations"), system=_system(row))
    turns = turns_of(value, "conversations", role_key="from", content_key="value", roles=SHAREGPT_ROLES)
    return Parsed(turns, system=_system(row))


def _parse_alpaca(row: Row) -> Parsed:
    asked = text_of(row.get("instruction"), "`instruction`")
    if row.get("input"):
        asked = f"{asked}\n\n{text_of(row['input'], '`input`')}"
    answer = text_of(row.get("output"), "`output`")
    turns: Turns = []
    for number, exchange in enumerate(row.get("history") or [], start=1):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRowError(f"`history` exchange {number} is {exchange!r}"[:80] + ", expected [question, answer]")
        turns += _exchange(*(text_of(text, f"`history` exchange {number}") for text in exchange))
    return Parsed(turns + _exchange(asked, answer), system=_system(row))


def _exchange(asked: str, answer: str) -> Turns:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _parse_hh(row: Row) -> Parsed:
    """Read two transcripts, Anthropic's HH; a `prompt` column holds the start of both where there is one."""
    opening = row.get("prompt") or ""
    both = []
    for name in ("chosen", "rejected"):
        text = text_of(row.get(name), f"`{name}`")
        both.append(transcript_turns(text if text.lstrip().startswith("Human:") else f"{opening}{text}", name))
    return _pair(*_without_shared(*both), row)


def _parse_preference(row: Row) -> Parsed:
    chosen = _side(row.get("chosen"), "chosen", role="assistant")
    rejected = _side(row.get("rejected"), "rejected", role="assistant")
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        if row.get("prompt") is None:
            expected = "a `prompt`, or `chosen` and `rejected` as whole conversations that start alike"
            raise BadRowError(f"`prompt` is missing, expected {expected}")
        return _pair(_side(row["prompt"], "prompt", role="user"), chosen, rejected, row)
    prompt, chosen, rejected = _without_shared(chosen, rejected)
    given = row.get("prompt")
    if given is not None and not _is_same_prompt(_side(given, "prompt", role="user"), prompt):
        raise BadRowError("`prompt` differs from the turns `chosen` and `rejected` start with, expected the same")
    return _pair(prompt, chosen, rejected, row)


def _is_same_prompt(given: Turns, prompt: Turns) -> bool:
    """Data sets that repeat the prompt as text repeat its first or its last user turn."""
    asked = [turn for turn in prompt if turn["role"] == "user"]
    return given in (prompt, asked[:1], asked[-1:])


def _without_shared(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Split two conversations into the longest start they share that ends with the user, and what follows in each."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise BadRowError("`chosen` and `rejected` are the same, expected two responses")
    while same and chosen[same - 1]["role"] != "user":
        same -= 1
    if not same:
        raise BadRowError("`chosen` and `rejected` share no prompt, expected the same first turns up to a user turn")
    return chosen[:same], chosen[same:], rejected[same:]


def _pair(prompt: Turns, chosen: Turns, rejected: Turns, row: Row) -> Parsed:
    check_order(prompt, "prompt", last="user")
    check_order(chosen, "chosen", first="assistant", last="assistant")
    check_order(rejected, "rejected", first="assistant", last="assistant")
    if chosen == rejected:
        raise BadRowError("`chosen` and `rejected` are the same, expected two responses")
    return Parsed(prompt, chosen=chosen, rejected=rejected, margin=_margin(row.get("margin")), system=_system(row))


def _parse_prompt(row: Row) -> Parsed:
    turns = row.get("turns")
    value = row.get("prompt")
    if value is None and isinstance(turns, list) and turns:
        value = turns[0]
    return Parsed(_side(value, "prompt", role="user"), system=_system(row))


def _side(value: object, name: str, *, role: str) -> Turns:
    """Read a column that holds turns, a transcript, or the text of one turn of ``role``."""
    if isinstance(value, list):
        return turns_of(value, name)
    text = text_of(value, f"`{name}`")
    if role == "user" and text.startswith("\n\nHuman:"):
        turns = transcript_turns(text.rstrip().removesuffix("\n\nAssistant:"), name)
        check_order(turns, name, last="user")
        return turns
    return [{"role": role, "content": text}]


def _system(row: Row) -> str:
    value = row.get("system")
    return value if isinstance(value, str) and value.strip() else ""


def _label(row: Row) -> tuple[str, bool]:
    """Return the column that holds the label of a row, and whether it says good."""
    column = next((name for name in LABELS if row.get(name) not in (None, "")), None)
    if column is None:
        raise BadRowError("`label` is missing, expected true or false")
    value = row[column]
    if isinstance(value, str):  # CSV has text only
        label = _LABEL_WORDS.get(value.strip().casefold())
    else:
        label = bool(value) if isinstance(value, int | float) and value in (0, 1) else None
    if label is None:
        raise BadRowError(f"`{column}` is {value!r}"[:60] + ", expected true or false (or 1 or 0)")
    return column, label


def _margin(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        margin = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRowError(f"`margin` is {value!r}"[:60] + ", expected a finite number")
    return margin


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        parse: reads a row; raises `BadRowError`.
        columns: those it reads, which do not stay beside the shape.
        shapes: shapes it is used for without being asked.
        asked: shapes it is used for only when the recipe names the format.
    """

    parse: Callable[[Row], Parsed]
    columns: frozenset[str]
    shapes: tuple[Shape, ...]
    asked: tuple[Shape, ...] = ()


FORMATS: dict[str, Format] = {
    "text": Format(_parse_text, frozenset({"text"}), ("text", "prompt")),
    "messages": Format(_parse_messages, frozenset({"messages"}), ("messages", "labelled", "prompt"), ("text",)),
    "prompt_completion": Format(
        _parse_prompt_completion,
        frozenset({"prompt", "completion", "system"}),
        ("messages", "labelled", "prompt"),
        ("text",),
    ),
    "sharegpt": Format(
        _parse_sharegpt, frozenset({"conversations", "system"}), ("messages", "labelled", "prompt"), ("text",)
    ),
    "alpaca": Format(
        _parse_alpaca,
        frozenset({"instruction", "input", "output", "history", "system"}),
        ("messages", "labelled", "prompt"),
        ("text",),
    ),
    "hh": Format(
        _parse_hh,
        frozenset({"prompt", "chosen", "rejected", "margin"}),
        ("preference", "prompt"),
        ("messages", "text"),
    ),
    "preference": Format(
        _parse_preference,
        frozenset({"prompt", "chosen", "rejected", "margin", "system"}),
        ("preference", "prompt"),
        ("messages", "text"),
    ),
    "prompt": Format(_parse_prompt, frozenset({"prompt", "system"}), ("prompt",), ("text",)),
}


def detect(rows: Iterable[Row], *shapes: Shape) -> str | None:
    """Return the format most of the rows are in, None when they are in none; they are to be of one of the shapes."""
    votes = Counter(name for name in (_format_of(row, shapes) for row in rows) if name)
    return votes.most_common(1)[0][0] if votes else None


def _format_of(row: Row, shapes: Collection[Shape]) -> str | None:
    """Tell a format by its columns; the richer one first, as data sets repeat the same content in several."""
    has = {name for name, value in row.items() if value is not None}
    if "text" in shapes and isinstance(row.get("text"), str):
        return "text"
    if {"chosen", "rejected"} <= has:
        return "hh" if _holds_transcripts(row) else "preference"
    if "preference" in shapes and {"chosen", "rejected"} & has:
        return "preference"  # half a pair is a bad pair, not a prompt
    told_by = {
        "messages": {"messages"},
        "sharegpt": {"conversations"},
        "prompt_completion": {"prompt", "completion"},
        "alpaca": {"instruction", "output"},
        "prompt": {"prompt"},
        "text": {"text"},
    }
    found = next((name for name, columns in told_by.items() if columns <= has), None)
    return found or ("prompt" if isinstance(row.get("turns"), list) else None)


def _holds_transcripts(row: Row) -> bool:
    opening = row.get("prompt") if isinstance(row.get("prompt"), str) else row["chosen"]
    return isinstance(row["chosen"], str) and isinstance(opening, str) and bool(TRANSCRIPT_TURN.match(opening))


def shaped(row: Row, name: str, shape: Shape, system: str | None = None) -> dict[str, Any]:
    """Return the row a stage gets.

    Args:
        row: columns as read, renamed where the recipe says so.
        name: of the format.
        shape: wanted by the stage; one the format can give.
        system: system turn for a conversation that has none.

    Raises:
        BadRowError: the row is bad.
    """
    parsed = FORMATS[name].parse(row)
    if shape == "text":
        # Turns joined by a blank line: raw material for a tokenizer or for pretraining, no chat template.
        turns = parsed.turns + parsed.chosen
        made: dict[str, Any] = {"text": parsed.text or "\n\n".join(turn["content"] for turn in turns)}
    else:
        made = _conversation(parsed, name, shape, parsed.system or system or "")
    # A prompt row keeps the columns it does not use: an answer beside the prompt is what a reward function checks.
    used = frozenset({"prompt"}) if shape == "prompt" else FORMATS[name].columns
    if shape == "labelled":
        column, made["label"] = _label(row)
        used |= {column}
    return {**{column: value for column, value in row.items() if column not in used}, **made}


def _conversation(parsed: Parsed, name: str, shape: Shape, system: str) -> dict[str, Any]:
    turns = parsed.turns or [{"role": "user", "content": parsed.text}]
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    if shape in ("messages", "labelled"):
        turns = turns + parsed.chosen
        check_order(turns, name, last="assistant")
        return {"messages": turns} if shape == "messages" else {"prompt": turns[:-1], "completion": turns[-1:]}
    if shape == "preference":
        return {"prompt": turns, "chosen": parsed.chosen, "rejected": parsed.rejected, "margin": parsed.margin}
    if turns[-1]["role"] == "assistant" and "messages" in FORMATS[name].shapes:
        turns = turns[:-1]
    check_order(turns, name, last="user")
    return {"prompt": turns}
