"""People talk with two real checkpoints through the app, which is killed meanwhile; their choices become rows."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ExitCode
from pipeline.preferences.anchors import default_url
from pipeline.preferences.ledger import Ledger
from pipeline.recipe import DataSource
from pipeline.records.loading import load

RECIPE = """
name: talk
seed: 7
data:
  openings: {{path: openings.jsonl}}
  preferred: {{artifact: labels, file: preferences.jsonl}}
stages:
  labels:
    kind: labels
    models: [{sft}, {dpo}]
    live: {{labels: 3, turns: 3, max_new_tokens: 6, temperature: 1.2}}
    openings: openings
    guidelines: Prefer what is polite.
    dimensions: [{{name: kind, rated: 3}}]
  tuned: {{kind: dpo, data: preferred, model: {sft}, train: {{max_steps: 1, batch_size: 1}}}}
compute: {{threads: 1}}
"""
RAW: list[tuple[bytes, int, str]] = [
    (b"{", 422, "not JSON"),
    (b"{}", 422, "text: field required"),
    (b'{"text": ["x"]}', 422, "text: input should be a valid string"),
    (b'{"text": "x", "annotator": "grace"}', 422, "annotator: extra inputs"),
    (b'{"text": "' + b"x" * 8001 + b'"}', 422, "text: string should have at most 8000"),
    (b'{"text": "' + b"x" * 70_000 + b'"}', 413, "larger than 64 KiB"),
]
SALT = "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"


@pytest.fixture
def recipe(tmp_path: Path, chain: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    file = tmp_path / "talk.yaml"
    file.write_text(RECIPE.format(sft=chain["sft"].path, dpo=chain["dpo"].path))
    (tmp_path / "openings.jsonl").write_text(json.dumps({"prompt": "what colour is grass ?"}) + "\n")
    ledger = Ledger(default_url(tmp_path / "store"), "labels")
    ledger.append(lambda known: ("batch", {"salt": SALT}))
    ledger.close()
    return file


@pytest.fixture
def talk(recipe: Path, serve: Callable[..., Any]) -> Callable[..., Any]:
    """Start the app of the dialogues."""

    def start(*more: str) -> Any:
        return serve(["collect", str(recipe), "labels", "--store", "store", "--port", "0", *more], recipe.parent)

    return start


def _answered(app: Any, who: str = "ada") -> Any:
    """Return the dialogue once both models have answered."""
    shown = app.ask("dialogue", who)
    while shown["phase"] == "answering":
        time.sleep(0.05)
        shown = app.ask("dialogue", who)
    return shown


def _compared(app: Any, text: str, who: str = "ada") -> Any:
    """Say something until two answers wait for a choice; a dialogue that is over is followed by another."""
    shown = app.ask("dialogue", who)
    while shown["phase"] != "choose":
        if shown["phase"] in ("none", "over"):
            app.ask("open", who)
        app.ask("say", who, text=text)
        shown = _answered(app, who)
    return shown


def test_people_talk_and_what_they_choose_is_trained_on(recipe: Path, talk: Callable[..., Any], call: Any) -> None:
    waiting = call("run", recipe, "--store", "store", cwd=recipe.parent)
    assert waiting.returncode == ExitCode.WAITING and "waiting for people: 0 of 3 labels" in waiting.stderr
    app = talk("--annotators", "ada,grace")
    app.ask("say", "ada", 409, text="hello")  # no dialogue yet
    assert app.ask("open", "ada")["offered"] == "what colour is grass ?"
    chosen = []
    for who in ("ada", "ada", "grace"):
        shown = _compared(app, "what colour is grass ?", who)
        assert shown["left"] != shown["right"] and set(shown) == {
            "phase", "turns", "item", "left", "right", "offered", "note", "over", "left_messages", "progress"
        }  # fmt: skip
        told = app.ask("choose", who, item=shown["item"], choice="left", strength=2)
        assert told["turns"][-1] == {"role": "assistant", "content": shown["left"]}
        chosen.append(shown["left"])
    assert "no more labels are needed" in app.ask("say", "ada", 409, text="more")["error"]
    for body, status, told in RAW:
        code, text = app.post("say", app.tokens["ada"], body)
        assert (code, told in text) == (status, True), text
    assert app.post("say", "wrong", b'{"text": "' + b"x" * 70_000 + b'"}')[0] == 401
    assert app.post("label", app.tokens["ada"], b"{}")[0] == 404  # there are no pairs to label
    app.process.send_signal(signal.SIGINT)
    assert app.process.wait(timeout=800) in (0, 130, -2)
    line = (recipe, "labels", "--store", "store")
    status = call("labels", "status", *line, cwd=recipe.parent).stdout
    assert status.startswith("3 of 3 labels of 3 pairs") and "ada: 2 labels" in status
    exported = [json.loads(row) for row in call("labels", "export", *line, cwd=recipe.parent).stdout.splitlines()]
    assert sorted(row["chosen"][0]["content"] for row in exported) == sorted(chosen)
    assert all(row["margin"] == 2 for row in exported)
    assert "each follows the one before it" in call("labels", "verify", *line, cwd=recipe.parent).stdout
    assert "3 labels of 2 people" in call("labels", "stats", *line, cwd=recipe.parent).stdout
    done = call("run", recipe, "--store", "store", cwd=recipe.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (pairs,) = (recipe.parent / "store" / "labels").glob("*/preferences.jsonl")
    assert [json.loads(row) for row in pairs.read_text().splitlines()] == exported
    (manifest,) = (
        json.loads(file.read_text()) for file in (recipe.parent / "store" / "labels").glob("*/manifest.json")
    )
    shares = [value for name, value in manifest["metrics"].items() if name.startswith("preferred/")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1)
    read = load(DataSource(path=str(pairs)), "preference", seed=0, name="pairs")
    assert len(read.train) == 3


def test_every_verb_of_labels_works_on_dialogues_or_refuses_in_one_sentence(
    recipe: Path, talk: Callable[..., Any], call: Any
) -> None:
    app = talk("--annotators", "ada,grace", "--lead", "lin")
    assert app.ask("hello", "ada")["dimensions"][0]["name"] == "kind"
    shown = _compared(app, "what colour is grass ?")
    for route, wrong in {
        "flag": {"flag": "ugly"},
        "skip": {"reason": 1},
        "choose": {"choice": "left", "edit": 3},
    }.items():
        app.ask(route, "ada", 422, item=shown["item"], **wrong)
    assert "do not wait for a choice" in app.ask("skip", "ada", 409, item="0" * 16)["error"]
    app.ask("skip", "lin", 403, item=shown["item"])
    app.ask("skip", "ada", item=shown["item"], reason="I cannot decide")
    shown = _compared(app, "what colour is grass ?")
    while shown["phase"] == "choose" and app.ask("dialogue", "ada")["progress"]["own"] < 2:
        app.ask("flag", "ada", item=shown["item"], flag="personal data", reason="a name")
        shown = _answered(app)
    for count, who in enumerate(("ada", "grace", "grace")):
        shown = _compared(app, "what colour is grass ?", who)
        more = {"edit": "it is green .", "comment": "too short", "ratings": {"kind": {"left": 2}}} if not count else {}
        told = app.ask("choose", who, item=shown["item"], choice="left", seconds=2.5, **more)
        if more:
            assert told["turns"][-1]["content"] == "it is green ."
    assert app.ask("lead/overview", "lin")["progress"]["done"] == 3
    app.process.send_signal(signal.SIGINT)
    app.process.wait(timeout=800)

    def labels(*line: object, status: int = 0) -> str:
        ended = call("labels", line[0], recipe, "labels", *line[1:], "--store", "store", cwd=recipe.parent)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return str(ended.stdout if not status else ended.stderr)

    status = labels("status")
    assert status.startswith("3 of 3 labels of ") and "ada: 1 labels, 1 skipped, 1 flagged" in status
    assert "is flagged as personal data by ada: a name" in status
    stats = labels("stats")
    assert "3 labels of 2 people, 1 skipped, 1 flagged" in stats
    assert "nobody else sees a person's dialogue" in stats and "overlap" not in stats
    told = json.loads(labels("stats", "--json"))
    assert (told["skipped"], told["flagged"], told["people"]["ada"]["flagged"], told["agreement"]) == (1, 1, 1, None)
    raw = [json.loads(row) for row in labels("export", "--format", "raw").splitlines()]
    assert sorted(row["kind"] for row in raw) == ["flag", "label", "label", "label", "skip"]
    by_kind = {row["kind"]: row for row in raw}
    assert (by_kind["flag"]["flag"], by_kind["skip"]["reason"]) == ("personal data", "I cannot decide")
    (edited,) = [row for row in raw if row["edit"]]
    assert edited["comment"] == "too short" and edited["ratings"]["kind"].popitem()[1] == 2 and edited["seconds"] == 2.5
    for form, rows in {"preference": 3, "unpaired": 6, "hh": 3, "argilla": 3, "label-studio": 3, "csv": 5}.items():
        out = recipe.parent / f"out.{form}"
        labels("export", "--format", form, "--out", out)
        text = out.read_text()
        count = len(json.loads(text)) if text.startswith("[") else text.count("\n") - (form == "csv")
        assert count == rows or form == "csv", (form, text)
    flagged = by_kind["flag"]["response_a"][0]["content"]
    pairs = [json.loads(row) for row in labels("export").splitlines()]
    assert not any(flagged == row["chosen"][0]["content"] for row in pairs)
    refused = {
        ("agreement",): "agreement on live dialogues; expected a batch of pairs",
        ("import", "x.jsonl"): "an import into live dialogues",
        ("drop", "--stuck"): "--stuck of live dialogues",
        ("drop", "0000"): "no pair of this batch is 0000; expected ids of pairs as `trueup labels export",
        ("export", "--aggregate", "dawid_skene"): "--aggregate dawid_skene of live dialogues",
    }
    for line, said in refused.items():
        ended = labels(*line, status=2)
        assert said in ended and len(ended.strip().splitlines()) == 1, ended
    dropped = next(row["item"] for row in raw if row["kind"] == "label" and row is not edited)
    assert "1 pair dropped; 2 of 3 labels" in labels("drop", dropped, "--reason", "nonsense")
    assert labels("status").startswith("2 of 3 labels")
    assert "closed with 2 labels" in labels("close")
    assert "open again: 2 of 3 labels" in labels("close", "--reopen")
    labels("close")
    people = labels("people", "--add", "kim", "--lead", "--pause", "grace")
    assert "/lead#" in people and "lin (lead, active)" in people and "grace (paused)" in people
    assert "each follows the one before it" in labels("verify")
    done = call("run", recipe, "--until", "labels", "--store", "store", cwd=recipe.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (
        json.loads(file.read_text()) for file in (recipe.parent / "store" / "labels").glob("*/manifest.json")
    )
    assert {name: manifest["metrics"][name] for name in ("labels", "pairs", "edited", "skipped", "flagged")} == {
        "labels": 2, "pairs": 2, "edited": 1, "skipped": 1, "flagged": 1
    }  # fmt: skip
    (ratings,) = (recipe.parent / "store" / "labels").glob("*/ratings.jsonl")
    assert [json.loads(row)["annotator"] for row in ratings.read_text().splitlines()] == ["ada"]


def test_a_lead_looks_after_dialogues_and_is_blind(recipe: Path, talk: Callable[..., Any]) -> None:
    app = talk("--annotators", "ada", "--lead", "lin")
    assert app.ask("lead/hello", "lin")["live"] is True
    shown = _compared(app, "what colour is grass ?")
    (waiting,) = app.ask("lead/items", "lin", name="waiting")["items"]
    assert waiting["item"] != shown["item"] and not waiting["labels"]
    assert {waiting[side][0]["content"] for side in ("left", "right")} == {shown["left"], shown["right"]}
    app.ask("choose", "ada", item=shown["item"], choice="left", seconds=0.01)
    told = app.ask("lead/overview", "lin")
    assert told["progress"] == {
        "done": 1,
        "wanted": 3,
        "pairs": 1,
        "dialogues": told["progress"]["dialogues"],
        "closed": False,
    }
    (ada,) = told["people"]
    assert (ada["labels"], ada["chose_left"]["value"], ada["gold"], ada["with_the_rest"]) == (1, 1, None, None)
    assert ada["fast"]["value"] == 1 and told["agreement"] is None
    (chosen,) = app.ask("lead/items", "lin", name="chosen")["items"]
    assert {"name", "choice", "strength", "seconds", "comment", "edit"} == set(chosen["labels"][0])
    assert chosen[chosen["labels"][0]["choice"]][0]["content"] == shown["left"]
    assert (
        "take no verdict of a lead"
        in app.ask("lead/adjudicate", "lin", 409, item=chosen["item"], choice="left")["error"]
    )
    app.ask("lead/items", "lin", 422, name="disagreements")
    app.ask("lead/drop", "lin", item=chosen["item"], reason="nonsense")
    assert app.ask("lead/overview", "lin")["progress"]["done"] == 0 == app.ask("dialogue", "ada")["progress"]["done"]
    app.ask("lead/access", "lin", name="ada", access="paused")
    assert "paused" in app.ask("dialogue", "ada", 403)["error"]
    app.tokens["kim"] = app.ask("lead/invite", "lin", name="kim")["token"]
    assert app.ask("open", "kim")["phase"] == "say"
    app.ask("lead/close", "lin", closed=True)
    assert (
        app.ask("dialogue", "kim")["progress"]["closed"]
        and "no more labels" in app.ask("say", "kim", 409, text="x")["error"]
    )
    for route in ("overview", "items", "invite", "close"):
        app.ask(f"lead/{route}", "kim", 403)
    wire = json.dumps([app.ask("lead/overview", "lin"), app.ask("lead/items", "lin", name="chosen")])
    assert str(recipe.parent.parent) not in wire and "sft" not in wire and "dpo" not in wire


def test_a_killed_server_loses_nothing_that_was_said(recipe: Path, talk: Callable[..., Any]) -> None:
    app = talk("--annotators", "ada")
    shown = _compared(app, "what colour is grass ?")
    app.ask("choose", "ada", item=shown["item"], choice="right")
    app.ask("say", "ada", text="what colour is the sky ?")
    app.process.kill()  # both may be answering
    app.process.wait(timeout=800)
    again = talk("--annotators", "ada")
    again.tokens["ada"] = app.tokens["ada"]
    told = _answered(again)
    assert told["turns"][0]["content"] == "what colour is grass ?"
    assert told["turns"][1] == {"role": "assistant", "content": shown["right"]}
    assert told["turns"][2]["content"] == "what colour is the sky ?" and told["progress"]["done"] == 1
    assert again.ask("undo", "ada")["item"] == shown["item"]
    again.ask("open", "ada")
    again.ask(
        "say", "ada", text=" ".join(["what colour is grass ?"] * 30)
    )  # more than the 64 tokens that both can read
    assert _answered(again)["over"] == "context" and again.ask("open", "ada")["phase"] == "say"
    ledger = Ledger(default_url(recipe.parent / "store"), "labels")
    assert ledger.problems() == []
    assert [event.kind for event in ledger.events()].count("answers") == 2


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "both": (("stages.labels.data=openings",), "data and models are both set"),
    "repeats": (("stages.labels.repeats=0.1",), "repeats has no effect with models. Leave it out: nobody else sees"),
    "neither": (
        ("stages.labels.models=[]", "stages.labels.live=null", "stages.labels.openings=null"),
        "neither data nor",
    ),
    "one model": (("stages.labels.models=[{sft}]",), "models names one; expected two different checkpoints"),
    "twice": (("stages.labels.models=[{sft}, {sft}]",), "models names one twice"),
    "overlap": (("stages.labels.overlap=0.5",), "overlap has no effect with models"),
    "live with data": (("stages.labels.models=[]", "stages.labels.data=openings"), "live has no effect with data"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_itself_is_one_line(recipe: Path, chain: Any, call: Any, case: str) -> None:
    settings, told = WRONG[case]
    options = [part for one in settings for part in ("--set", one.format(sft=chain["sft"].path))]
    ended = call("check", recipe, "--store", "store", *options, cwd=recipe.parent)
    assert ended.returncode == 2 and told in ended.stderr + ended.stdout, ended.stdout + ended.stderr


def test_the_plan_makes_the_models_first_and_hangs_on_them(tiny_recipe: Path, call: Any) -> None:
    """The openings are checked with the tokenizers of the models, and the stage is stale with another model."""
    talk = "  talk: {kind: labels, models: [sft, dpo], openings: asks}\ncompute:"
    tiny_recipe.write_text(tiny_recipe.read_text().replace("compute:", talk))
    checked = call("check", tiny_recipe, "--store", "none", cwd=tiny_recipe.parent)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    planned = [
        json.loads(call("plan", tiny_recipe, "--store", "none", "--json", *more, cwd=tiny_recipe.parent).stdout)[
            "stages"
        ]
        for more in ((), ("--set", "stages.dpo.train.beta=0.3"), ("--set", "stages.talk.openings=null"))
    ]
    names = [stage["name"] for stage in planned[0]]
    assert names.index("talk") > names.index("dpo")
    prints = [next(one["fingerprint"] for one in stages if one["name"] == "talk") for stages in planned]
    assert len(set(prints)) == 3


def test_models_that_are_not_made_yet_are_named(tiny_recipe: Path, call: Any) -> None:
    text = tiny_recipe.read_text().replace("compute:", "  talk: {kind: labels, models: [sft, dpo]}\ncompute:")
    tiny_recipe.write_text(text)
    ended = call("collect", tiny_recipe, "talk", "--annotators", "ada", "--store", "none", cwd=tiny_recipe.parent)
    assert ended.returncode == 2
    assert "people talk with sft, dpo, which have not run" in ended.stderr and "--until talk" in ended.stderr
