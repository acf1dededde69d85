"""What the rows of other tools' files say that people said of pairs, in one form.

Owns the formats of rows and the words of verdicts. Knows nothing of the batch: `importing.py` finds the pairs.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, cast, get_args

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject, Row
from pipeline.preferences.details import Details
from pipeline.preferences.events import EventKind, FlagKind, Rating, Verdict
from pipeline.preferences.exchange.files import RANKING_TABLE, TABLE
from pipeline.preferences.exchange.texts import words
from pipeline.preferences.items import text_of
from pipeline.preferences.labels import Tiers
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.conversion import shaped

VERDICTS: Mapping[str, Verdict] = {
    **dict.fromkeys(("response a", "first", "a", "left", "1", "model a"), "first"),
    **dict.fromkeys(("response b", "second", "b", "right", "2", "model b"), "second"),
    "tie": "tie",
    "both good": "both good",
    **dict.fromkeys(("both bad", "bothbad", "tie (bothbad)"), "both bad"),  # the last is Arena's
}
"""Words of a verdict, as `_verdict` normalises them; `first` is the response that the row names first."""

COLUMNS: Mapping[str, frozenset[str]] = {
    "raw": frozenset(TABLE) | frozenset(RANKING_TABLE),
    "preference": frozenset({"prompt", "chosen", "rejected", "margin", "person", "annotator", "tools"}),
}
"""Columns of the formats that are tables."""

MOST_UNKNOWN = 5
"""Words that are no verdict, of which an import shows so many."""

RESPONSES: Mapping[str, Verdict] = {"response_a": "first", "response_b": "second"}


class Said(NamedTuple):
    """What a row says that somebody said of a pair or a group.

    Attributes:
        prompt: words of the prompt.
        responses: words of the responses, in the order of the row.
        person: who said it; empty when the row does not say.
        kind: `label`, `skip` or `flag`.
        verdict: verdict of a label; `first` is the first of ``responses``.
        strength: strength of a preference.
        seconds: time a label took; None when the row does not say.
        left: place of the response on the left of the screen, 0 or 1; None when the row does not say.
        guidelines: version of the guidelines.
        reason: reason for a skip or a flag.
        details: what else was said; ratings are of ``responses`` in the order of the row.
        item: id that the row gives its pair: of an export, the item's; empty when there is none.
        tiers: ranking of a group, by places in ``responses``; None of a pair.
        order: places in ``responses`` in the order of the screen; None when the row does not say.
    """

    prompt: str
    responses: tuple[str, ...]
    person: str = ""
    kind: EventKind = "label"
    verdict: Verdict | None = None
    strength: int = 1
    seconds: float | None = None
    left: int | None = None
    guidelines: str = ""
    reason: str = ""
    details: Details = Details()
    item: str = ""
    tiers: Tiers | None = None
    order: tuple[int, ...] | None = None


Reader = Callable[[Row], Iterator[Said]]
"""Yields what a row says."""


def tool_format(row: Row) -> str | None:
    """Return the tool whose export has a row; None for a row of a table."""
    if isinstance(row.get("data"), Mapping) and ("annotations" in row or "completions" in row):
        return "label-studio"
    return "argilla" if isinstance(row.get("fields"), Mapping) and "responses" in row else None


def pair_format(row: Row) -> str:
    """Return the format of a file's rows, from the first of them.

    Raises:
        PipelineError: the columns are those of no format.
    """
    if tool := tool_format(row):
        return tool
    if {"response_a", "response_b", "verdict"} <= row.keys():
        return "raw"
    if {"chosen", "rejected"} <= row.keys():
        return "hh" if isinstance(row["chosen"], str) and row["chosen"].lstrip().startswith("Human:") else "preference"
    raise PipelineError(
        Problem(
            f"the first row has the columns {', '.join(map(str, row))}"[:200],
            "rows of Argilla, Label Studio, `raw`, CSV, Parquet, or of pairs `prompt`, `chosen`, `rejected`",
            "see `trueup labels export`, whose formats can be imported, except `unpaired`",
        )
    )


def cell_text(value: object) -> str:
    """Return the value of a cell as text; an empty cell of a table is None, or NaN where pandas wrote it."""
    return "" if value is None or value != value else str(value)


def _verdict(value: object) -> Verdict | None:
    """Return the verdict that a word stands for; None for any other word."""
    word = re.sub(r"[\s_-]+", " ", cell_text(value)).strip().casefold()
    return VERDICTS.get(word)


def _of_raw(row: Row) -> Iterator[Said]:
    kind = cell_text(row.get("kind")) or "label"
    verdict = _verdict(row.get("verdict"))
    if kind not in ("label", "skip", "flag") or (kind == "label" and verdict is None):
        return
    left = {"response_a": 0, "response_b": 1}.get(str(row.get("left") or ""))
    yield Said(
        words(row["prompt"]),
        (words(row["response_a"]), words(row["response_b"])),
        cell_text(row.get("person")),
        cast(EventKind, kind),
        verdict if kind == "label" else None,
        _strength(row.get("strength")),
        seconds_of(row.get("seconds")),
        left,
        cell_text(row.get("guidelines")),
        cell_text(row.get("reason")),
        _details(row),
        cell_text(row.get("item")),
    )


def _details(row: Row) -> Details:
    """Return what a raw row says besides the verdict.

    Raises:
        ValueError: a flag or ratings are not those of an export.
    """
    if not any(row.get(name) for name in Details._fields):  # as most rows
        return Details()
    told = row["ratings"] if cell_text(row.get("ratings")) else {}
    ratings = json.loads(told) if isinstance(told, str) else told
    by_place = {name: {RESPONSES.get(key, key): value for key, value in one.items()} for name, one in ratings.items()}
    for one in by_place.values():
        if "better" in one:
            one["better"] = RESPONSES.get(one["better"], one["better"])
    if not all(_is_rating(one) for one in by_place.values()):
        raise ValueError(told)
    checked = cast(Mapping[str, Rating], by_place)
    return Details(cell_text(row.get("comment")), cell_text(row.get("edit")), flag_of(row), checked)


def flag_of(row: Row) -> FlagKind | None:
    """Return the kind of a flag that a raw row says.

    Raises:
        ValueError: it is not one of an export.
    """
    flag = cell_text(row.get("flag")) or None
    if flag is not None and flag not in get_args(FlagKind):
        raise ValueError(flag)
    return cast(FlagKind | None, flag)


def _is_rating(said: JsonObject) -> bool:
    """Return whether a value rates responses or compares them, with or without a reason."""
    rated = [said.get(key) for key in ("first", "second") if key in said]
    is_sound = all(isinstance(value, int) for value in rated) and isinstance(said.get("rationale", ""), str)
    is_known = bool(said) and said.keys() <= {"first", "second", "better", "rationale"}
    is_one = not rated or "better" not in said
    return is_known and is_sound and is_one and said.get("better", "tie") in ("first", "second", "tie")


def _of_pair(row: Row, row_format: str) -> Iterator[Said]:
    pair = shaped(row, row_format, "preference")
    margin = pair.get("margin")
    texts = (words(text_of(pair["chosen"])), words(text_of(pair["rejected"])))
    verdict: Verdict = "tie" if margin == 0 else "first"
    yield Said(
        words(text_of(pair["prompt"])),
        texts,
        str(row.get("person") or row.get("annotator") or ""),
        verdict=verdict,
        strength=_strength(margin),
    )


def people_of(row: Row) -> Callable[[str], str]:
    """Return what gives the name of a user of Argilla: of an export, that of the person."""
    metadata = row.get("metadata") or {}
    people = dict(str(one).split(" ", 1) for one in metadata.get("people") or () if " " in str(one))
    return lambda user: people.get(user) or (f"argilla-{user[:8]}" if _is_uuid(user) else user)


def _of_argilla(row: Row) -> Iterator[Said]:
    fields, name_of = row["fields"], people_of(row)
    texts = _two_texts(fields)
    answers = row["responses"]
    named = [name for name in answers if name != "strength"]
    votes = answers.get("preference") or (answers[named[0]] if len(named) == 1 else None) or []
    strengths = {str(one.get("user_id")): one.get("value") for one in answers.get("strength") or ()}
    names = {name.casefold(): place for place, name in enumerate(texts[1])}
    for vote in votes:
        if str(vote.get("status") or "submitted") != "submitted":  # a draft, or discarded
            continue
        user, value = str(vote.get("user_id") or ""), str(vote.get("value") or "").strip()
        place = names.get(value.casefold())
        verdict = _verdict(value) if place is None else VERDICTS["ab"[place]]
        if verdict is not None:
            person = name_of(user)
            strength, item = _strength(strengths.get(user)), str(row.get("id") or "")
            yield Said(*_said_texts(texts), person, verdict=verdict, strength=strength, item=item)


def _is_uuid(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


def _of_label_studio(row: Row) -> Iterator[Said]:
    texts = _two_texts(row["data"])
    for annotation in row.get("annotations") or row.get("completions") or ():
        results = {str(one.get("type")): one.get("value") or {} for one in annotation.get("result") or ()}
        if annotation.get("was_cancelled") or not results:
            continue
        choices = results.get("choices", {}).get("choices") or [""]
        word = results.get("pairwise", {}).get("selected") or choices[0]
        verdict = _verdict(word)
        if verdict is not None:
            person = annotator_of(annotation, results)
            strength = _strength(results.get("rating", {}).get("rating"))
            seconds, item = seconds_of(annotation.get("lead_time")), str(row["data"].get("item") or "")
            yield Said(*_said_texts(texts), person, verdict=verdict, strength=strength, seconds=seconds, item=item)


def annotator_of(annotation: Row, results: Row) -> str:
    """Return who made an annotation: the text of an export, else Label Studio's id or the mail address it gives."""
    written = results.get("textarea", {}).get("text") or [""]
    if name := str(written if isinstance(written, str) else written[0]):
        return name
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    return f"label-studio-{who}" if isinstance(who, int) else str(who or "")


