"""Reports and exports of random ledgers are what their definitions give, computed label by label without an index."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.stats.annotators import krippendorff_alpha, raw_agreement
from pipeline.preferences.agreement import label_table
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.exchange.export import FORMATS, Labels
from pipeline.preferences.exchange.files import content_of
from pipeline.preferences.items import Item, items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import VERDICTS, Batch, State
from pipeline.preferences.lead_figures import LISTINGS, LeadFigures
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.stored_items import StoredItems, chars_of, keep
from pipeline.records.files.reader import read_rows

SEEDS = range(6)
KINDS = {"label": 60, "skip": 6, "flag": 3, "undo": 12, "lease": 12, "drop": 2, "adjudicate": 4}
"""Kinds of events, and how often each happens."""
PEOPLE = ("ada", "grace", "mary")


def _items(rng: random.Random) -> list[Item]:
    """Some pairs with answers of several lengths, some prompts of three turns, and answers that several pairs share."""
    rows = []
    for n in range(30):
        turns = [{"role": "user", "content": f"déjà vu {n // 2}?\n\u2028"}]
        if n % 3 == 0:
            turns = [{"role": "system", "content": "Be brief."}, *turns]
        answers = [{"role": "assistant", "content": f"{word} " * rng.randint(1, 9)} for word in rng.sample("abcd", 2)]
        row = {"prompt": turns, "chosen": answers[:1], "rejected": answers[1:]}
        rows.append(row | ({"propensity": rng.random()} if n % 5 == 0 else {}))
    return items_of(rows)[0]


def _events(rng: random.Random, items: Sequence[Item]) -> list[Any]:
    """Everything that happens to pairs of the data and to pairs that are not there any more, in random order."""
    events: list[Any] = [("batch", {"salt": "5" * 32})]
    events += [("annotator", {"name": name, "token": name}) for name in PEOPLE[:2]]
    answered: dict[str, list[str]] = {name: [] for name in PEOPLE}
    for number in range(140):
        who, item = rng.choice(PEOPLE), rng.choice([*(item.id for item in items), "gone"])
        body: dict[str, Any] = {"annotator": who, "item": item}
        kind = rng.choices(("label", "skip", "flag", "undo", "lease", "drop", "adjudicate"), (60, 6, 3, 12, 12, 2, 4))[
            0
        ]
        if kind in ("label", "skip", "flag"):
            if item in answered[who]:
                continue
            answered[who].append(item)
        if kind == "label":
            body |= {"verdict": rng.choice(VERDICTS), "strength": rng.choice((1, 2, 3)), "request": str(number)}
            body |= {"seconds": rng.choice((None, 2.5)), "swapped": rng.choice((None, False, True))}
            if body["verdict"] in ("first", "second") and rng.random() < 0.2:
                body |= {"edit": rng.choice(("better", "best")), "comment": 'a\n"b", c'}
            if rng.random() < 0.1:
                body["ratings"] = {"helpful": {"first": 4, "second": 2}, "honest": {"better": "second"}}
        elif kind in ("skip", "flag"):
            body |= {"reason": "unclear"} | ({"flag": "broken"} if kind == "flag" else {})
        elif kind == "undo":
            if not answered[who]:
                continue
            body |= {"item": answered[who].pop(), "event": 0, "until": 0.0}
        elif kind == "lease":
            body = {"annotator": who, "items": [item], "until": rng.uniform(0, 9)}
        elif kind == "drop":
            body = {"item": item, "reason": ""}
        elif rng.random() < 0.8:
            body |= {"annotator": "lin", "verdict": rng.choice(VERDICTS), "strength": rng.choice((1, 2, 3))}
        events.append((kind, body))
    return events


class World(NamedTuple):
    """A ledger with its items, in memory and in a file."""

    items: list[Item]
    stored: StoredItems
    ledger: Ledger

    def labels(self) -> Labels:
        """Everything an export is made of, read as a command reads it."""
        events = self.ledger.said()
        return Labels(self.stored, State().take(events), {event.number: event.at for event in events})


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    rng = random.Random(request.param)
    items = _items(rng)
    keep(tmp_path / "items", items)
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "labels")
    ledger.extend(_events(rng, items))
    return World(items, StoredItems(tmp_path / "items"), ledger)


class Truth:
    """What the events say of each pair, by going through all of them for each question."""

    def __init__(self, world: World) -> None:
        self.items, self.events = world.items, world.ledger.events()

    def answers(self, item: str) -> dict[str, Any]:
        """The answer of each person to a pair that they did not take back: kind and body, oldest first."""
        given: dict[str, Any] = {}
        for event in self.events:
            if event.body.get("item") == item and event.kind in ("label", "skip", "flag"):
                given[event.body["annotator"]] = event
            elif event.body.get("item") == item and event.kind == "undo":
                given.pop(event.body["annotator"])
        return dict(sorted(given.items(), key=lambda pair: pair[1].number))

    def labels(self, item: str) -> list[Any]:
        return [event.body for event in self.answers(item).values() if event.kind == "label"]

    def is_flagged(self, item: str) -> bool:
        return any(event.kind == "flag" for event in self.answers(item).values())

    def is_dropped(self, item: str) -> bool:
        return any(event.kind == "drop" and event.body["item"] == item for event in self.events)

    def final(self, item: str) -> Any:
        said = [event.body for event in self.events if event.kind == "adjudicate" and event.body["item"] == item]
        return said[-1] if said and "verdict" in said[-1] else None

    def margin(self, bodies: Sequence[Any]) -> float:
        """Mean strength of those who preferred the chosen one, times their lead over all labels."""
        sides = {side: [body["strength"] for body in bodies if body["verdict"] == side] for side in ("first", "second")}
        more = len(sides["first"]) - len(sides["second"])
        winners = sides["first" if more > 0 else "second"]
        return sum(winners) / len(winners) * more / len(bodies) if more else 0.0

    def decision(self, item: str) -> tuple[str, float]:
        """A verdict and a margin, or the reason why there is none and 0."""
        bodies = [self.final(item)] if self.final(item) else self.labels(item)
        if self.is_dropped(item):
            return "dropped", 0.0
        if self.is_flagged(item) and not self.final(item):
            return "flagged", 0.0
        if not bodies:
            return "unlabelled", 0.0
        margin = self.margin(bodies)
        if margin:
            return "first" if margin > 0 else "second", margin
        verdicts = {body["verdict"] for body in bodies}
        return verdicts.pop() if len(verdicts) == 1 else "split", 0.0

    def chosen(self, item: Item, verdict: str) -> list[Any]:
        """The preferred response, with the edit that most people of this verdict made, of equal numbers the newest."""
        turns = [dict(turn) for turn in item.responses[verdict == "second"]]
        edits = [body["edit"] for body in self.labels(item.id) if body["verdict"] == verdict and body.get("edit")]
        if edits:
            most = max(Counter(edits).values())
            turns[-1]["content"] = next(edit for edit in reversed(edits) if edits.count(edit) == most)
        return turns


def test_pairs_are_what_each_pairs_labels_say(world: World) -> None:
    truth = Truth(world)
    expected, left_out = [], Counter[str]()
    for item in world.items:
        verdict, margin = truth.decision(item.id)
        if not margin:
            left_out[verdict] += 1
            continue
        chosen, rejected = truth.chosen(item, verdict), list(item.responses[verdict == "first"])
        expected.append({"prompt": list(item.prompt), "chosen": chosen, "rejected": rejected, "margin": abs(margin)})
    rows, without = FORMATS["preference"](world.labels())
    assert [one.row for one in rows] == expected and without == left_out and expected
    assert [json.loads(line) for line in content_of([one.row for one in rows], "preference").splitlines()] == expected


def test_single_answers_are_what_most_pairs_say(world: World) -> None:
    truth = Truth(world)
    balance: Counter[str] = Counter()
    for item in world.items:
        verdict, _ = truth.decision(item.id)
        good = {"first": (1, -1), "second": (-1, 1), "both good": (1, 1), "both bad": (-1, -1)}.get(verdict, ())
        for side, sign in zip(("first", "second"), good, strict=False):
            told = truth.chosen(item, side) if side == verdict else list(item.responses[side == "second"])
            balance[json.dumps([list(item.prompt), told])] += sign
    rows, without = FORMATS["unpaired"](world.labels())
    labels = {json.dumps([one.row["prompt"], one.row["completion"]]): one.row["label"] for one in rows}
    assert labels == {key: value > 0 for key, value in balance.items() if value}
    assert without["answer with as many for as against"] == sum(not value for value in balance.values())


def test_raw_rows_are_the_answers_that_were_not_taken_back(world: World, tmp_path: Path) -> None:
    truth = Truth(world)
    expected = [
        (item.id, who, event.kind, event.number, event.body.get("comment"), event.body.get("edit"), item.propensity)
        for item in world.items
        for who, event in truth.answers(item.id).items()
    ]
    names = ("item", "person", "kind", "event", "comment", "edit", "propensity")
    rows = [one.row for one in FORMATS["raw"](world.labels())[0]]
    assert [tuple(row[name] for name in names) for row in rows] == expected
    table = [one.row for one in FORMATS["parquet"](world.labels())[0]]
    for row_format in ("csv", "parquet"):
        file = tmp_path / f"rows.{row_format}"
        file.write_bytes(content_of(table, row_format))
        read = [row.value for row in read_rows(file)]
        told = [{key: str(value) for key, value in row.items() if value is not None} for row in table]
        assert [{k: str(v) for k, v in row.items() if v not in (None, "")} for row in read if row] == told
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == len(expected)


def test_other_tools_get_every_label(world: World) -> None:
    truth = Truth(world)
    labels = [len(truth.labels(item.id)) for item in world.items if truth.labels(item.id)]
    of_answers = [event.kind for item in world.items for event in truth.answers(item.id).values()]
    for row_format, place in (("argilla", "responses"), ("label-studio", "annotations")):
        rows, without = FORMATS[row_format](world.labels())
        written = json.loads(content_of([one.row for one in rows], row_format))
        told = [one[place] if row_format == "label-studio" else one[place]["preference"] for one in written]
        assert [len(one) for one in told] == labels
        assert (without["skip"], without["flag"]) == (of_answers.count("skip"), of_answers.count("flag"))


def test_progress_and_open_pairs_are_those_of_each_pair(world: World, tmp_path: Path) -> None:
    truth, batch = Truth(world), Batch(world.stored, per_item=2, overlap=0.5)
    done = full = 0
    left: list[tuple[str, int]] = []
    for item in world.items:
        wanted = batch.wanted(item.id)
        given = min(len(truth.labels(item.id)), wanted)
        is_out = truth.is_dropped(item.id) or truth.is_flagged(item.id) or truth.final(item.id) is not None
        done, full = done + given, full + (given if is_out else wanted)
        people = {"ada", "grace"} - truth.answers(item.id).keys()
        if not is_out and len(people) < wanted - given:
            left.append((item.id, wanted - given))
    assignment = Assignment(batch, State().take(world.ledger.said()))
    assert assignment.progress() == (done, full)
    assert [(one.item, one.missing) for one in assignment.stuck()] == left
    queue = LabelQueue(batch, world.ledger, hands_out=False)
    progress = queue.progress()
    assert (progress["done"], progress["wanted"]) == (done, full)
    figures = LeadFigures(batch, world.ledger)
    assert figures.overview()["progress"]["done"] == done
    assert [one.item for one in figures.listing("stuck", 0, 100)[1]] == [item for item, _ in left]
    lists = figures.overview()["lists"]
    assert {name: figures.listing(name, 0, 0)[0] for name in LISTINGS} == {name: lists[name] for name in LISTINGS}


def test_agreement_is_that_of_all_pairs_of_labels(world: World) -> None:
    truth = Truth(world)
    same = [
        one["verdict"] == other["verdict"]
        for item in world.items
        for one, other in itertools.combinations(truth.labels(item.id), 2)
    ]
    state = State().take(world.ledger.said())
    for items in (world.items, world.stored):
        table, shared = label_table(items, state), label_table(items, state, only_shared=True)
        rate, alpha = raw_agreement(shared.verdict_NA, seed=0), krippendorff_alpha(shared.verdict_NA)
        assert rate is not None and rate.value == pytest.approx(sum(same) / len(same), abs=1e-12)
        assert rate == raw_agreement(table.verdict_NA, seed=0) and alpha == krippendorff_alpha(table.verdict_NA)
        for row, item in enumerate(world.items):
            given = {
                event.body["annotator"]: event.body
                for event in truth.answers(item.id).values()
                if "verdict" in event.body
            }
            for column, name in enumerate(table.annotators):
                verdict = given[name]["verdict"] if name in given else None
                assert table.verdict_NA[row, column] == (-1 if verdict is None else VERDICTS.index(verdict))
                is_preference = verdict in ("first", "second") and given[name]["swapped"] is not None
                left = int((verdict == "second") == given[name]["swapped"]) if is_preference else -1
                assert table.left_NA[row, column] == left


def test_the_index_of_the_items_says_what_the_items_are(world: World) -> None:
    characters = [sum(len(turn["content"]) for turns in item.responses for turn in turns) for item in world.items]
    assert list(chars_of(world.stored)) == list(chars_of(world.items)) == characters
    places = random.Random(1).sample(range(len(world.items)), 12)
    assert list(world.stored.at(places)) == [world.items[place] for place in places]
    assert list(world.stored) == world.items and list(world.stored.at(range(3, 9))) == world.items[3:9]


def test_a_hash_is_that_of_the_sorted_json_of_an_event(world: World) -> None:
    before = "0" * 64
    for event in world.ledger.events():
        body = json.dumps(event.body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        row = {"batch": "labels", "number": event.number, "at": repr(event.at), "kind": event.kind, "body": body}
        text = json.dumps({**row, "before": before}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert event.hash == hashlib.sha256(text.encode()).hexdigest()
        before = event.hash
    assert world.ledger.problems() == [] and world.ledger.count() == world.ledger.last().number
