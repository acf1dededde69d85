"""Labels of other tools as events of the ledger.

A row is matched to an item by the item's id, which exports have, else by its texts, without regard to white space and
to the order of both responses. Nothing is overwritten: of a person who has answered an item already, the answer in the
ledger stays. A file that is imported twice therefore changes nothing the second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from pipeline.plain_data import JsonObject
from pipeline.preferences.events import EventBody, NewEvent, Rating, Verdict
from pipeline.preferences.exchange.reading import Said
from pipeline.preferences.exchange.texts import Key, forms_of, keys_of
from pipeline.preferences.items import Item, is_ranked
from pipeline.preferences.labels import Answer, State

MIRRORED: Mapping[str, Verdict] = {"first": "second", "second": "first"}


class Import(NamedTuple):
    """The events that a file gives.

    Attributes:
        events: labels, skips and flags that are not in the ledger yet.
        counts: number of rows and labels by what becomes of them.
    """

    events: list[NewEvent]
    counts: Counter[str]


class Matcher:
    """Finds the items of rows: by their ids, else by their texts.

    Args:
        items: items of the batch.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.noun = "group" if is_ranked(items) else "pair"
        self._forms: dict[str, list[frozenset[str]]] = {}
        self._items: dict[Key, list[str]] = defaultdict(list)
        for item in items:
            self._forms[item.id] = [forms_of(response) for response in item.responses]
            for key in keys_of(item):
                self._items[key].append(item.id)

    def item_of(self, said: Said) -> tuple[str, list[int]] | None:
        """Return the id of a row's item, and the place in it of each response of the row; None without one.

        Of several items with the same texts, one that has them in the order of the row comes first. A row with the id
        of an item is one of it whatever its texts, which another tool may have changed.
        """
        is_named = said.item in self._forms and len(said.responses) == len(self._forms[said.item])
        known = [said.item] if is_named else self._items.get((said.prompt, frozenset(said.responses)), [])
        if said.tiers is not None or len(said.responses) > 2:
            placed = ((item, self._places(item, said.responses)) for item in known)
            return next(((item, places) for item, places in placed if places is not None), None)
        first, second = said.responses
        if is_named:
            firsts = self._forms[said.item][0]
            return said.item, [1, 0] if first not in firsts and second in firsts else [0, 1]
        if not known:
            return None
        in_order = next((item for item in known if first in self._forms[item][0]), None)
        return (known[0], [1, 0]) if in_order is None else (in_order, [0, 1])

    def _places(self, item: str, responses: Sequence[str]) -> list[int] | None:
        """Return the place in a group of each response; None if it has another one."""
        forms = self._forms[item]
        places = [next((place for place, own in enumerate(forms) if text in own), -1) for text in responses]
        return places if sorted(places) == list(range(len(forms))) else None


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
            counts[f"label of no {matcher.noun} of this batch"] += 1
        elif not name:
            counts["label that names no person"] += 1
        else:
            item, places = match
            body = {"item": item, "annotator": name, "source": source, **_body(one, places)}
            answer = state.answers.get(name, {}).get(item)
            before = new.get((name, item)) or (_answered(answer) if answer is not None else None)
            if before is None:
                new[name, item] = {**body, **_compared(body, one.kind)}
                events.append((one.kind, cast(EventBody, body)))
            elif all(before.get(key) == value for key, value in _compared(body, one.kind).items()):
                counts["label that is there already"] += 1
            else:
                counts["label that differs from the one there, which stays"] += 1
    return Import(events, counts)


def _answered(answer: Answer) -> JsonObject:
    """Return what `_compared` reads of an answer."""
    return {"kind": answer.kind, "verdict": answer.verdict, "strength": answer.strength, "tiers": answer.tiers}


def _compared(body: JsonObject, kind: str) -> JsonObject:
    if kind != "label":
        return {"kind": kind}
    if "ranking" in body:
        return {"kind": kind, "tiers": tuple(map(tuple, body["ranking"]))}
    keys = ("verdict", "strength") if body["verdict"] in MIRRORED else ("verdict",)
    return {"kind": kind, **{key: body[key] for key in keys}}


def _body(said: Said, places: Sequence[int]) -> JsonObject:
    details = said.details
    if said.kind != "label":
        return {"reason": said.reason, **({"flag": details.flag} if details.flag else {})}
    if said.tiers is not None:
        ranking = [sorted(places[place] for place in tier) for tier in said.tiers]
        order = None if said.order is None else [places[place] for place in said.order]
        beside = {"guidelines": said.guidelines, "comment": details.comment}
        ranked: JsonObject = {"ranking": ranking, "order": order, "seconds": said.seconds}
        return {**ranked, **{key: value for key, value in beside.items() if value}}
    is_mirrored = places[0] == 1
    verdict = MIRRORED.get(str(said.verdict), said.verdict) if is_mirrored else said.verdict
    swapped = None if said.left is None else (said.left == 1) != is_mirrored
    told = {"verdict": verdict, "strength": said.strength, "seconds": said.seconds, "swapped": swapped}
    more: JsonObject = {"guidelines": said.guidelines, "comment": details.comment, "edit": details.edit}
    more["ratings"] = {name: _mirrored(one) if is_mirrored else one for name, one in details.ratings.items()}
    return {**told, **{key: value for key, value in more.items() if value}}


def _mirrored(rating: Rating) -> JsonObject:
    """Return a rating with the two responses exchanged."""
    return {
        MIRRORED.get(key, key): MIRRORED.get(str(value), value) if key == "better" else value
        for key, value in rating.items()
    }
