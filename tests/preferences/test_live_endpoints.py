"""People talk with models behind servers: blind as with checkpoints, and a server that fails holds no dialogue up."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Page, sync_api
from judge_server import Answer, JudgeServer

from pipeline.endpoints.answers import AnswerEndpoint, AnswerSampling
from pipeline.preferences.anchors import default_url
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.live import answering
from pipeline.preferences.live.answering import ROUNDS, Answering
from pipeline.preferences.live.api import LiveApi
from pipeline.preferences.live.conversations import Conversations, Rules
from pipeline.preferences.live.servers import JoinedResponder, ServerResponder
from pipeline.stages.collect.config import ledger_names

RECIPE = """
name: talk
stages:
  labels:
    kind: labels
    models: [{models}]
    endpoints:
      secret-one: {{url: "{url}", model: alpha, system: Be kind., key_env: TALK_KEY, attempts: 3}}
      secret-two: {{url: "{url}", model: beta}}
    live: {{labels: 2, turns: 3, max_new_tokens: 6, temperature: 1.2}}
compute: {{threads: 1}}
"""


def _model(body: dict[str, Any]) -> str:
    return str(body["model"])


class Models:
    """Two models behind one server; each says its own, or fails while it is ill."""

    def __init__(self) -> None:
        self.ill: set[str] = set()
        self.server = JudgeServer(self._decide, _model)

    def _decide(self, model: str, times: int) -> Answer:
        return Answer(status=500) if model in self.ill else Answer(f"it is number {times} of {model[0]}")


@pytest.fixture
def models() -> Iterator[Models]:
    models = Models()
    with models.server.running():
        yield models


@pytest.fixture
def talk(
    tmp_path: Path, models: Models, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Start the app of the dialogues."""
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    monkeypatch.setenv("TALK_KEY", "sk-talk")

    def start(*checkpoints: str) -> Any:
        recipe = tmp_path / "talk.yaml"
        recipe.write_text(RECIPE.format(url=models.server.url, models=", ".join(checkpoints)))
        arguments = ["collect", str(recipe), "labels", "--store", "store", "--port", "0", "--annotators", "ada"]
        return serve(arguments, tmp_path, TALK_KEY="sk-talk")

    return start


def _answered(app: Any) -> tuple[Any, set[str]]:
    """Return the dialogue once both models have answered, and the notes meanwhile."""
    shown, notes = app.ask("dialogue", "ada"), set()
    while shown["phase"] == "answering":
        notes.add(shown["note"])
        time.sleep(0.05)
        shown = app.ask("dialogue", "ada")
    return shown, notes


