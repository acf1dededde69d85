"""Row formats of demonstrations, preferences, prompts and text.

Owns one function per format, which parses a row into `Parsed`. Knows nothing of files, of format detection
(`detection.py`), or of the shapes that stages take (`shapes.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from pipeline.plain_data import Row
from pipeline.records.faults import BadRowError, json_in, kind_of_value, text_of
from pipeline.records.files.opening import is_unicode
from pipeline.records.shapes.comparisons import compared
from pipeline.records.shapes.turns import Turns, check_order, listed_messages, transcript_turns, turns_of
from pipeline.stage import Shape

NO_INPUT = ("noinput", "no input", "")
"""Values of `input` with which data sets say that an instruction has no input."""
TOOLS = frozenset({"tools", "functions"})
MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*[\"'](role|from|content|value)[\"']\s*:")
"""Matches the beginning of a list of messages written as text, as CSV files hold it."""


@dataclass
class Parsed:
    """The content of a row, independent of its format.

    Attributes:
        turns: the conversation, or the prompt of a pair.
        text: content of a text row.
        chosen: preferred continuation of ``turns``.
        rejected: the other continuation.
        margin: how much better the chosen continuation is.
        system: system message from a separate column.
        is_plain: whether all sides were plain text without roles.
    """

    turns: Turns = field(default_factory=list)
    text: str = ""
    chosen: Turns = field(default_factory=list)
    rejected: Turns = field(default_factory=list)
    margin: float | None = None
    system: str = ""
    is_plain: bool = False


def _parse_text(row: Row) -> Parsed:
    return Parsed(text=text_of(row.get("text"), "`text`"), is_plain=True)


def _parse_messages(row: Row) -> Parsed:
    return Parsed(turns_of(row.get("messages"), "messages"), system=_system(row))


def _parse_prompt_completion(row: Row) -> Parsed:
    prompt = _side(row.get("prompt"), "prompt", role="user")
    completion = _side(row.get("completion"), "completion", role="assistant")
    check_order(prompt, "prompt", last="user")
    check_order(completion, "completion", first="assistant", last="assistant")
    is_plain = is_plain_text(row["prompt"]) and is_plain_text(row["completion"])
    return Parsed(prompt + completion, system=_system(row), is_plain=is_plain)


def _parse_sharegpt(row: Row) -> Parsed:
    """Parse `conversations`: messages, objects of `input` and `output`, or alternating texts of user and assistant."""
    value, name = row.get("conversations"), "conversations"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str) and not isinstance(value, str):
        texts = [text_of(text, f"`{name}` turn {number}") for number, text in enumerate(value or [], start=1)]
        roles = ("user", "assistant")
        return Parsed([{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)], system=_system(row))
    if isinstance(first, Mapping) and {"input", "output"} <= first.keys() and isinstance(value, list):
        turns: Turns = []
        for number, one in enumerate(value, start=1):
            here = f"`{name}` exchange {number}"
            asked, answer = (one.get(key) if isinstance(one, Mapping) else None for key in ("input", "output"))
            turns += _exchange(text_of(asked, f"{here} `input`"), text_of(answer, f"{here} `output`"))
        return Parsed(turns, system=_system(row))
    return Parsed(turns_of(value, name), system=_system(row))


def _parse_alpaca(row: Row) -> Parsed:
    if isinstance(row.get("output"), list):
        raise BadRowError("`output` is a list", "text", "if the best answer stands first, `columns: {output: ranked}`")
    asked, answer = instruction_of(row), text_of(row.get("output"), "`output`")
    return Parsed(_history(row) + _exchange(asked, answer), system=_system(row))


def instruction_of(row: Row) -> str:
    """Return the `instruction` of a row, followed by its `input` if there is one.

    Raises:
        BadRowError: one of them is not text.
    """
    asked = text_of(row.get("instruction"), "`instruction`")
    context = row.get("input")
    if not context or (isinstance(context, str) and context.strip("<> ").casefold() in NO_INPUT):
        return asked
    return f"{asked}\n\n{text_of(context, '`input`')}"


def _history(row: Row) -> Turns:
    turns: Turns = []
    history = row.get("history") or []
    if isinstance(history, str) and history.lstrip().startswith("["):  # CSV has text only
        history = json_in(history, "`history`")
    if not isinstance(history, list):
        raise BadRowError(f"`history` is {kind_of_value(history)}", "a list of [question, answer]")
    for number, exchange in enumerate(history, start=1):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRowError(f"`history` exchange {number} is {exchange!r}"[:80], "[question, answer]")
        turns += _exchange(*(text_of(text, f"`history` exchange {number}") for text in exchange))
    return turns


def _exchange(asked: str, answer: str) -> Turns:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _parse_hh(row: Row) -> Parsed:
    """Parse two transcripts as in Anthropic's HH; a `prompt` column, if present, holds their common start."""
    opening = row.get("prompt") or ""
    both = []
    for name in ("chosen", "rejected"):
        text = text_of(row.get(name), f"`{name}`")
        both.append(transcript_turns(text if text.lstrip().startswith("Human:") else f"{opening}{text}", name))
        if all(turn["role"] == "user" for turn in both[-1]):
            raise BadRowError(f"`{name}` has no turn of the Assistant", "speakers that a blank line parts")
    return _pair(*_without_shared(*both), row)


