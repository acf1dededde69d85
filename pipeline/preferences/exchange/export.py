"""Labels as rows of other formats: pairs and single answers to train on, and what each person said.

Each function returns rows with the prompt that decides on which side of a split they fall. Pairs and single answers are
aggregated over people; the other formats have a row or an annotation for each label.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from pydantic_core import to_json

from pipeline.plain_data import JsonObject
from pipeline.preferences.agreement import Decide, decided, exported, majority
from pipeline.preferences.blinding import pseudonym
from pipeline.preferences.details import Details
from pipeline.preferences.edits import chosen_edit, edited, edited_items
from pipeline.preferences.events import Rating, Verdict
from pipeline.preferences.exchange.texts import cell, readable, transcript
from pipeline.preferences.items import Item, Turns
from pipeline.preferences.labels import Answer, State
from pipeline.preferences.stored_items import ids_of, items_at
from pipeline.records.shapes.turns import content_of
from pipeline.records.split import split

SIDES: Mapping[str, str] = {"first": "response_a", "second": "response_b"}
"""Name of a response in an export, by its place in the data."""

NO_PLACE = "label whose comment, edit or ratings have no place there"

ARGILLA_NAMESPACE = uuid.UUID("5e4c1bd1-3f8a-5f44-9d0c-7d9c7a5e11aa")
"""Namespace of the ids under which Argilla knows annotators of this app."""


class Labels(NamedTuple):
    """What is exported.

    Attributes:
        items: items of the batch.
        state: labels.
        times: Unix time of each event, by number.
        decide: aggregates the labels of an item.
        ties: whether items without a preference make pairs of margin 0.
        pseudonyms: whether names of annotators are replaced.
    """

    items: Sequence[Item]
    state: State
    times: Mapping[int, float]
    decide: Decide = majority
    ties: bool = False
    pseudonyms: bool = False

    def name(self, annotator: str) -> str:
        """Return the name of an annotator in the export."""
        return pseudonym(self.state.salt, annotator) if self.pseudonyms else annotator


class Exported(NamedTuple):
    """A row of an export.

    Attributes:
        prompt: prompt of the row.
        row: the row as it is written.
    """

    prompt: Turns
    row: JsonObject


Rows = tuple[list[Exported], Counter[str]]
"""Rows, and the number of items, labels or answers without one by reason."""


def preference_rows(labels: Labels) -> Rows:
    """Return trl's preference rows, conversational, with a margin."""
    rows, without = exported(labels.items, labels.state, labels.decide, ties=labels.ties)
    return [Exported(tuple(row["prompt"]), {**row}) for row in rows], without


def hh_rows(labels: Labels) -> Rows:
    """Return pairs of transcripts as in Anthropic's HH; pairs that cannot be said as transcripts are counted."""
    rows, without = exported(labels.items, labels.state, labels.decide)
    hh = []
    for row in rows:
        told = {side: transcript([*row["prompt"], *row[side]]) for side in ("chosen", "rejected")}
        if None in told.values() or "tools" in row:
            without["not a transcript"] += 1
        else:
            hh.append(Exported(tuple(row["prompt"]), told))
    return hh, without


def unpaired_rows(labels: Labels) -> Rows:
    """Return trl's unpaired rows: one for each answer that people found good or bad.

    The preferred response of a decision, as the people who preferred it edited it, is good and the other one bad. Both
    are good, or bad, where the decision says so. An answer in several pairs is what most of their decisions say. An
    answer with as many for as against makes no row, and neither do ties and split votes.
    """
    decisions, without = decided(labels.items, labels.state, labels.decide)
    without.update(verdict for _, (verdict, _) in decisions if verdict not in _GOOD)
    good = [(place, verdict) for place, (verdict, _) in decisions if verdict in _GOOD]
    are_edited = edited_items(labels.state)
    balances: dict[tuple[bytes, bytes], int] = defaultdict(int)
    answers: dict[tuple[bytes, bytes], tuple[Item, Turns]] = {}
    for item, (_, verdict) in zip(items_at(labels.items, [place for place, _ in good]), good, strict=True):
        responses = list(item.responses)
        if verdict in SIDES and item.id in are_edited:
            place = [*SIDES].index(verdict)
            edit = chosen_edit(labels.state.labels(item.id).values(), cast(Verdict, verdict))
            responses[place] = tuple(edited(responses[place], edit))
        prompt = to_json(item.prompt)
        for response, is_good in zip(responses, _GOOD[verdict], strict=True):
            key = prompt, to_json(response)
            answers.setdefault(key, (item, response))
            balances[key] += 1 if is_good else -1
    rows = []
    for key, (item, response) in answers.items():
        balance = balances[key]
        if balance:
            row: JsonObject = {"prompt": list(item.prompt), "completion": list(response), "label": balance > 0}
            rows.append(Exported(item.prompt, {**row, "tools": list(item.tools)} if item.tools else row))
        else:
            without["answer with as many for as against"] += 1
    return rows, without