def test_people_talk_with_servers_alone_and_nothing_names_them(
    talk: Callable[..., Any], models: Models, tmp_path: Path, call: Any
) -> None:
    app = talk()
    app.ask("open", "ada")
    for _ in range(2):
        app.ask("say", "ada", text="which number ?")
        shown, notes = _answered(app)
        assert notes <= {""} and {shown["left"][-1], shown["right"][-1]} == {"a", "b"}
        told = json.dumps(shown)
        assert "secret" not in told and "alpha" not in told and "beta" not in told and "endpoint" not in told
        app.ask("choose", "ada", item=shown["item"], choice="left", strength=2)
    asked = models.server.asked
    assert {body["model"] for body in asked} == {"alpha", "beta"} and len(asked) == 4
    assert all((body["temperature"], body["max_tokens"]) == (1.2, 6) for body in asked)
    kind = [body["messages"][0] == {"role": "system", "content": "Be kind."} for body in asked]
    assert kind == [body["model"] == "alpha" for body in asked]
    last = asked[-1]["messages"]
    assert [turn["role"] for turn in last][-3:] == ["user", "assistant", "user"]
    keys = {body["model"]: key for body, key in zip(asked, models.server.keys, strict=True)}
    assert keys == {"alpha": "Bearer sk-talk", "beta": "Bearer none"}
    app.process.send_signal(signal.SIGINT)
    assert app.process.wait(timeout=800) in (0, 130, -2)
    done = call("run", tmp_path / "talk.yaml", "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "labels").glob("*/manifest.json"))
    shares = {name.split()[0]: value for name, value in manifest["metrics"].items() if name.startswith("preferred/")}
    assert set(shares) == {"preferred/secret-one", "preferred/secret-two"} and sum(shares.values()) == 1
    assert not any(b"sk-talk" in file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_checkpoint_and_servers_are_drawn_alike(talk: Callable[..., Any], models: Models, chain: Any) -> None:
    app = talk(str(chain["sft"].path))
    said: set[str] = set()
    for _ in range(12):  # each pair of the three has a chance of 1 in 3
        app.ask("open", "ada")
        app.ask("say", "ada", text="which colour has the grass ?")
        shown, _ = _answered(app)
        if shown["phase"] == "choose":
            said |= {shown[side].split()[-1] if "number" in shown[side] else "sft" for side in ("left", "right")}
    assert said == {"a", "b", "sft"}


def test_a_server_that_fails_is_told_of_and_asked_again(talk: Callable[..., Any], models: Models, browser: Any) -> None:
    app = talk()
    models.ill = {"beta"}
    page = Page(browser)
    page.page.goto(f"{app.address}/#{app.tokens['ada']}")
    page.page.wait_for_selector("#compose:not([hidden]), #new:not([hidden])")
    if not page.page.is_visible("#compose"):
        page.press("n")
    page.page.wait_for_selector("#compose:not([hidden])")
    page.page.locator("#said").fill("which number ?")
    page.press("Enter")
    waiting = page.page.locator("#waiting")
    sync_api.expect(waiting).to_contain_text("A model could not answer just now. It is asked again", timeout=60_000)
    assert app.ask("dialogue", "ada")["note"] == "again"
    assert page.page.is_hidden("#pair")  # the answer of the other model is not shown alone
    models.ill = set()
    sync_api.expect(waiting).to_contain_text("Both have answered", timeout=60_000)
    assert app.ask("dialogue", "ada")["note"] == ""


@pytest.fixture
def conversations(tmp_path: Path) -> Iterator[Conversations]:
    ledger = Ledger(default_url(tmp_path), "labels")
    LabelQueue(Batch(()), ledger)  # gives the batch its secret
    yield Conversations(ledger, Rules(10, 4, ["one 1", "two 2"]))
    ledger.close()


def _responder(models: Models, **more: Any) -> ServerResponder:
    endpoints = {
        name: AnswerEndpoint.model_validate({"url": models.server.url, "model": model, **more})
        for name, model in (("one", "alpha"), ("two", "beta"))
    }
    return ServerResponder(endpoints, AnswerSampling(1.0, 6))


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_server_that_stays_away_ends_one_dialogue_and_no_other(
    conversations: Conversations, models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answering, "PAUSE_S", 0.01)
    models.ill = {"alpha"}
    running = Answering(conversations, _responder(models))
    api = LiveApi(conversations, running)
    running.start()
    try:
        conversations.open("ada")
        conversations.say("ada", "hello")
        running.wake()
        _until(lambda: conversations.shown("ada")["phase"] == "over")
        assert conversations.shown("ada")["over"] == "failed"
        assert sum(body["model"] == "alpha" for body in models.server.asked) == ROUNDS
        assert not running.is_asking_again("ada")
        assert "endpoints.one gave no answer (HTTP 500: no luck); it is asked again" in caplog.text
        models.ill = set()
        conversations.open("ada")
        conversations.say("ada", "hello again")
        running.wake()
        _until(lambda: conversations.shown("ada")["phase"] == "choose")
        assert api._dialogue("ada")["note"] == ""
    finally:
        running.stop()


def test_what_is_taken_back_or_left_is_not_asked_again(
    conversations: Conversations, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.ill = {"alpha"}
    running = Answering(conversations, _responder(models))
    running.start()
    try:
        conversations.open("ada")
        conversations.say("ada", "hello")
        running.wake()
        _until(lambda: running.is_asking_again("ada"))
        assert not running.is_asking_again("grace")
        conversations.open("ada")  # leaves the one that waits
        running.wake()
        _until(lambda: not running.is_asking_again("ada"))
    finally:
        running.stop()


def test_dialogues_between_checkpoints_do_not_wait_for_a_server(tmp_path: Path) -> None:
    """A server that never answers holds up the messages to it, and Ctrl-C does not wait for it either."""

    class Named:
        def answer(self, model: int, dialogues: Any, row_ids: Any, seed: int) -> list[str]:
            return [f"it is {model}" for _ in dialogues]

    ends = threading.Event()

    def hang(text: str, times: int) -> Answer:
        ends.wait(600)
        return Answer("late")

    ledger = Ledger(default_url(tmp_path), "labels")
    LabelQueue(Batch(()), ledger)
    conversations = Conversations(ledger, Rules(10, 9, ["one 1", "two 2", "big 3"]))
    with JudgeServer(hang).running() as server:
        endpoints = {"big": AnswerEndpoint.model_validate({"url": server.url, "model": "m", "timeout_s": 600})}
        servers = ServerResponder(endpoints, AnswerSampling(1.0, 6))
        running = Answering(conversations, JoinedResponder(Named(), 2, servers), range(2, 3), servers.close)
        running.start()
        try:
            for name in map(str, range(16)):  # one message of three is to the two checkpoints
                conversations.open(name)
                conversations.say(name, "hello")
            alone = {one.annotator for one in conversations.asked() if 2 not in one.models}
            running.wake()
            _until(lambda: bool(server.asked) and {one.annotator for one in conversations.asked()}.isdisjoint(alone))
            phases = {conversations.shown(str(name))["phase"] for name in range(16)}
            assert phases == {"choose", "answering"}
        finally:
            running.stop()  # while the server still hangs
        ends.set()
    ledger.close()


def test_the_budget_of_a_server_is_that_of_the_app(conversations: Conversations, models: Models) -> None:
    responder = _responder(models, max_calls=1)
    turns = [[{"role": "user", "content": "hello"}]]
    (first,) = responder.answer(0, turns, [1], 5)  # type: ignore[arg-type]
    (second,) = responder.answer(0, turns, [2], 5)  # type: ignore[arg-type]
    assert isinstance(first, str) and second is answering.LATER
    assert len(models.server.asked) == 1
    (other,) = responder.answer(1, turns, [1], 5)  # type: ignore[arg-type]
    assert isinstance(other, str)


def test_checkpoints_come_before_servers() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def answer(self, model: int, dialogues: Any, row_ids: Any, seed: int) -> list[str]:
            return [f"{self.name} {model}"]

    joined = JoinedResponder(Named("checkpoint"), 2, Named("server"))
    answers = [joined.answer(model, [[]], [1], 1)[0] for model in range(4)]
    assert answers == ["checkpoint 0", "checkpoint 1", "server 0", "server 1"]
    endpoints = {
        name: AnswerEndpoint.model_validate({"url": "http://h/v1", "model": name}) for name in ("b-big", "a-big")
    }
    assert [name.split()[0] for name in ledger_names([], endpoints)] == ["a-big", "b-big"]


ONE = "a: {url: 'http://h/v1', model: m}"
WRONG = {
    "alone": (f"endpoints: {{{ONE}}}", "endpoints names one; expected two different checkpoints or more, or an endpo"),
    "beside data": (f"data: rows, endpoints: {{{ONE}}}", "data and endpoints are both set"),
    "equal": (f"endpoints: {{{ONE}, b: {{url: 'http://h/v1', model: m}}}}", "endpoints.b asks the same of the same"),
    "address": (f"endpoints: {{{ONE}, b: {{url: h, model: n}}}}", "endpoints.b.url is 'h'; expected the base URL"),
}


@pytest.mark.parametrize("case", WRONG)
def test_check_tells_what_cannot_be(tmp_path: Path, call: Any, write_jsonl: Any, case: str) -> None:
    stage, told = WRONG[case]
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    recipe = tmp_path / "talk.yaml"
    recipe.write_text(
        f"name: talk\ndata: {{rows: {{path: rows.jsonl}}}}\nstages: {{labels: {{kind: labels, {stage}}}}}\n"
    )
    ended = call("check", recipe, "--store", "store", cwd=tmp_path)
    assert ended.returncode == 2 and told in ended.stderr, ended.stdout + ended.stderr


def test_a_key_that_is_not_there_is_told_when_the_app_opens(tmp_path: Path, call: Any) -> None:
    recipe = tmp_path / "talk.yaml"
    recipe.write_text(RECIPE.format(url="http://127.0.0.1:9/v1", models=""))
    ended = call("collect", recipe, "labels", "--annotators", "ada", "--store", "store", cwd=tmp_path)
    assert ended.returncode == 2
    assert "endpoints.secret-one.key_env is TALK_KEY, and that variable is not set" in ended.stderr
