"""The app as people use it, over HTTP: nobody gets another's pair, nothing said is lost or gives itself away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.ledger import Ledger

ROOT = Path(__file__).parents[2]
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
    assert told["progress"] == {"done": 1, "wanted": 6, "own": 1, "closed": False}
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
    "a choice that is none": ("label", {"choice": "first"}, 422, "choice: input should be 'left', 'right', 'tie'"),
    "a strength that is none": ("label", {"choice": "left", "strength": 4}, 422, "strength: input should be less"),
    "a strength of another kind": ("label", {"choice": "left", "strength": [1]}, 422, "strength: input should be"),
    "a strength that is a text": ("label", {"choice": "left", "strength": "1"}, 422, "strength: input should be"),
    "a time below nothing": ("label", {"choice": "left", "seconds": -1}, 422, "seconds: input should be greater"),
    "no choice": ("label", {}, 422, "choice: field required"),
    "another key": ("label", {"choice": "left", "annotator": "grace"}, 422, "annotator: extra inputs"),
    "a long comment": ("label", {"choice": "left", "comment": "x" * 2001}, 422, "comment: string should have at most"),
    "an edit of no answer": ("label", {"choice": "tie", "edit": "x"}, 409, "an edited answer and the choice 'tie'"),
    "an edit that is empty": ("label", {"choice": "left", "edit": " "}, 409, "the edited answer is empty"),
    "an edit of another type": ("label", {"choice": "left", "edit": ["x"]}, 422, "edit: input should be a valid"),
    "a flag that is none": ("flag", {"flag": "rude"}, 422, "flag: input should be 'harmful'"),
    "a skip that is a flag": ("skip", {"flag": "broken"}, 422, "flag: extra inputs"),
    "a long reason": ("skip", {"reason": "x" * 4001}, 422, "reason: string should have at most 4000"),
    "an item that is none": ("label", {"item": "0" * 16, "choice": "left"}, 409, "not handed to you"),
    "an item of somebody else": ("label", {"item": 2, "choice": "left"}, 409, "not handed to you"),
}


def test_what_cannot_be_is_refused_in_one_line(open_app: Start, tmp_path: Path) -> None:
    app = open_app("ada", "grace", url=f"sqlite:///{tmp_path / 'l.db'}")
    items = app.ask("next", "ada")["items"] + app.ask("next", "grace")["items"]
    for name, body, status, told in REFUSED.values():
        item = items[2]["item"] if body.get("item") == 2 else body.get("item", items[0]["item"])
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


RAW: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 422, "not JSON"),
    "not a number": (b'{"item": "x", "choice": "tie", "seconds": NaN}', 422, "not JSON"),
    "endless": (b'{"item": "x", "choice": "tie", "seconds": Infinity}', 422, "not JSON"),
    "a number too large": (b'{"item": "x", "choice": "tie", "seconds": 1e999}', 422, "seconds: input should be"),
    "a list": (b"[]", 422, "the request: input should be"),
    "deep": (b"[" * 60_000, 422, "not JSON"),
    "large": (b'{"reason": "' + b"x" * 70_000 + b'"}', 413, "larger than 64 KiB"),
}


def test_bodies_that_no_page_sends_are_refused(open_app: Start, tmp_path: Path) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    for body, status, told in RAW.values():
        code, text = app.post("label", app.tokens["ada"], body)
        assert (code, told in text) == (status, True), text
    # Who has no link is refused before the body is looked at.
    assert app.post("label", "wrong", b'{"reason": "' + b"x" * 70_000 + b'"}')[0] == 401
    events = Ledger(f"sqlite:///{tmp_path / 'l.db'}", tmp_path.name).events()
    assert all(event.kind in ("batch", "guidelines", "annotator") for event in events)


def test_guessing_links_is_slowed_down_and_stops_nobody_else(open_app: Start, tmp_path: Path) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    codes: list[int] = []
    while 429 not in codes and len(codes) < 2000:  # a bucket fills up meanwhile: how many it takes depends on the speed
        codes.append(app.post("next", f"guess {len(codes)}", b"{}")[0])
    assert codes[:20] == [401] * 20 and codes[-1] == 429 and set(codes) == {401, 429}
    assert app.ask("hello", "ada")["annotator"] == "ada"  # from the same address


def test_a_label_whose_reply_was_lost_is_sent_again_and_counts_once(open_app: Start, url: str, people: Path) -> None:
    app = open_app("ada", url=url)
    item = app.ask("next", "ada")["items"][0]
    label = {"item": item["item"], "choice": "left", "request": "one"}
    first, again = app.ask("label", "ada", **label), app.ask("label", "ada", **label)
    assert first == again and again["progress"]["done"] == 1
    assert app.ask("undo", "ada", request="two")["undone"] == item["item"]
    told = app.ask("undo", "ada", request="two")
    assert told["undone"] == item["item"] == told["items"][0]["item"] and told["progress"]["done"] == 0


def test_people_come_pause_and_go_while_the_app_runs(
    open_app: Start, tmp_path: Path, labels: Any, people: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    app = open_app("ada", url=url)
    line = ("people", str(people), "labels", "--ledger", url, *_batch(people))
    link = labels(*line, "--add", "grace", "--url", app.address).splitlines()[0]
    app.tokens["grace"] = link.partition("#")[2]
    assert link.startswith(f"grace: {app.address}/#") and app.ask("hello", "grace")["annotator"] == "grace"
    assert "grace (paused)" in labels(*line, "--pause", "grace")
    assert "paused" in app.ask("next", "grace", 403)["error"]
    labels(*line, "--resume", "grace")
    app.ask("next", "grace")
    labels(*line, "--revoke", "grace")
    app.ask("next", "grace", 401)
    app.ask("next", "ada")


def test_a_new_link_ends_the_old_one(open_app: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    old = open_app("ada", url=url)
    new = open_app(url=url, more=("--new-link", "ada"))
    assert new.ask("hello", "ada")["annotator"] == "ada"
    old.ask("hello", "ada", 401)
    assert old.tokens["ada"] not in str(Ledger(url, tmp_path.name).events())


def test_a_new_link_for_nobody_makes_nobody(people: Path, call: Any) -> None:
    ended = call(
        "collect", people, "labels", "--annotators", "ada", "--new-link", "adda", "--port", "0", cwd=people.parent
    )
    assert ended.returncode == 2
    assert "--new-link adda: nobody has this name" in ended.stderr and "--annotators adda" in ended.stderr


def test_a_comment_an_edit_and_the_kind_of_a_flag_are_in_the_ledger_and_the_edit_in_the_row(
    open_app: Start, url: str, people: Path, labels: Callable[..., str]
) -> None:
    app = open_app("ada", url=url)
    first = app.ask("next", "ada")["items"][0]
    other = first["right"][0]["content"]
    app.ask("label", "ada", 409, item=first["item"], choice="left", edit=f" {other} ")  # that is the other answer
    told = app.ask("label", "ada", item=first["item"], choice="left", edit="my own\ntext", comment="both miss it")
    app.ask("flag", "ada", item=told["items"][0]["item"], flag="personal data", reason="a phone number")
    label, flag = [event.body for event in Ledger(url, people.parent.name).events() if event.kind in ("label", "flag")]
    assert (label["edit"], label["comment"]) == ("my own\ntext", "both miss it")
    assert (flag["flag"], flag["reason"]) == ("personal data", "a phone number")
    line = (str(people), "labels", "--ledger", url, *_batch(people))
    printed = labels("export", *line).splitlines()
    row = json.loads(printed[0])
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("my own\ntext", other)
    assert "1 preference as of event" in printed[-1] and "1 of an edited answer" in printed[-1]
    assert f"{flag['item']} is flagged as personal data by ada: a phone number" in labels("status", *line)
    told = json.loads(labels("status", *line, "--json"))["flags"]
    assert told == [{"item": flag["item"], "annotator": "ada", "kind": "personal data", "reason": "a phone number"}]


def test_pressing_ctrl_c_twice_ends_the_app_without_a_traceback(people: Path, tmp_path: Path) -> None:
    command = ["collect", str(people), "labels", "--port", "0", "--annotators", "ada"]
    line = [sys.executable, "-m", "pipeline.cli", *command]
    around = {**os.environ, "TRUEUP_LEDGER": f"sqlite:///{tmp_path / 'l.db'}", "PYTHONPATH": str(ROOT)}
    app = subprocess.Popen(line, env=around, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert app.stdout is not None
    while not (told := app.stdout.readline()).startswith("listening on "):
        assert app.poll() is None
    urllib.request.urlopen(told.split()[2].rstrip(";") + "/healthz", timeout=800).close()
    for _ in range(2):
        app.send_signal(signal.SIGINT)
        time.sleep(0.05)
    told = app.communicate(timeout=800)[1]
    # The first one may have ended it in order before the second came.
    assert "Traceback" not in told and app.returncode in (0, 130), (app.returncode, told)
