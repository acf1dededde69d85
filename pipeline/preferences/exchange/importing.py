"""Labels of other tools as events of the ledger.

A row is matched to an item by its texts, without regard to white space and to the order of both responses. Nothing is
overwritten: of a person who has answered an item already, the answer in the ledger stays. A file that is imported twice
therefore changes nothing the second time.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast, get_args

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject, Row
from pipeline.preferences.details import Details
from pipeline.preferences.events import EventBody, EventKind, FlagKind, NewEvent, Rating, Verdict
from pipeline.preferences.exchange.texts import Key, keys_of, words
from pipeline.preferences.items import Item, text_of
from pipeline.preferences.labels import Answer, State
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.conversion import shaped

VERDICTS: Mapping[str, Verdict] = {
    **dict.fromkeys(("response_a", "first", "a", "left", "1"), "first"),
    **dict.fromkeys(("response_b", "second", "b", "right", "2"), "second"),
    "tie": "tie",
    "both good": "both good",
    "both bad": "both bad",
}
"""Words of a verdict; `first` is the response that the row names first."""

RESPONSES: Mapping[str, Verdict] = {"response_a": "first", "response_b": "second"}
MIRRORED: Mapping[str, Verdict] = {"first": "second", "second": "first"}


class Said(NamedTuple):
    """What a row says that somebody said of a pair.

    Attributes:
        prompt: words of the prompt.
        responses: words of both responses, in the order of the row.
        person: who said it; empty when the row does not say.
        kind: `label`, `skip` or `flag`.
        verdict: verdict of a label; `first` is the first of ``responses``.
        strength: strength of a preference.
        seconds: time a label took; None when the row does not say.
        left: place of the response on the left of the screen, 0 or 1; None when the row does not say.
        guidelines: version of the guidelines.
        reason: reason for a skip or a flag.
        details: what else was said; ratings are of ``responses`` in the order of the row.
    """

    prompt: str
    responses: tuple[str, str]
    person: str = ""
    kind: EventKind = "label"
    verdict: Verdict | None = None
    strength: int = 1
    seconds: float | None = None
    left: int | None = None
    guidelines: str = ""
    reason: str = ""
    details: Details = Details()


def pair_format(row: Row) -> str:
    """Return the format of a file's rows, from the first of them.

    Raises:
        PipelineError: the columns are those of no format.
    """
    if isinstance(row.get("data"), Mapping) and ("annotations" in row or "completions" in row):
        return "label-studio"
    if isinstance(row.get("fields"), Mapping) and "responses" in row:
        return "argilla"
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


def _of_raw(row: Row) -> Iterator[Said]:
    kind = str(row.get("kind") or "label")
    verdict = VERDICTS.get(str(row.get("verdict") or "").strip().casefold())
    if kind not in ("label", "skip", "flag") or (kind == "label" and verdict is None):
        return
    left = {"response_a": 0, "response_b": 1}.get(str(row.get("left") or ""))
    yield Said(
        words(row["prompt"]),
        (words(row["response_a"]), words(row["response_b"])),
        str(row.get("person") or ""),
        cast(EventKind, kind),
        verdict if kind == "label" else None,
        _strength(row.get("strength")),
        _seconds(row.get("seconds")),
        left,
        str(row.get("guidelines") or ""),
        str(row.get("reason") or ""),
        _details(row),
    )


_NO_DETAILS = Details()


def _details(row: Row) -> Details:
    """Return what a raw row says besides the verdict.

    Raises:
        ValueError: a flag or ratings are not those of an export.
    """
    if not any(row.get(name) for name in Details._fields):
        return _NO_DETAILS
    told = row.get("ratings") or {}
    ratings = json.loads(told) if isinstance(told, str) else told
    flag = row.get("flag") or None
    if flag is not None and flag not in get_args(FlagKind):
        raise ValueError(flag)
    by_place = {name: {RESPONSES.get(key, key): value for key, value in one.items()} for name, one in ratings.items()}
    for one in by_place.values():
        if "better" in one:
            one["better"] = RESPONSES.get(one["better"], one["better"])
    if not all(_is_rating(one) for one in by_place.values()):
        raise ValueError(told)
    checked = cast(Mapping[str, Rating], by_place)
    return Details(str(row.get("comment") or ""), str(row.get("edit") or ""), flag, checked)


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


def _of_argilla(row: Row) -> Iterator[Said]:
    fields, metadata = row["fields"], row.get("metadata") or {}
    people = dict(str(one).split(" ", 1) for one in metadata.get("people") or () if " " in str(one))
    texts = _two_texts(fields)
    answers = row["responses"]
    named = [name for name in answers if name != "strength"]
    votes = answers.get("preference") or (answers[named[0]] if len(named) == 1 else None) or []
    strengths = {str(one.get("user_id")): one.get("value") for one in answers.get("strength") or ()}
    names = {name.casefold(): place for place, name in enumerate(texts[1])}
    for vote in votes:
        user, value = str(vote.get("user_id") or ""), str(vote.get("value") or "").strip()
        place = names.get(value.casefold())
        verdict = VERDICTS.get(value.casefold()) if place is None else VERDICTS["ab"[place]]
        if verdict is not None:
            person = people.get(user) or (f"argilla-{user[:8]}" if _is_uuid(user) else user)
            yield Said(*_said_texts(texts), person, verdict=verdict, strength=_strength(strengths.get(user)))


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
        verdict = VERDICTS.get(str(word).casefold())
        if verdict is not None:
            written = results.get("textarea", {}).get("text") or [""]
            person = str(written if isinstance(written, str) else written[0]) or _annotator(annotation)
            strength = _strength(results.get("rating", {}).get("rating"))
            seconds = _seconds(annotation.get("lead_time"))
            yield Said(*_said_texts(texts), person, verdict=verdict, strength=strength, seconds=seconds)


def _annotator(annotation: Row) -> str:
    """Return who made an annotation: Label Studio writes an id, or an object with a mail address."""
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    return f"label-studio-{who}" if isinstance(who, int) else str(who or "")


_PROMPTS = ("prompt", "instruction", "question", "input")
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
    prompt = next((columns[name] for name in _PROMPTS if columns.get(name)), None)
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


def _seconds(value: object) -> float | None:
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


_READERS: Mapping[str, Callable[[Row], Iterator[Said]]] = {
    "raw": _of_raw,
    "argilla": _of_argilla,
    "label-studio": _of_label_studio,
    "hh": lambda row: _of_pair(row, "hh"),
    "preference": lambda row: _of_pair(row, "preference"),
}
READ_AS = {"csv": "raw", "parquet": "raw"}
"""Formats of files that are read as another format: their rows are the same."""


class Import(NamedTuple):
    """The events that a file gives.

    Attributes:
        events: labels, skips and flags that are not in the ledger yet.
        counts: number of rows and labels by what becomes of them.
    """

    events: list[NewEvent]
    counts: Counter[str]


class Matcher:
    """Finds the items of rows by their texts.

    Args:
        items: items of the batch.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items: dict[Key, tuple[str, str]] = {}
        for item in items:
            first = words(text_of(item.responses[0]))
            for key in keys_of(item):
                self._items.setdefault(key, (item.id, first))

    def item_of(self, said: Said) -> tuple[str, bool] | None:
        """Return the id of a row's item, and whether the row has its responses in the other order; None without one."""
        known = self._items.get((said.prompt, frozenset(said.responses)))
        return (known[0], said.responses[0] != known[1]) if known else None