_GOOD = {"first": (True, False), "second": (False, True), "both good": (True, True), "both bad": (False, False)}


def raw_rows(labels: Labels) -> Rows:
    """Return a row for each label, skip and flag that was not taken back, with all that is known of it."""
    return [
        Exported(item.prompt, _raw(labels, item, name, answer)) for item, name, answer in said_of(labels)
    ], Counter()


def table_rows(labels: Labels) -> Rows:
    """Return the raw rows with texts in place of turns, for CSV and Parquet."""
    rows = []
    for item, name, answer in said_of(labels):
        row = _raw(labels, item, name, answer)
        row |= {column: cell(row[column]) for column in ("prompt", "response_a", "response_b")}
        row |= {column: json.dumps(row[column], ensure_ascii=False) for column in ("ratings", "tools") if row[column]}
        rows.append(Exported(item.prompt, row))
    return rows, Counter()


def said_of(labels: Labels) -> Iterator[tuple[Item, str, Answer]]:
    """Yield each label, skip and flag that was not taken back, with its item and who gave it."""
    given = labels.state.given
    answered = [place for place, item in enumerate(ids_of(labels.items)) if given.get(item)]
    for item in items_at(labels.items, answered):
        yield from ((item, name, answer) for name, answer in given[item.id].items())


def _raw(labels: Labels, item: Item, name: str, answer: Answer) -> JsonObject:
    first, second = item.responses
    is_label = answer.kind == "label"
    details = answer.details or _NO_DETAILS
    return {
        "item": item.id,
        "prompt": list(item.prompt),
        "response_a": list(first),
        "response_b": list(second),
        "person": labels.name(name),
        "kind": answer.kind,
        "verdict": _WORDS.get(answer.verdict, answer.verdict),
        "strength": answer.strength if answer.verdict in SIDES else None,
        "seconds": answer.seconds if is_label else None,
        "left": _LEFT[answer.swapped] if is_label else None,
        **circumstances(labels, item, answer),
        "edit": details.edit or None,
        "ratings": {name: _rating(rating) for name, rating in details.ratings.items()} or None,
        "flag": details.flag,
        "tools": list(item.tools) or None,
    }


def circumstances(labels: Labels, item: Item, answer: Answer) -> JsonObject:
    """Return what a raw row of a pair or of a ranking says beside the answer itself."""
    return {
        "guidelines": answer.guidelines or None,
        "propensity": item.propensity,
        "event": answer.number,
        "time": labels.times.get(answer.number),
        "reason": answer.reason or None,
        "comment": (answer.details and answer.details.comment) or None,
    }


_NO_DETAILS = Details()
_WORDS: Mapping[str | None, str] = dict(SIDES.items())
_LEFT: Mapping[bool | None, str | None] = {None: None, False: "response_a", True: "response_b"}


def _rating(rating: Rating) -> JsonObject:
    """Return a rating with the responses named as in a row."""
    return {
        SIDES.get(key, key): SIDES.get(str(value), value) if key == "better" else value for key, value in rating.items()
    }


def verdicts_of(labels: Labels, without: Counter[str]) -> Iterator[tuple[Item, str, Answer]]:
    """Yield each label; count the skips and flags, and the labels that say more than a tool has a place for."""
    for item, name, answer in said_of(labels):
        if answer.kind != "label":
            without[answer.kind] += 1
            continue
        if answer.details is not None:
            without[NO_PLACE] += 1
        if item.tools:
            without[f"label of a {'group' if item.is_ranked else 'pair'} whose tools have no place there"] += 1
        yield item, name, answer