def _parse_preference(row: Row) -> Parsed:
    row = of_openai(row)
    return pair_of(row.get("chosen"), row.get("rejected"), row)


def pair_of(better: object, worse: object, row: Row) -> Parsed:
    """Return a pair: two answers to the `prompt` (or `instruction`) of a row, or two conversations with a common start.

    Raises:
        BadRowError: the values are no such pair.
    """
    chosen = _side(better, "chosen", role="assistant")
    rejected = _side(worse, "rejected", role="assistant")
    prompt_value = row.get("prompt")
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        if prompt_value is None and row.get("instruction"):
            asked: Turns = [*_history(row), {"role": "user", "content": instruction_of(row)}]
            return _pair(asked, chosen, rejected, row)
        if prompt_value is None:
            expected = "a `prompt`, or `chosen` and `rejected` as whole conversations that start alike"
            raise BadRowError("`prompt` is missing", expected)
        pair = _pair(_side(prompt_value, "prompt", role="user"), chosen, rejected, row)
        pair.is_plain = all(map(is_plain_text, (prompt_value, better, worse)))
        return pair
    prompt, chosen, rejected = _without_shared(chosen, rejected)
    if prompt_value is not None and not _is_same_prompt(_side(prompt_value, "prompt", role="user"), prompt):
        statement = "`prompt` differs from the turns `chosen` and `rejected` start with"
        raise BadRowError(statement, "the same")
    return _pair(prompt, chosen, rejected, row)


def of_openai(row: Row) -> Row:
    """Return a row of OpenAI's preference files with our column names; any other row unchanged."""
    asked = row.get("input")
    if not (isinstance(asked, Mapping) and row.get("preferred_output") is not None):
        return row
    named = {"chosen": row["preferred_output"], "rejected": row.get("non_preferred_output")}
    return {**row, "prompt": asked.get("messages"), "tools": asked.get("tools"), **named}


def parse_comparison(row: Row, *, is_prompt: bool = False) -> Parsed:
    """Parse a comparison into a pair; with ``is_prompt`` only the prompt matters, so ties are allowed.

    Raises:
        BadRowError: the row is not a comparison.
    """
    one = compared(row, is_prompt=is_prompt)
    beside = {name: row[name] for name in ("system", "history") if name in row and name not in one.columns}
    if one.asked is None:
        return pair_of(one.better, one.worse, beside)
    column, asked = one.asked
    if column == "instruction" and isinstance(asked, str):
        return pair_of(one.better, one.worse, {**beside, "instruction": asked, "input": row.get("input")})
    return pair_of(one.better, one.worse, {**beside, "prompt": asked})


def _is_same_prompt(given: Turns, prompt: Turns) -> bool:
    """Return whether a `prompt` column repeats a prompt: all of it, or its first or last user turn."""
    asked = [turn for turn in prompt if turn["role"] == "user"]
    return given in (prompt, asked[:1], asked[-1:])