def said_in(rows: Iterable[Row | None], row_format: str, counts: Counter[str]) -> Iterator[Said]:
    """Yield what each row says, and count the rows that say nothing or cannot be read.

    Args:
        rows: rows of a file; None for a row that cannot be read.
        row_format: one of `pair_format`'s.
        counts: counts rows by what becomes of them.
    """
    for row in rows:
        if row is None:
            counts["row that cannot be read"] += 1
            continue
        try:
            said = list(_READERS[row_format](row))
        except (BadRowError, KeyError, TypeError, ValueError, AttributeError):
            counts["row that cannot be read"] += 1
            continue
        if not said:
            counts["row without a verdict"] += 1
        yield from said


def events_of(said: Iterable[Said], matcher: Matcher, state: State, source: str, person: str) -> Import:
    """Return the events of what rows say, and count what makes none.

    Args:
        said: what rows say.
        matcher: finds their items.
        state: state of the ledger; answers in it stay.
        source: name of the file.
        person: who said what names nobody.
    """
    events: list[NewEvent] = []
    counts = Counter[str]()
    new: dict[tuple[str, str], JsonObject] = {}
    for one in said:
        match = matcher.item_of(one)
        name = one.person.strip() or person
        if match is None:
            counts["label of no pair of this batch"] += 1
        elif not name:
            counts["label that names no person"] += 1
        else:
            item, is_mirrored = match
            body = _body(one, item, name, source, is_mirrored=is_mirrored)
            answer = state.answers.get(name, {}).get(item)
            before = new.get((name, item)) or (_answered(answer) if answer is not None else None)
            if before is None:
                new[name, item] = {**body, "kind": one.kind}
                events.append((one.kind, cast(EventBody, body)))
            elif all(before.get(key) == value for key, value in _compared(body, one.kind).items()):
                counts["label that is there already"] += 1
            else:
                counts["label that differs from the one there, which stays"] += 1
    return Import(events, counts)


def _answered(answer: Answer) -> JsonObject:
    """Return what `_compared` reads of an answer."""
    return {"kind": answer.kind, "verdict": answer.verdict, "strength": answer.strength}


def _compared(body: JsonObject, kind: str) -> JsonObject:
    if kind != "label":
        return {"kind": kind}
    keys = ("verdict", "strength") if body["verdict"] in MIRRORED else ("verdict",)
    return {"kind": kind, **{key: body[key] for key in keys}}


def _body(said: Said, item: str, person: str, source: str, *, is_mirrored: bool) -> JsonObject:
    body: JsonObject = {"item": item, "annotator": person, "source": source}
    details = said.details
    if said.kind != "label":
        return {**body, "reason": said.reason, **({"flag": details.flag} if details.flag else {})}
    verdict = MIRRORED.get(str(said.verdict), said.verdict) if is_mirrored else said.verdict
    swapped = None if said.left is None else (said.left == 1) != is_mirrored
    told = {"verdict": verdict, "strength": said.strength, "seconds": said.seconds, "swapped": swapped}
    more: JsonObject = {"guidelines": said.guidelines, "comment": details.comment, "edit": details.edit}
    more["ratings"] = {name: _mirrored(one) if is_mirrored else one for name, one in details.ratings.items()}
    return {**body, **told, **{key: value for key, value in more.items() if value}}


def _mirrored(rating: Rating) -> JsonObject:
    """Return a rating with the two responses exchanged."""
    return {
        MIRRORED.get(key, key): MIRRORED.get(str(value), value) if key == "better" else value
        for key, value in rating.items()
    }