PROMPTS = ("prompt", "instruction", "question", "input")
_RESPONSES = (
    *((f"{word}_a", f"{word}_b") for word in ("response", "answer", "completion")),
    *((f"{word}{gap}1", f"{word}{gap}2") for word in ("response", "answer", "text") for gap in ("", "_", "-")),
)
"""Names of the prompt and of both responses in records of Argilla and tasks of Label Studio."""


def _two_texts(columns: Row) -> tuple[object, Mapping[str, object]]:
    """Return prompt and both responses of a record by their names.

    Raises:
        BadRowError: the record has other columns.
    """
    prompt = next((columns[name] for name in PROMPTS if columns.get(name)), None)
    for names in _RESPONSES:
        if prompt is not None and all(name in columns for name in names):
            return prompt, {name: columns[name] for name in names}
    raise BadRowError(f"has {', '.join(map(str, columns))}"[:80], "`prompt`, `response_a` and `response_b`")


def _said_texts(texts: tuple[object, Mapping[str, object]]) -> tuple[str, tuple[str, str]]:
    prompt, responses = texts
    first, second = map(words, responses.values())
    return words(prompt), (first, second)


def _strength(value: object) -> int:
    """Return a rating or a margin as a strength of 1 to 3; 1 for what is no number."""
    try:
        return min(3, max(1, round(float(str(value)))))
    except (ValueError, OverflowError):
        return 1