def argilla_rows(labels: Labels) -> Rows:
    """Return records as `rg.Record.to_dict` of Argilla 2 gives them and `rg.Record.from_dict` takes them.

    The settings that fit are a `ChatField` prompt, `TextField` response_a and response_b, a `LabelQuestion` preference
    of response_a, response_b, tie, both good and both bad, and a `RatingQuestion` strength of 1, 2 and 3, which is not
    required: only preferences have it. Argilla knows people by UUIDs and takes responses of users that it has; the
    metadata say whose they are. Skips and flags have no place in a
    record, and are counted.
    """
    records: dict[str, Exported] = {}
    without = Counter[str]()
    users = {}
    for name in labels.state.answers:
        user = str(uuid.uuid5(ARGILLA_NAMESPACE, labels.name(name)))
        users[name] = user, f"{user} {labels.name(name)}"
    for item, name, answer in verdicts_of(labels, without):
        user, person = users[name]
        if item.id not in records:
            texts = dict(zip(SIDES.values(), map(readable, item.responses), strict=True))
            records[item.id] = Exported(item.prompt, argilla_record(item, texts, "preference"))
        record = records[item.id].row
        verdict = _WORDS.get(answer.verdict, answer.verdict)
        record["responses"]["preference"].append(submitted(verdict, user))
        if answer.verdict in SIDES:
            record["responses"].setdefault("strength", []).append(submitted(answer.strength, user))
        record["metadata"]["people"].append(person)
    return list(records.values()), without


def submitted(value: object, user: str) -> JsonObject:
    """Return a user's response to a question of Argilla; one without a status would be a draft."""
    return {"value": value, "user_id": user, "status": "submitted"}


def argilla_record(item: Item, texts: Mapping[str, str], question: str) -> JsonObject:
    """Return a record of Argilla without responses of users.

    Args:
        item: the pair or group.
        texts: text of each of its responses, by name of the field.
        question: name of the question that people answer.
    """
    prompt = [{"role": turn["role"], "content": content_of(turn)} for turn in item.prompt]
    return {
        "id": item.id,
        "fields": {"prompt": prompt, **texts},
        "metadata": {"people": []},
        "suggestions": {},
        "responses": {question: []},
        "vectors": {},
        "_server_id": None,
    }


LABEL_STUDIO_CONFIG = """
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="response_a,response_b"/>
  <Text name="response_a" value="$response_a"/>
  <Text name="response_b" value="$response_b"/>
  <Choices name="verdict" toName="prompt">
    <Choice value="tie"/><Choice value="both good"/><Choice value="both bad"/>
  </Choices>
  <Rating name="strength" toName="prompt" maxRating="3"/>
  <TextArea name="person" toName="prompt"/>
</View>
"""
"""Labelling interface of a Label Studio project that takes the tasks of `label_studio_rows`."""


def label_studio_rows(labels: Labels) -> Rows:
    """Return tasks with annotations as Label Studio exports and imports them; skips and flags are counted.

    `<Pairwise>` knows left and right only: left is response_a. Other verdicts are a choice. Label Studio takes no
    annotator that it does not know, so that their name is a text of the annotation.
    """
    tasks: dict[str, Exported] = {}
    without = Counter[str]()
    for item, name, answer in verdicts_of(labels, without):
        if item.id not in tasks:
            first, second = map(readable, item.responses)
            data = {"item": item.id, "prompt": readable(item.prompt), "response_a": first, "response_b": second}
            tasks[item.id] = Exported(item.prompt, {"data": data, "annotations": []})
        tasks[item.id].row["annotations"].append(_annotation(answer, labels.name(name)))
    return list(tasks.values()), without


def _annotation(answer: Answer, name: str) -> JsonObject:
    sides = {"first": "left", "second": "right"}
    result: list[JsonObject] = [result_of("person", "textarea", {"text": [name]})]
    if answer.verdict in SIDES:
        chosen = result_of("preference", "pairwise", {"selected": sides[str(answer.verdict)]})
        result += [{**chosen, "to_name": "response_a,response_b"}]
        result += [result_of("strength", "rating", {"rating": answer.strength})]
    else:
        result += [result_of("verdict", "choices", {"choices": [answer.verdict]})]
    return {"result": result, "lead_time": answer.seconds, "was_cancelled": False}


def result_of(name: str, kind: str, value: JsonObject) -> JsonObject:
    """Return one result of an annotation of Label Studio."""
    return {"id": name, "from_name": name, "to_name": "prompt", "type": kind, "value": value}


FORMATS: Mapping[str, Callable[[Labels], Rows]] = {
    "preference": preference_rows,
    "unpaired": unpaired_rows,
    "raw": raw_rows,
    "argilla": argilla_rows,
    "label-studio": label_studio_rows,
    "hh": hh_rows,
    "csv": table_rows,
    "parquet": table_rows,
}
"""The rows of each format of an export."""


def split_rows(rows: Sequence[Exported], share: float) -> tuple[list[JsonObject], list[JsonObject]]:
    """Split rows by prompt into those to train on and those held out, as a data source with `held_out` splits them."""
    wrapped = [{"prompt": list(one.prompt), "row": one.row} for one in rows]
    train, held_out = split(wrapped, share, "preference")
    return [one["row"] for one in train], [one["row"] for one in held_out]
