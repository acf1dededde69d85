"""Rankings as rows of other formats: what each person ranked, each row with the prompt that decides on its split.

Pairs and single answers to train on are those of the pairs that follow from rankings (`export.py`).
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pipeline.plain_data import JsonObject
from pipeline.preferences.exchange.export import (
    ARGILLA_NAMESPACE,
    Exported,
    Labels,
    Rows,
    argilla_record,
    circumstances,
    result_of,
    said_of,
    submitted,
    verdicts_of,
)
from pipeline.preferences.exchange.texts import cell, readable
from pipeline.preferences.items import Item
from pipeline.preferences.labels import Answer, Tiers
from pipeline.records.pair_choice import MOST_RANKED

NAMES = tuple(f"response_{letter}" for letter in "abcdef"[:MOST_RANKED])
"""Names of the responses of a group, in the order of the data."""

TIED = "ranking with a tie, which Argilla cannot hold"


def raw_rankings(labels: Labels) -> Rows:
    """Return a row for each ranking, skip and flag that was not taken back, with all that is known of it."""
    return [Exported(item.prompt, _raw(labels, item, name, one)) for item, name, one in said_of(labels)], Counter()


def ranking_table(labels: Labels) -> Rows:
    """Return the raw rows with texts in place of turns and lists, for CSV and Parquet."""
    rows, without = raw_rankings(labels)
    for exported_row in rows:
        row = exported_row.row
        for column in ("prompt", *NAMES):
            row[column] = cell(row[column]) if column in row else None
        for column in ("ranking", "shown", "tools"):
            row[column] = json.dumps(row[column], ensure_ascii=False) if row[column] is not None else None
    return rows, without


def _named(tiers: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[NAMES[place] for place in tier] for tier in tiers]


def _raw(labels: Labels, item: Item, name: str, answer: Answer) -> JsonObject:
    return {
        "item": item.id,
        "prompt": list(item.prompt),
        **{NAMES[place]: list(response) for place, response in enumerate(item.responses)},
        "person": labels.name(name),
        "kind": answer.kind,
        "ranking": _named(answer.tiers) if answer.tiers else None,
        "shown": [NAMES[place] for place in answer.order] if answer.order else None,
        "seconds": answer.seconds if answer.kind == "label" else None,
        **circumstances(labels, item, answer),
        "flag": answer.details.flag if answer.details else None,
        "tools": list(item.tools) or None,
    }


def argilla_rankings(labels: Labels) -> Rows:
    """Return records as `rg.Record.from_dict` of Argilla 2 takes them, for a `RankingQuestion` named ranking.

    The settings that fit are a `ChatField` prompt, a `TextField` for each response, and the question with their names
    as values. Argilla's client knows the order of values only: a ranking with a tie has no place there, and is counted.
    """
    records: dict[str, Exported] = {}
    without = Counter[str]()
    for item, name, answer in verdicts_of(labels, without):
        tiers = answer.tiers or ()
        if any(len(tier) > 1 for tier in tiers):
            without[TIED] += 1
            continue
        user = str(uuid.uuid5(ARGILLA_NAMESPACE, labels.name(name)))
        if item.id not in records:
            texts = dict(zip(NAMES, map(readable, item.responses), strict=False))
            records[item.id] = Exported(item.prompt, argilla_record(item, texts, "ranking"))
        record = records[item.id].row
        record["responses"]["ranking"].append(submitted([one for tier in _named(tiers) for one in tier], user))
        record["metadata"]["people"].append(f"{user} {labels.name(name)}")
    return list(records.values()), without


LABEL_STUDIO_RANKER = """
<View>
  <Text name="prompt" value="$prompt"/>
  <List name="answers" value="$answers"/>
  <Ranker name="ranking" toName="answers">
    <Bucket name="1" title="1"/><Bucket name="2" title="2"/><Bucket name="3" title="3"/>
    <Bucket name="4" title="4"/><Bucket name="5" title="5"/><Bucket name="6" title="6"/>
  </Ranker>
  <TextArea name="person" toName="prompt"/>
</View>
"""
"""Labelling interface of a Label Studio project that takes the tasks of `label_studio_rankings`."""


def label_studio_rankings(labels: Labels) -> Rows:
    """Return tasks with annotations for a project with `<Ranker>`, whose buckets are ranks.

    Skips and flags are counted.
    """
    tasks: dict[str, Exported] = {}
    without = Counter[str]()
    for item, name, answer in verdicts_of(labels, without):
        if item.id not in tasks:
            texts = zip(NAMES, map(readable, item.responses), strict=False)
            answers = [{"id": key, "title": key, "body": text} for key, text in texts]
            data = {"item": item.id, "prompt": readable(item.prompt), "answers": answers}
            tasks[item.id] = Exported(item.prompt, {"data": data, "annotations": []})
        tasks[item.id].row["annotations"].append(_annotation(answer.tiers or (), answer.seconds, labels.name(name)))
    return list(tasks.values()), without


def _annotation(tiers: Tiers, seconds: float | None, name: str) -> JsonObject:
    buckets = {str(rank): tier for rank, tier in enumerate(_named(tiers), 1)}
    ranking = {**result_of("ranking", "ranker", {"ranker": buckets}), "to_name": "answers"}
    return {"result": [result_of("person", "textarea", {"text": [name]}), ranking]} | {
        "lead_time": seconds, "was_cancelled": False
    }  # fmt: skip


RANKING_FORMATS: Mapping[str, Callable[[Labels], Rows]] = {
    "raw": raw_rankings,
    "argilla": argilla_rankings,
    "label-studio": label_studio_rankings,
    "csv": ranking_table,
    "parquet": ranking_table,
}
"""The rows of each format that has every ranking for itself."""
