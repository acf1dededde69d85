"""The app as people use it, over HTTP: nobody gets another's pair, nothing said is lost or gives itself away."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.label_queue import SIDES
from pipeline.preferences.ledger import Ledger

Start = Callable[..., Any]


@pytest.fixture
def labels(call: Any, people: Path) -> Callable[..., str]:
    """Call `trueup labels` beside the recipe and return what it says."""

    def said(*args: str) -> str:
        ended = call("labels", *args, cwd=people.parent)
        assert ended.returncode == 0, ended.stderr
        return str(ended.stdout + ended.stderr)

    return said


def test_two_people_share_the_pairs_and_neither_gets_one_twice(
    open_app: Start, url: str, people: Path, labels: Callable[..., str]
) -> None:
    app = open_app("ada", "grace", url=url)
    seen: dict[str, list[str]] = {"ada": [], "grace": []}

    def work(who: str) -> None:
        items = app.ask("next", who)["items"]
        while items:
            seen[who].append(items[0]["item"])
            items = app.ask("label", who, item=items[0]["item"], choice="left", strength=2, seconds=1.5)["items"]

    workers = [threading.Thread(target=work, args=(who,)) for who in seen]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=800)
    assert len(seen["ada"] + seen["grace"]) == len({*seen["ada"], *seen["grace"]}) == 6
    told = json.loads(labels("status", str(people), "labels", "--json", "--ledger", url, *_batch(people)))
    assert (told["labels"], told["wanted"]) == (6, 6)
    assert {who: counts["labels"] for who, counts in told["annotators"].items()} == {w: len(s) for w, s in seen.items()}


def _batch(people: Path) -> tuple[str, str]:
    return "--set", f"stages.labels.batch={people.parent.name}"


def test_a_killed_server_loses_no_label_and_an_old_link_still_opens_it(open_app: Start, url: str, people: Path) -> None:
    app = open_app("ada", url=url)
    first, second = app.ask("next", "ada")["items"]
    app.ask("label", "ada", item=first["item"], choice="right", strength=3)
    app.process.send_signal(signal.SIGKILL)
    app.process.wait(timeout=800)
    again = open_app("ada", url=url)
    assert not again.tokens  # she has a link already
    again.tokens = app.tokens
    told = again.ask("next", "ada")
    assert told["progress"] == {"done": 1, "wanted": 6, "own": 1}
    assert told["items"][0] == second
    assert Ledger(url, people.parent.name).problems() == []


def test_what_was_undone_can_be_said_again_and_exports_can_be_repeated(
    open_app: Start, url: str, people: Path, labels: Callable[..., str]
) -> None:
    app = open_app("ada", url=url)
    item = app.ask("next", "ada")["items"][0]
    export = ("export", str(people), "labels", "--ledger", url, *_batch(people))
    wrong = "left" if item["left"][0]["content"].startswith("wrong") else "right"
    right = "right" if wrong == "left" else "left"
    app.ask("label", "ada", item=item["item"], choice=wrong)
    event = Ledger(url, people.parent.name).events()[-1].number
    before = labels(*export)
    assert app.ask("undo", "ada")["undone"] == item["item"]
    assert app.ask("next", "ada")["items"][0] == item
    app.ask("label", "ada", item=item["item"], choice=right, strength=2)
    row = json.loads(labels(*export).splitlines()[0])
    assert row["chosen"][0]["content"].startswith("right") and row["margin"] == 2
    assert json.loads(before.splitlines()[0])["chosen"][0]["content"].startswith("wrong")
    assert labels(*export, "--until-event", str(event)) == before
    assert "each follows the one before it" in labels("verify", *export[1:])


def test_nothing_that_is_sent_says_which_answer_is_which(open_app: Start, tmp_path: Path) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    (item, _) = app.ask("next", "ada")["items"]
    assert set(item) == {"item", "prompt", "left", "right"}
    assert {key for side in ("left", "right") for turn in item[side] for key in turn} == {"role", "content"}


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a choice that is none": ("label", {"choice": "first"}, 409, "one of " + ", ".join(SIDES)),
    "a strength that is none": ("label", {"choice": "left", "strength": 4}, 409, "strength 4"),
    "a strength of another kind": ("label", {"choice": "left", "strength": [1]}, 409, "strength"),
    "an item that is none": ("label", {"item": "0" * 16, "choice": "left"}, 409, "not in the data"),
    "an item nobody handed out": ("label", {"item": 4, "choice": "left"}, 409, "not handed to you"),
}


def test_what_cannot_be_is_refused_in_one_line(open_app: Start, tmp_path: Path) -> None:
    app = open_app("ada", "grace", url=f"sqlite:///{tmp_path / 'l.db'}")
    items = app.ask("next", "ada")["items"] + app.ask("next", "grace")["items"]
    for name, body, status, told in REFUSED.values():
        item = items[2]["item"] if body.get("item") == 4 else body.get("item", items[0]["item"])
        assert told in app.ask(name, "ada", status, **{**body, "item": item})["error"]
    app.ask("label", "ada", item=items[0]["item"], choice="tie")
    assert "was answered" in app.ask("label", "ada", 409, item=items[0]["item"], choice="tie")["error"]
    assert "ask for a new one" in app.ask("next", "wrong-token", 401)["error"]
    for path, status in (("nothing", 404), ("page/index.html", 404), ("../people.yaml", 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{app.address}/{path}", timeout=800)
        assert refused.value.code == status and b"Traceback" not in refused.value.read()
    with urllib.request.urlopen(f"{app.address}/healthz", timeout=800) as reply:
        assert reply.read() == b"ok\n"


def test_a_new_link_ends_the_old_one(open_app: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    old = open_app("ada", url=url)
    new = open_app(url=url, more=("--new-link", "ada"))
    assert new.ask("hello", "ada")["annotator"] == "ada"
    old.ask("hello", "ada", 401)
    assert old.tokens["ada"] not in str(Ledger(url, tmp_path.name).events())