def seconds_of(value: object) -> float | None:
    """Return a time in seconds; None for what is none."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


READERS: Mapping[str, Reader] = {
    "raw": _of_raw,
    "argilla": _of_argilla,
    "label-studio": _of_label_studio,
    "hh": lambda row: _of_pair(row, "hh"),
    "preference": lambda row: _of_pair(row, "preference"),
}
"""By format, what reads a row with pairs."""

READ_AS = {"csv": "raw", "parquet": "raw"}
"""Formats of files that are read as another format: their rows are the same."""


def said_in(
    rows: Iterable[Row | None], row_format: str, counts: Counter[str], readers: Mapping[str, Reader] = READERS
) -> Iterator[Said]:
    """Yield what each row says, and count the rows that say nothing or cannot be read.

    Args:
        rows: rows of a file; None for a row that cannot be read.
        row_format: one of `pair_format`'s, or of the readers'.
        counts: counts rows by what becomes of them.
        readers: by format, what reads a row.
    """
    for row in rows:
        if row is None:
            counts["row that cannot be read"] += 1
            continue
        try:
            said = list(readers[row_format](row))
            json.dumps(said, ensure_ascii=False, default=dict).encode()  # half a surrogate pair is no text
        except (BadRowError, KeyError, TypeError, ValueError, AttributeError):
            counts["row that cannot be read"] += 1
            continue
        if not said:
            counts[_unknown(row, row_format, counts)] += 1
        yield from said


def unread_columns(rows: Iterable[Row | None], row_format: str) -> list[str]:
    """Return the columns of a table that an import does not read, in their order; none of formats that are no tables.

    Args:
        rows: rows of a file; None for a row that cannot be read.
        row_format: one of `pair_format`'s.
    """
    known = COLUMNS.get("preference" if row_format == "hh" else row_format)
    if known is None:
        return []
    return [name for name in dict.fromkeys(str(name) for row in rows for name in row or ()) if name not in known]


def _unknown(row: Row, row_format: str, counts: Counter[str]) -> str:
    """Return what is said of a row without a verdict: the word that is none, where there are not too many of them."""
    word = " ".join(cell_text(row.get("verdict")).split())[:40] if row_format == "raw" else ""
    told = f"row with “{word}” for a verdict"
    shown = sum(what.endswith("for a verdict") for what in counts)
    return told if word and (told in counts or shown < MOST_UNKNOWN) else "row without a verdict"
