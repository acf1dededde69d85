"""Rankings in files of other tools and of exports; `importing.py` matches them to groups and makes events of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import Row
from pipeline.preferences.details import Details
from pipeline.preferences.events import EventKind
from pipeline.preferences.exchange.ranking_rows import NAMES
from pipeline.preferences.exchange.reading import (
    PROMPTS,
    Reader,
    Said,
    annotator_of,
    cell_text,
    flag_of,
    people_of,
    seconds_of,
    tool_format,
)
from pipeline.preferences.exchange.texts import words
from pipeline.preferences.labels import Tiers
from pipeline.records.faults import BadRowError


def ranking_format(row: Row) -> str:
    """Return the format of a file's rows, from the first of them.

    Raises:
        PipelineError: the columns are those of no format.
    """
    if tool := tool_format(row):
        return tool
    if {"ranking", *NAMES[:3]} <= row.keys():
        return "raw"
    raise PipelineError(
        Problem(
            f"people rank groups here, and the first row has the columns {', '.join(map(str, row))}"[:200],
            "rows of rankings of Argilla, Label Studio, `raw`, CSV or Parquet",
            "see `trueup labels export`",
        )
    )


def _tiers(named: object, names: Sequence[str]) -> Tiers:
    """Return tiers of names as tiers of places.

    Raises:
        BadRowError: they do not name each response once.
    """
    tiers = tuple(tuple(names.index(str(name)) for name in tier) for tier in cast(Sequence[Sequence[str]], named))
    if sorted(place for tier in tiers for place in tier) != list(range(len(names))):
        raise BadRowError("`ranking` does not name each response once", "tiers of all responses")
    return tuple(tuple(sorted(tier)) for tier in tiers if tier)


def _parsed(value: object) -> object:
    """Return a list of a raw row, which is JSON in a table; None of an empty cell."""
    if not cell_text(value):
        return None
    return json.loads(value) if isinstance(value, str) else value


def _of_raw(row: Row) -> Iterator[Said]:
    kind = cell_text(row.get("kind")) or "label"
    if kind not in ("label", "skip", "flag"):
        return
    names = [name for name in NAMES if cell_text(row.get(name))]
    ranking, shown = _parsed(row.get("ranking")), _parsed(row.get("shown"))
    if kind == "label" and not ranking:
        return
    yield Said(
        words(row["prompt"]),
        tuple(words(row[name]) for name in names),
        cell_text(row.get("person")),
        cast(EventKind, kind),
        seconds=seconds_of(row.get("seconds")),
        guidelines=cell_text(row.get("guidelines")),
        reason=cell_text(row.get("reason")),
        details=Details(cell_text(row.get("comment")), flag=flag_of(row)),
        tiers=_tiers(ranking, names) if kind == "label" else None,
        item=cell_text(row.get("item")),
        order=tuple(map(names.index, map(str, cast(Sequence[str], shown)))) if shown else None,
    )


def _of_argilla(row: Row) -> Iterator[Said]:
    fields, name_of = row["fields"], people_of(row)
    prompt = next(fields[name] for name in PROMPTS if fields.get(name))
    answers = row["responses"]
    for vote in answers.get("ranking") or next(iter(answers.values()), ()):
        if str(vote.get("status") or "submitted") != "submitted":  # a draft, or discarded
            continue
        value = vote["value"]
        by_rank: dict[int, list[str]] = {}
        for place, one in enumerate(value, 1):  # the client gives names in order, the server names with ranks
            name, rank = (one["value"], one.get("rank") or place) if isinstance(one, Mapping) else (one, place)
            by_rank.setdefault(int(rank), []).append(str(name))
        names = [name for name in fields if any(name in tier for tier in by_rank.values())]
        tiers = _tiers([by_rank[rank] for rank in sorted(by_rank)], names)
        texts = tuple(words(fields[name]) for name in names)
        person, item = name_of(str(vote.get("user_id") or "")), str(row.get("id") or "")
        yield Said(words(prompt), texts, person, item=item, tiers=tiers)


def _of_label_studio(row: Row) -> Iterator[Said]:
    data = row["data"]
    prompt = next(data[name] for name in PROMPTS if data.get(name))
    listed = next(value for value in data.values() if isinstance(value, list) and value and "id" in value[0])
    names = [str(one["id"]) for one in listed]
    texts = tuple(words(one.get("body") or one.get("title") or "") for one in listed)
    for annotation in row.get("annotations") or row.get("completions") or ():
        results = {str(one.get("type")): one.get("value") or {} for one in annotation.get("result") or ()}
        ranked = results.get("ranker", {}).get("ranker")
        if annotation.get("was_cancelled") or not ranked:
            continue
        if isinstance(ranked, Mapping):  # with buckets, whose names are ranks
            ranked = [ranked[rank] for rank in sorted((name for name in ranked if name != "_"), key=int)]
        else:
            ranked = [[name] for name in ranked]
        seconds = seconds_of(annotation.get("lead_time"))
        person, item = annotator_of(annotation, results), str(data.get("item") or "")
        yield Said(words(prompt), texts, person, seconds=seconds, item=item, tiers=_tiers(ranked, names))


RANKING_READERS: Mapping[str, Reader] = {"raw": _of_raw, "argilla": _of_argilla, "label-studio": _of_label_studio}
"""By format, what reads a row with rankings."""
