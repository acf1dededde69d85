"""Whoever has the data, the code and every reply of the app cannot tell which answer is which."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences import blinding
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"question {n}"}],
        "chosen": [{"role": "assistant", "content": f"one {n}"}],
        "rejected": [{"role": "assistant", "content": f"other {n}"}],
    }
    for n in range(60)
]
ITEMS, _ = items_of(ROWS)


@pytest.fixture
def queue(tmp_path: Path) -> LabelQueue:
    """A queue whose secret is the same in every run: what is counted below is then no matter of luck."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "batch")
    ledger.append(lambda known: ("batch", {"salt": "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"}))
    return LabelQueue(Batch(ITEMS, per_item=2), ledger)


def _shown(queue: LabelQueue, annotator: str) -> list[Any]:
    return list(queue.next(annotator, len(ITEMS)))


def test_an_attacker_with_the_source_and_every_reply_guesses(queue: LabelQueue) -> None:
    """The attacker knows the code: every hash of what is public, over names, ids and texts, is a guess of the swap."""
    shown = _shown(queue, "ada")
    swapped = [one["left"][0]["content"].startswith("other") for one in shown]
    assert 15 < sum(swapped) < 45
    own_ids = {one["item"] for one in shown}
    public = {item.id for item in ITEMS}
    assert not own_ids & public  # no id of the data is sent
    for parts in itertools.permutations(("ada", "item", "batch", ""), 2):
        for hashed in (hashlib.sha256, hashlib.sha1, hashlib.md5):
            guesses = []
            for one, item in zip(shown, ITEMS, strict=True):
                for known in (item.id, one["item"]):
                    text = "/".join(known if part == "item" else part for part in parts)
                    guesses.append(hashed(text.encode()).digest()[0] & 1)
            right = [sum(g == s for g, s in zip(guesses[k::2], swapped, strict=True)) for k in (0, 1)]
            assert all(12 < count < 48 for count in right), (parts, right)
    # With the salt it is no secret: what hides the sides is the salt, which no reply contains.
    salt = queue.ledger.events()[0].body["salt"]
    assert [blinding.is_swapped(salt, "ada", item.id) for item in ITEMS] == swapped
    assert salt not in json.dumps(shown)


def test_two_annotators_share_no_id_and_no_order_of_sides(queue: LabelQueue) -> None:
    ada, grace = _shown(queue, "ada"), _shown(queue, "grace")
    assert [one["prompt"] for one in ada] == [one["prompt"] for one in grace]
    assert not {one["item"] for one in ada} & {one["item"] for one in grace}
    same = sum(a["left"] == g["left"] for a, g in zip(ada, grace, strict=True))
    assert 15 < same < 45


def test_every_batch_has_a_secret_of_its_own_that_lasts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    first = _shown(LabelQueue(Batch(ITEMS), Ledger(url, "one")), "ada")
    again = _shown(LabelQueue(Batch(ITEMS), Ledger(url, "one")), "ada")
    other = _shown(LabelQueue(Batch(ITEMS), Ledger(url, "two")), "ada")
    assert first == again
    assert not {one["item"] for one in first} & {one["item"] for one in other}


def test_a_ledger_from_before_there_were_secrets_goes_on(tmp_path: Path) -> None:
    """Its leases were made under no secret; the pairs they reserve can be labelled under the new ids."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "old")
    ledger.append(lambda known: ("annotator", {"name": "ada", "token": ""}))
    ledger.append(lambda known: ("lease", {"annotator": "ada", "items": [ITEMS[0].id], "until": 9e9}))
    queue = LabelQueue(Batch(ITEMS), ledger)
    (shown,) = queue.next("ada")
    assert shown["prompt"] == ROWS[0]["prompt"]
    queue.label("ada", shown["item"], "tie", 1, 1.0)
    assert queue.progress("ada")["done"] == 1
