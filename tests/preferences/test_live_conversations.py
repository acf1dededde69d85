"""What a person may do in a live dialogue, and that nothing which is told them tells the two models apart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from pipeline.errors import PipelineError
from pipeline.preferences.agreement import exported
from pipeline.preferences.details import Choice
from pipeline.preferences.dimensions import Dimension, SideRating
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.live.answering import TRIES, Answering, answer_all
from pipeline.preferences.live.conversations import Conversations, Rules
from pipeline.preferences.live.dialogues import Dialogues
from pipeline.records.shapes.turns import Turn
from pipeline.stages.collect.run import _preferred

SALT = "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"


class Script:
    """Models that answer by a rule: `model` is the place of one, the dialogue the text that it was asked."""

    def __init__(self, rule: Callable[[int, str, int], str | None]) -> None:
        self.rule, self.asked, self._calls = rule, [], itertools.count()  # type: ignore[var-annotated]

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> list[str | None]:
        call = next(self._calls)
        self.asked += [
            (model, [dict(turn) for turn in turns], row, seed) for turns, row in zip(dialogues, row_ids, strict=True)
        ]
        return [self.rule(model, str(turns[-1]["content"]), call) for turns in dialogues]


NAMED = Script(lambda model, text, call: f"model {model} says {text}")


class Talk:
    """A batch of dialogues, with models that answer whenever they are asked to."""

    def __init__(self, ledger: Ledger, responder: Any = NAMED, **rules: Any) -> None:
        self.ledger, self.responder = ledger, responder
        LabelQueue(Batch(()), ledger)  # gives the batch its secret
        self.conversations = Conversations(
            ledger, Rules(**{"labels": 100, "turns": 8, "models": ["sft", "dpo"], **rules})
        )

    def say(self, text: str, who: str = "ada", request: str = "") -> Any:
        if self.shown(who)["phase"] in ("none", "over"):
            self.conversations.open(who)
        self.conversations.say(who, text, request)
        self.answer()
        return self.shown(who)

    def answer(self) -> None:
        answer_all(self.conversations, self.responder, self.conversations.asked())

    def choose(
        self, side: str, way: Any = "either", who: str = "ada", request: str = "", strength: int = 1, **more: Any
    ) -> Any:
        choice = Choice(side, strength, 1.0, request, **more)
        self.conversations.choose(who, self.shown(who)["item"], choice, way)
        self.answer()
        return self.shown(who)

    def leave(self, kind: Literal["skip", "flag"], *told: Any, who: str = "ada") -> Any:
        self.conversations.leave(kind, who, self.shown(who)["item"], *told)
        self.answer()
        return self.shown(who)

    def shown(self, who: str = "ada") -> Any:
        return self.conversations.shown(who)

    def rows(self) -> list[Any]:
        events = self.ledger.events()
        return list(exported(Dialogues().take(events).items(), State().take(events))[0])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger whose secret is the same in every run: what is drawn below is then no matter of luck."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "batch")
    ledger.append(lambda known: ("batch", {"salt": SALT}))
    yield ledger
    ledger.close()


def _side_of(shown: Any, model: int) -> str:
    return "left" if shown["left"].startswith(f"model {model}") else "right"


def test_a_dialogue_goes_on_with_the_chosen_answer_and_each_choice_is_a_row(ledger: Ledger) -> None:
    talk = Talk(ledger)
    for turn, model in enumerate((1, 0, 1)):
        shown = talk.say(f"message {turn}")
        assert shown["phase"] == "choose" and {shown["left"], shown["right"]} == {
            f"model {one} says message {turn}" for one in (0, 1)
        }
        shown = talk.choose(_side_of(shown, model), strength=turn + 1)
        assert shown["turns"][-1] == {"role": "assistant", "content": f"model {model} says message {turn}"}
    rows = talk.rows()
    assert [row["margin"] for row in rows] == [1, 2, 3]
    assert [row["chosen"][0]["content"][6] for row in rows] == ["1", "0", "1"]
    assert [row["rejected"][0]["content"][6] for row in rows] == ["0", "1", "0"]
    said = [turn["content"] for turn in rows[2]["prompt"]]
    assert said == ["message 0", "model 1 says message 0", "message 1", "model 0 says message 1", "message 2"]
    assert Dialogues().take(ledger.events()).preferred() == {"sft": (1, 3), "dpo": (2, 3)}
    assert talk.shown()["progress"] == {"done": 3, "wanted": 100, "own": 3, "closed": False}


def test_a_choice_is_taken_back_with_all_that_followed_it(ledger: Ledger) -> None:
    talk = Talk(ledger)
    talk.say("one")
    first = talk.shown()
    talk.choose("left")
    talk.say("two")
    talk.choose("right")
    talk.say("three")
    assert talk.conversations.undo("ada")
    assert talk.shown()["item"] != first["item"] and talk.shown()["turns"][-1]["content"] == "two"
    assert talk.conversations.undo("ada")
    assert {key: talk.shown()[key] for key in ("item", "left", "right")} == {
        key: first[key] for key in ("item", "left", "right")
    }
    assert not talk.conversations.undo("ada") and talk.rows() == []
    talk.choose("right")
    shown = talk.say("another two")
    assert [turn["content"] for turn in shown["turns"]] == ["one", first["right"], "another two"]
    assert len(talk.rows()) == 1 and ledger.problems() == []


def test_undo_goes_back_to_the_dialogue_before(ledger: Ledger) -> None:
    talk = Talk(ledger)
    talk.say("one")
    talk.choose("left")
    talk.conversations.open("ada")
    assert talk.shown()["turns"] == [] and talk.shown()["phase"] == "say"
    assert talk.conversations.undo("ada")
    assert talk.shown()["phase"] == "choose" and talk.shown()["turns"][-1]["content"] == "one"


def test_without_a_preference_the_person_says_how_it_goes_on(ledger: Ledger) -> None:
    talk = Talk(ledger)
    for side, way in (("tie", "left"), ("both good", "right"), ("both bad", "left")):
        shown = talk.say("text")
        assert talk.choose(side, way)["turns"][-1]["content"] == shown[way]
    drawn = []
    for _ in range(5):
        shown = talk.say("text")
        drawn.append("left" if talk.choose("tie")["turns"][-1]["content"] == shown["left"] else "right")
    assert set(drawn) == {"left", "right"}  # by the batch's secret
    assert talk.rows() == []


def test_both_bad_asks_for_two_new_answers(ledger: Ledger) -> None:
    talk = Talk(ledger, Script(lambda model, text, call: f"model {model}, call {call}"))
    before = talk.say("one")
    after = talk.choose("both bad", "again")
    assert after["phase"] == "choose" and after["item"] != before["item"]
    assert {after["left"], after["right"]}.isdisjoint({before["left"], before["right"]})
    assert after["turns"] == [{"role": "user", "content": "one"}]
    talk.choose("left")
    (row,) = talk.rows()
    assert row["prompt"] == [{"role": "user", "content": "one"}] and row["chosen"][0]["content"] == after["left"]
    assert talk.conversations.undo("ada") and talk.conversations.undo("ada")
    assert talk.shown()["item"] == before["item"]
    with pytest.raises(PipelineError, match="only when both are bad"):
        talk.choose("tie", "again")


def test_a_skip_goes_on_with_one_of_the_answers_and_is_taken_back(ledger: Ledger) -> None:
    talk = Talk(ledger)
    sides = []
    for turn in range(5):
        before = talk.say(f"message {turn}")
        after = talk.leave("skip", "I cannot decide", f"request {turn}")
        assert after["phase"] == "say" and after["progress"] == {
            "done": 0,
            "wanted": 100,
            "own": turn + 1,
            "closed": False,
        }
        sides.append("left" if after["turns"][-1]["content"] == before["left"] else "right")
    assert set(sides) == {"left", "right"}  # by the batch's secret
    events = ledger.events()
    assert [event.body["reason"] for event in events if event.kind == "skip"] == ["I cannot decide"] * 5
    assert Dialogues().take(events).preferred() == {} and talk.rows() == []
    assert talk.conversations.undo("ada")
    assert (talk.shown()["phase"], talk.shown()["item"]) == ("choose", before["item"])
    assert talk.choose("left")["turns"][-1]["content"] == before["left"] and len(talk.rows()) == 1


def test_flagged_answers_are_in_no_row_and_both_models_answer_again(ledger: Ledger) -> None:
    talk = Talk(ledger, Script(lambda model, text, call: f"model {model}, call {call}"))
    before = talk.say("one")
    after = talk.leave("flag", "a name", "r", "personal data")
    assert after["phase"] == "choose" and after["item"] != before["item"]
    assert after["turns"] == [{"role": "user", "content": "one"}]
    talk.choose("left")
    talk.say("two")
    talk.choose("right")
    rows = talk.rows()
    assert len(rows) == 2 and not [text for text in (before["left"], before["right"]) if text in json.dumps(rows)]
    state = State().take(ledger.events())
    ((_, flag), *_) = state.answers["ada"].items()
    assert (flag.kind, flag.reason, flag.details and flag.details.flag) == ("flag", "a name", "personal data")
    assert exported(Dialogues().take(ledger.events()).items(), state)[1] == {"flagged": 1}
    for _ in range(3):
        assert talk.conversations.undo("ada")
    assert talk.shown()["item"] == before["item"] and talk.choose("right")["progress"]["done"] == 1


def test_a_skip_or_flag_that_is_sent_again_counts_once(ledger: Ledger) -> None:
    talk = Talk(ledger)
    for kind in ("skip", "flag"):
        item = talk.say("one")["item"]
        for _ in range(2):
            talk.conversations.leave(kind, "ada", item, "", f"request {kind}")
        talk.answer()
    kinds = [event.kind for event in ledger.events()]
    assert (kinds.count("skip"), kinds.count("flag"), kinds.count("answers")) == (1, 1, 3)


def test_a_dialogue_goes_on_with_the_answer_as_it_was_edited(ledger: Ledger) -> None:
    responder = Script(lambda model, text, call: f"model {model} says {text}")
    talk = Talk(ledger, responder, dimensions=[Dimension(name="kind", rated=3), Dimension(name="true")])
    shown = talk.say("one")
    side, other = _side_of(shown, 1), _side_of(shown, 0)
    ratings = {"kind": SideRating(**{side: 3, other: 1}), "true": SideRating(better=side)}  # type: ignore[arg-type]
    after = talk.choose(side, edit="as I want it", comment="too long", ratings=ratings)
    assert after["turns"][-1] == {"role": "assistant", "content": "as I want it"}
    talk.say("two")
    assert responder.asked[-1][1][1] == {"role": "assistant", "content": "as I want it"}
    talk.choose("left")
    first, second = talk.rows()
    assert first["chosen"][0]["content"] == "as I want it" and first["rejected"][0]["content"] == shown[other]
    assert [turn["content"] for turn in second["prompt"]] == ["one", "as I want it", "two"]
    (label, *_) = [event.body for event in ledger.events() if event.kind == "label"]
    place = "first" if label["verdict"] == "first" else "second"
    opposite = {"first": "second", "second": "first"}[place]
    assert label["comment"] == "too long" and label["ratings"] == {
        "kind": {place: 3, opposite: 1},
        "true": {"better": place},
    }
    assert talk.conversations.undo("ada") and talk.conversations.undo("ada")
    assert talk.choose(side)["turns"][-1]["content"] == shown[side]  # the edit went with the choice


def test_a_dropped_choice_makes_no_row_and_another_takes_its_place(ledger: Ledger) -> None:
    talk = Talk(ledger, labels=1)
    talk.say("one")
    assert talk.choose("left")["progress"]["done"] == 1
    queue = LabelQueue(Batch(Dialogues().take(ledger.events()).items(), total=1), ledger)
    assert queue.progress()["done"] == 1
    queue.drop(queue.batch.items[0].id, "nonsense", by="lin")
    assert queue.progress()["done"] == 0 and talk.shown()["progress"]["done"] == 0 and talk.rows() == []
    talk.say("two")
    talk.choose("left")
    dialogues = Dialogues().take(ledger.events())
    dropped = State().take(ledger.events()).dropped
    assert sum(of for _, of in dialogues.preferred().values()) == 4
    assert sum(of for _, of in dialogues.preferred(dropped).values()) == 2


def test_equal_answers_are_told_and_not_compared(ledger: Ledger) -> None:
    talk = Talk(ledger, Script(lambda model, text, call: "the same" + " " * model))
    shown = talk.say("one")
    assert (shown["phase"], shown["note"], shown["left"]) == ("say", "equal", "")
    assert shown["turns"][-1] == {"role": "assistant", "content": "the same"}
    assert shown["progress"]["done"] == 0 and Dialogues().take(ledger.events()).items() == []


UNFIT: dict[str, tuple[Callable[[int, str, int], str | None], str, str]] = {
    "one names itself": (lambda model, text, call: "I am ChatGPT" if model else "hello", "unfit", "hello"),
    "one says nothing": (lambda model, text, call: "" if model == 0 else "hello", "unfit", "hello"),
    "both name themselves": (lambda model, text, call: f"As an AI language model {model}", "unfit", "As an AI"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_answer_that_cannot_be_compared_is_sampled_again_and_then_left_out(ledger: Ledger, case: str) -> None:
    rule, note, said = UNFIT[case]
    responder = Script(rule)
    shown = Talk(ledger, responder).say("one")
    assert (shown["phase"], shown["note"], shown["item"]) == ("say", note, "")
    assert shown["turns"][-1]["content"].startswith(said)
    tries = [model for model, *_ in responder.asked]
    assert max(tries.count(0), tries.count(1)) == TRIES
    assert len({(model, row) for model, _, row, _ in responder.asked}) == len(tries)  # other random numbers each time


def test_an_answer_that_names_no_model_any_more_is_compared(ledger: Ledger) -> None:
    responder = Script(lambda model, text, call: f"I am GPT-4 {call}" if call < 2 else f"fine {call}")
    shown = Talk(ledger, responder).say("one")
    assert shown["phase"] == "choose" and shown["left"].startswith("fine")


def test_what_ends_a_dialogue_is_told_and_the_next_one_begins(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    def rule(model: int, text: str, call: int) -> str | None:
        if text == "break":
            raise RuntimeError("out of memory")
        return None if text == "long" else "" if text == "silent" else f"{model}"

    talk = Talk(ledger, Script(rule), turns=2)
    for text, over in (("long", "context"), ("silent", "silent"), ("break", "failed")):
        talk.say("fine")
        talk.choose("left")
        shown = talk.say(text)
        assert (shown["phase"], shown["over"]) == ("over", over) and shown["turns"][-1]["content"] == text
    assert "out of memory" in caplog.text
    talk.say("one")
    talk.choose("left")
    talk.say("two")
    shown = talk.choose("right")
    assert (shown["phase"], shown["over"], shown["left_messages"]) == ("over", "turns", 0)
    with pytest.raises(PipelineError, match="does not wait for a message"):
        talk.conversations.say("ada", "three")
    assert len(talk.rows()) == 5


def test_what_waits_at_once_is_answered_together(ledger: Ledger) -> None:
    responder = Script(lambda model, text, call: f"{model}, call {call}")
    talk = Talk(ledger, responder)
    for who in ("ada", "grace", "mary"):
        talk.conversations.open(who)
        talk.conversations.say(who, f"I am {who}")
    talk.answer()
    said = [{talk.shown(who)["left"], talk.shown(who)["right"]} for who in ("ada", "grace", "mary")]
    assert said == [{"0, call 0", "1, call 1"}] * 3  # each model once, for all three


def test_one_broken_message_breaks_nobody_elses(ledger: Ledger) -> None:
    def rule(model: int, text: str, call: int) -> str:
        if text == "break":
            raise RuntimeError
        return f"{model}"

    talk = Talk(ledger, Script(rule))
    for who, text in (("ada", "break"), ("grace", "fine")):
        talk.conversations.open(who)
        talk.conversations.say(who, text)
    talk.answer()
    assert talk.shown("ada")["over"] == "failed" and talk.shown("grace")["phase"] == "choose"


def test_requests_that_are_sent_again_count_once(ledger: Ledger) -> None:
    talk = Talk(ledger)
    for _ in range(2):
        talk.conversations.open("ada", "a")
    for _ in range(2):
        talk.conversations.say("ada", "one", "b")
    talk.answer()
    choice = Choice("left", request="c")
    item = talk.shown()["item"]
    for _ in range(2):
        talk.conversations.choose("ada", item, choice, "either")
    for _ in range(2):
        assert talk.conversations.undo("ada", "d")
    kinds = [event.kind for event in ledger.events()]
    assert [kinds.count(kind) for kind in ("open", "say", "answers", "label", "undo")] == [1] * 5


def test_what_waits_is_answered_by_the_next_server_and_once(ledger: Ledger) -> None:
    """The server that took the message was killed; then two servers answer it at the same time."""
    Talk(ledger).conversations.open("ada")
    Talk(ledger).conversations.say("ada", "one")
    servers = [Talk(ledger), Talk(ledger)]
    asked = [server.conversations.asked() for server in servers]
    for server, own in zip(servers, asked, strict=True):
        answer_all(server.conversations, server.responder, own)
    assert [event.kind for event in ledger.events()].count("answers") == 1
    running = Answering(servers[0].conversations, NAMED)
    running.start()
    running.stop()
    assert servers[1].shown()["phase"] == "choose"


def test_a_ledger_that_is_out_of_reach_for_a_moment_stops_no_answers(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.preferences.live.answering.PAUSE_S", 0.01)
    talk = Talk(ledger)
    talk.conversations.open("ada")
    talk.conversations.say("ada", "one")
    broken = Ledger(ledger.url, "batch")
    reads = iter([OSError("disk"), OSError("disk")])

    def events(*args: Any, **more: Any) -> Any:
        if (error := next(reads, None)) is not None:
            raise error
        return ledger.events(*args, **more)

    monkeypatch.setattr(broken, "events", events)
    running = Answering(Conversations(broken, talk.conversations.rules), NAMED)
    running.start()
    while talk.shown()["phase"] == "answering":
        running.wake()
    running.stop()
    assert talk.shown()["phase"] == "choose" and caplog.text.count("asked for again") == 2
    broken.close()


def test_answers_to_what_was_left_are_dropped(ledger: Ledger) -> None:
    talk = Talk(ledger)
    talk.conversations.open("ada")
    talk.conversations.say("ada", "one")
    asked = talk.conversations.asked()
    talk.conversations.open("ada")
    answer_all(talk.conversations, NAMED, asked)
    assert talk.shown()["turns"] == [] and "answers" not in [event.kind for event in ledger.events()]


def test_openings_are_offered_in_turn_and_their_first_turns_are_said(ledger: Ledger) -> None:
    openings: list[list[Turn]] = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        [{"role": "user", "content": "Goodbye?"}],
    ]
    talk = Talk(ledger, openings=openings)
    talk.conversations.open("ada")
    assert talk.shown()["offered"] == "Hello?" and talk.shown()["turns"][0]["content"] == "Be brief."
    talk.conversations.open("grace")
    assert talk.shown("grace")["offered"] == "Goodbye?" and talk.shown("grace")["turns"] == []
    talk.say("Something else")
    talk.choose("left")
    assert [turn["role"] for turn in talk.rows()[0]["prompt"]] == ["system", "user"]


def test_a_finished_batch_takes_no_more_and_a_choice_can_still_be_taken_back(ledger: Ledger) -> None:
    talk = Talk(ledger, labels=1)
    talk.say("one")
    talk.choose("left")
    for act in (lambda: talk.conversations.say("ada", "two"), lambda: talk.conversations.open("ada")):
        with pytest.raises(PipelineError, match="no more labels are needed"):
            act()
    assert talk.conversations.undo("ada") and talk.choose("right")["progress"]["done"] == 1


REFUSED: dict[str, Callable[[Talk], object]] = {
    "1 to 8000": lambda talk: talk.conversations.say("ada", " "),
    "has 8,001 characters": lambda talk: talk.conversations.say("ada", "x" * 8001),
    "does not wait for a message": lambda talk: talk.conversations.say("ada", "x"),
    "do not wait for a choice": lambda talk: talk.conversations.choose("ada", "0" * 16, Choice("left"), "either"),
    "does not wait for a choice": lambda talk: talk.conversations.choose("eve", "0" * 16, Choice("left"), "either"),
    "two new answers are asked for": lambda talk: talk.conversations.choose("ada", "0" * 16, Choice("tie"), "again"),
    "no dimension is called 'kind'": lambda talk: talk.choose("left", ratings={"kind": SideRating(left=1)}),
    "an edited answer and the choice 'tie'": lambda talk: talk.choose("tie", edit="mine"),
    "is empty or one of the two": lambda talk: talk.choose("left", edit=talk.shown()["right"]),
    "do not wait for a choice. Reload": lambda talk: talk.conversations.leave("skip", "ada", "0" * 16),
    "the batch was closed": lambda talk: (LabelQueue(Batch(()), talk.ledger).close(), talk.leave("flag")),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_is_refused(ledger: Ledger, told: str) -> None:
    talk = Talk(ledger)
    talk.say("one")
    with pytest.raises(PipelineError, match=told):
        REFUSED[told](talk)


def test_sides_and_models_are_drawn_by_the_secret_and_nothing_that_is_sent_names_them(ledger: Ledger) -> None:
    talk = Talk(ledger, models=["sft", "dpo", "ppo"])
    sides, pairs, sent = [], [], []
    for turn in range(60):
        shown = talk.say(f"message {turn % 8}")
        sent.append(shown)
        models = tuple(int(shown[side][6]) for side in ("left", "right"))
        sides.append(models[0] < models[1])
        pairs.append(frozenset(models))
        sent.append(talk.choose("tie"))
    assert 15 < sum(sides) < 45
    assert all(10 < pairs.count(frozenset(pair)) < 30 for pair in ((0, 1), (0, 2), (1, 2)))
    assert len({shown["item"] for shown in sent if shown["item"]}) == 60
    wire = json.dumps([{**shown, "left": "", "right": "", "turns": []} for shown in sent])
    events = ledger.events()
    secrets = {
        SALT,
        "sft",
        "dpo",
        "ppo",
        *(str(event.body.get(key)) for event in events for key in ("item", "dialogue")),
    }
    assert not [secret for secret in secrets - {"None"} if secret in wire]
    # The two answers of a message reach the ledger, and so the page, in one event.
    assert all(len(event.body["texts"]) == 2 for event in events if event.kind == "answers")
    # The same fields are sent whichever side has which model.
    assert len({frozenset(shown) for shown in sent}) == 1


def test_no_reply_tells_an_attacker_on_which_side_a_model_is(ledger: Ledger) -> None:
    """Whoever knows the rules but not the secret guesses from ids, lengths, order, numbers and what was said before."""
    texts = Random(0)
    talk = Talk(ledger, Script(lambda model, text, call: f"model {model} says {texts.random()}"), labels=1000)
    answering, guesses, sides = set(), [], []
    before = ""
    for number in range(200):
        if talk.shown()["phase"] in ("none", "over"):
            talk.conversations.open("ada")
        talk.conversations.say("ada", f"message {number % 10}")
        waits = talk.shown()
        answering.add((waits["phase"], waits["item"], waits["left"], waits["right"], waits["note"], frozenset(waits)))
        talk.answer()
        shown = talk.shown()
        is_first_left = shown["left"][6] == "0"
        reply = json.dumps(shown)
        guesses.append(
            {
                "parity of the id": int(shown["item"], 16) % 2 == 0,
                "size of the id": int(shown["item"], 16) < 2**63,
                "length of the reply": len(reply) % 2 == 0,
                "order of the texts": shown["left"][16:] < shown["right"][16:],
                "number of the message": number % 2 == 0,
                "messages left": shown["left_messages"] % 2 == 0,
                "side of before": bool(sides) and sides[-1],
                "id of before": shown["item"] > before,
            }
        )
        sides.append(is_first_left)
        before = shown["item"]
        act = number % 4
        if act == 0:
            after = talk.leave("skip")
            goes_on_left = after["turns"][-1]["content"] == shown["left"]
            guesses[-1]["what a skip goes on with"] = goes_on_left
        elif act == 1:
            after = talk.leave("flag", "", "", "broken")
            guesses[-1]["side after a flag"] = after["left"][6] == "0"
            talk.choose("left")
        else:
            talk.choose("right" if act == 2 else "tie")
    assert answering == {("answering", "", "", "", "", frozenset(talk.shown()))}  # nothing while they answer
    for name in {name for guess in guesses for name in guess}:
        hits = [guess[name] == side for guess, side in zip(guesses, sides, strict=True) if name in guess]
        # 4 standard deviations of a coin: 0.14 of 200 guesses, 0.28 of 50.
        assert abs(sum(hits) / len(hits) - 0.5) < 4 * 0.5 / len(hits) ** 0.5, name


def test_another_batch_has_other_sides(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", name)
        ledger.append(lambda known, name=name: ("batch", {"salt": name * 8}))
        talk = Talk(ledger)
        told.append([talk.say(f"{turn}")["left"][6] + talk.choose("tie")["phase"] for turn in range(8)])
        ledger.close()
    assert told[0] != told[1]


def test_models_get_the_dialogue_and_random_numbers_of_their_own(ledger: Ledger) -> None:
    responder = Script(lambda model, text, call: f"model {model} says {text}")
    talk = Talk(ledger, responder)
    shown = talk.say("one")
    talk.choose(_side_of(shown, 1))
    talk.say("two")
    by_model = {model: turns for model, turns, _, _ in responder.asked}
    assert (
        by_model[0]
        == by_model[1]
        == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "model 1 says one"},
            {"role": "user", "content": "two"},
        ]
    )
    seeds = {model: seed for model, _, _, seed in responder.asked}
    assert seeds[0] != seeds[1]


def test_choices_between_checkpoints_of_before_count_and_are_told(ledger: Ledger) -> None:
    talk = Talk(ledger, models=["sft " + "a" * 12, "dpo " + "b" * 12])
    for side in ("left", "right"):
        talk.say("one")
        talk.choose(side)
    sources = [SimpleNamespace(ref=ref, fingerprint=letter * 64) for ref, letter in (("sft", "a"), ("dpo", "c"))]
    notes: list[str] = []
    context = cast(Any, SimpleNamespace(inputs={"models": sources}, note=notes.append))
    shares = _preferred(context, {}, ledger.events(), ())
    assert shares.keys() == {"preferred/sft " + "a" * 12, "preferred/dpo " + "b" * 12} and sum(shares.values()) == 1
    assert notes == [
        f"people also talked with dpo {'b' * 12}, which the recipe does not name now: these choices count too"
    ]


def test_labels_that_are_no_choice_of_a_dialogue_change_none(ledger: Ledger) -> None:
    """Of an import, of another person, of pairs that share the batch: the ledger keeps them, and everything goes on."""
    talk = Talk(ledger)
    shown = talk.say("one")
    item = next(event.body["item"] for event in ledger.events() if event.kind == "answers")
    ledger.extend([("label", {"item": item, "annotator": "grace", "verdict": "first", "strength": 1})])
    ledger.extend([("label", {"item": "a pair", "annotator": "ada", "verdict": "first", "strength": 1})])
    assert talk.shown()["phase"] == "choose" and talk.shown()["progress"]["done"] == 1
    assert talk.conversations.undo("ada") is False  # the label of a pair is no choice that could be taken back here
    assert talk.choose("left")["phase"] == "say" and shown["item"]