def _without_shared(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Split two conversations into their longest common start that ends with a user turn, and the rest of each."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise BadRowError("`chosen` and `rejected` are the same", "two responses")
    while same and chosen[same - 1]["role"] != "user":
        same -= 1
    if not same:
        raise BadRowError("`chosen` and `rejected` share no prompt", "the same first turns up to a user turn")
    return chosen[:same], chosen[same:], rejected[same:]


def _pair(prompt: Turns, chosen: Turns, rejected: Turns, row: Row) -> Parsed:
    check_order(prompt, "prompt", last="user")
    check_order(chosen, "chosen", first="assistant", last="assistant")
    check_order(rejected, "rejected", first="assistant", last="assistant")
    untrained = next((turn for turn in (*chosen, *rejected) if turn.get("train") is False), None)
    if untrained is not None:
        raise BadRowError("a response has a turn that is not to be learnt", "responses that count whole")
    if chosen == rejected:
        raise BadRowError("`chosen` and `rejected` are the same", "two responses")
    return Parsed(prompt, chosen=chosen, rejected=rejected, margin=_margin(row.get("margin")), system=_system(row))


def _parse_prompt(row: Row) -> Parsed:
    turns = row.get("turns")
    value = row.get("prompt")
    if value is None and isinstance(turns, list) and turns:
        value = turns[0]
    if value is None and row.get("instruction"):
        asked: Turns = [*_history(row), {"role": "user", "content": instruction_of(row)}]
        return Parsed(asked, system=_system(row))
    return Parsed(_side(value, "prompt", role="user"), system=_system(row), is_plain=is_plain_text(value))


def _parse_candidates(row: Row) -> Parsed:
    """Parse a prompt with several answers, as a `sample` stage writes them; the answers stay in their column."""
    answers = row.get("candidates")
    if not holds_candidates(answers):
        raise BadRowError("`candidates` holds something else than answers", 'a list of {"text": …}')
    if not all(is_unicode(one["text"]) for one in answers):
        raise BadRowError("the text of a candidate holds half of a surrogate pair", "Unicode text")
    return _parse_prompt(row)


def holds_candidates(value: object) -> TypeGuard[list[Mapping[str, str]]]:
    """Return whether a value is a list of answers, each an object with a `text`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in value)
    )


def _side(value: object, name: str, *, role: str) -> Turns:
    """Parse a column that holds turns, a transcript, or the text of one turn of ``role``."""
    if isinstance(value, list) or (isinstance(value, str) and MESSAGES_AS_TEXT.match(value)):
        return turns_of(listed_messages(value, name), name)
    text = text_of(value, f"`{name}`")
    if role == "user" and text.startswith("\n\nHuman:"):
        turns = transcript_turns(text.rstrip().removesuffix("\n\nAssistant:"), name)
        check_order(turns, name, last="user")
        return turns
    return [{"role": role, "content": text}]


def is_plain_text(value: object) -> bool:
    """Return whether a value is plain text without roles."""
    return isinstance(value, str) and not value.startswith("\n\nHuman:") and not MESSAGES_AS_TEXT.match(value)


def _system(row: Row) -> str:
    value = row.get("system")
    if value and not isinstance(value, str):
        raise BadRowError(
            f"`system` is {kind_of_value(value)}", "text", "if it is no system turn, `columns: {system: note}`"
        )
    return value if value and value.strip() else ""


def _margin(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        margin = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRowError(f"`margin` is {value!r}"[:60], "a finite number")
    return margin


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        parse: parses a row; raises `BadRowError`.
        columns: columns it reads, which are removed from the row.
        shapes: shapes it can give when it is detected.
        asked: shapes it can give only when the recipe names the format.
    """

    parse: Callable[[Row], Parsed]
    columns: frozenset[str]
    shapes: tuple[Shape, ...]
    asked: tuple[Shape, ...] = ()


ALPACA_ASKED = ("instruction", "input", "history")
OPENAI_PAIR = ("preferred_output", "non_preferred_output")
CONVERSED: tuple[Shape, ...] = ("messages", "labelled", "prompt")
PAIRED: tuple[Shape, ...] = ("preference", "prompt")

FORMATS: dict[str, Format] = {
    "text": Format(_parse_text, frozenset({"text"}), ("text", "prompt")),
    "messages": Format(_parse_messages, frozenset({"messages", "system", *TOOLS}), CONVERSED, ("text",)),
    "prompt_completion": Format(
        _parse_prompt_completion, frozenset({"prompt", "completion", "system", *TOOLS}), CONVERSED, ("text",)
    ),
    "sharegpt": Format(_parse_sharegpt, frozenset({"conversations", "system", *TOOLS}), CONVERSED, ("text",)),
    "alpaca": Format(
        _parse_alpaca, frozenset({"instruction", "input", "output", "history", "system", *TOOLS}), CONVERSED, ("text",)
    ),
    "hh": Format(
        _parse_hh,
        frozenset({"prompt", "chosen", "rejected", "margin", "system", *TOOLS}),
        PAIRED,
        ("messages", "text"),
    ),
    "preference": Format(
        _parse_preference,
        frozenset({"prompt", "chosen", "rejected", "margin", "system", *TOOLS, *ALPACA_ASKED, *OPENAI_PAIR}),
        PAIRED,
        ("messages", "text"),
    ),
    "comparison": Format(parse_comparison, frozenset({"system", *TOOLS}), PAIRED, ("messages", "text")),
    "prompt": Format(_parse_prompt, frozenset({"prompt", "system", *TOOLS, *ALPACA_ASKED}), ("prompt",), ("text",)),
    "candidates": Format(_parse_candidates, frozenset({"prompt", "system", *TOOLS}), ("candidates",)),
}


def read_columns(name: str, row: Row) -> frozenset[str]:
    """Return the columns a format reads of a row; in a row with a `prompt`, `instruction` is not read."""
    columns = FORMATS[name].columns
    if name == "comparison":
        read = compared(row, is_prompt=True).columns
        return columns | read | ({"history"} if "instruction" in read else set())
    if row.get("prompt") is not None and name in ("preference", "prompt"):
        return columns - {*ALPACA_ASKED}
    return columns
