"""Labels leave for other tools and come back: what is written is what they take, and what returns is what was said."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.anchors import default_url
from pipeline.preferences.exchange.export import FORMATS, LABEL_STUDIO_CONFIG, Labels, split_rows
from pipeline.preferences.exchange.files import content_of
from pipeline.preferences.exchange.importing import Matcher, events_of
from pipeline.preferences.exchange.ranking_rows import LABEL_STUDIO_RANKER
from pipeline.preferences.exchange.reading import pair_format, said_in
from pipeline.preferences.exchange.texts import readable, transcript
from pipeline.preferences.items import Item, items_of
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.recipe import DataSource, load
from pipeline.records import load as load_rows
from pipeline.records.files.reader import read_rows

TOOLS = Path(__file__).with_name("exchange")
"""Files as Argilla and Label Studio write them."""


def _turns(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def _rows(count: int = 6) -> list[dict[str, Any]]:
    """Prompts of one and of three turns, with line breaks, quotes, commas and letters beyond ASCII."""
    rows = []
    for n in range(count):
        prompt = _turns("user", f'What is "{n}", déjà vu,\nor {n} + {n}?')
        if n % 2:
            prompt = [*_turns("user", "Hello"), *_turns("assistant", "Yes?"), *prompt]
        rows.append(
            {
                "prompt": prompt,
                "chosen": _turns("assistant", f"It is,\n\n{2 * n}."),
                "rejected": _turns("assistant", f"It's {2 * n + 1}"),
            }
        )
    return rows


ITEMS, _ = items_of(_rows())
SAID = [
    (0, "ada", "first", 3),
    (0, "grace", "first", 1),
    (0, "mary", "second", 2),
    (1, "ada", "second", 2),
    (2, "ada", "tie", 1),
    (3, "ada", "both bad", 1),
    (4, "ada", "both good", 1),
]


def _ledger(folder: Path, items: list[Item] = ITEMS) -> Ledger:
    """A ledger with labels, a skip and a flag."""
    ledger = Ledger(default_url(folder / "store"), "labels")
    ledger.extend([("batch", {"salt": "5" * 32})])
    ledger.extend(
        (
            "label",
            {
                "item": items[n].id,
                "annotator": who,
                "verdict": verdict,
                "strength": strength,
                "seconds": 2.5,
                "swapped": n == 1,
                "guidelines": "0123456789ab",
            },
        )
        for n, who, verdict, strength in SAID
    )
    ledger.extend([("skip", {"item": items[5].id, "annotator": "ada", "reason": "too long"})])
    ledger.extend([("flag", {"item": items[5].id, "annotator": "grace", "reason": "rude"})])
    return ledger


def _labels(folder: Path, **how: Any) -> Labels:
    events = _ledger(folder).events()
    return Labels(ITEMS, State().take(events), {event.number: event.at for event in events}, **how)


def _written(labels: Labels, row_format: str, folder: Path) -> Path:
    suffix = {"csv": "csv", "parquet": "parquet", "argilla": "json", "label-studio": "json"}.get(row_format, "jsonl")
    file = folder / f"labels.{suffix}"
    file.write_bytes(content_of([one.row for one in FORMATS[row_format](labels)[0]], row_format))
    return file


def _answers(state: State) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {
        (who, item): (one.kind, one.verdict, one.strength if one.verdict in ("first", "second") else None)
        for who, own in state.answers.items()
        for item, one in own.items()
    }


def _read_back(file: Path, folder: Path, person: str = "") -> tuple[State, dict[str, int]]:
    """Import a file into an empty ledger."""
    rows = [row.value for row in read_rows(file)]
    assert rows[0] is not None
    counts: Any = Counter()
    said = list(said_in(rows, pair_format(rows[0]), counts))
    ledger = Ledger(f"sqlite:///{folder / 'other.db'}", "other")
    made = events_of(said, Matcher(ITEMS), State(), file.name, person)
    ledger.extend(made.events)
    return State().take(ledger.events()), dict(counts + made.counts)


@pytest.mark.parametrize("row_format", ["raw", "csv", "parquet"])
def test_raw_rows_come_back_as_they_were(tmp_path: Path, row_format: str) -> None:
    labels = _labels(tmp_path)
    state, counts = _read_back(_written(labels, row_format, tmp_path), tmp_path)
    assert counts == {} and _answers(state) == _answers(labels.state)
    for who, own in labels.state.answers.items():
        for item, answer in own.items():
            back = state.answers[who][item]
            expected = answer._replace(number=back.number)
            if answer.kind == "label" and answer.verdict not in ("first", "second"):
                expected = expected._replace(strength=1)
            assert back == expected


@pytest.mark.parametrize("row_format", ["raw", "csv", "parquet"])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_comments_edits_ratings_and_flags_come_back(tmp_path: Path, row_format: str, is_mirrored: bool) -> None:
    ledger = Ledger(default_url(tmp_path / "store"), "labels")
    ledger.extend([("batch", {"salt": "5" * 32})])
    ratings: Any = {"helpful": {"first": 4, "second": 2, "rationale": "clear"}, "honest": {"better": "first"}}
    said: Any = {
        "verdict": "first",
        "strength": 2,
        "seconds": 1.5,
        "swapped": True,
        "comment": 'a, "b"',
        "edit": "It is.",
    }
    ledger.extend([("label", {"item": ITEMS[0].id, "annotator": "ada", **said, "ratings": ratings})])
    ledger.extend([("flag", {"item": ITEMS[1].id, "annotator": "ada", "reason": "a name", "flag": "personal data"})])
    labels = Labels(ITEMS, State().take(ledger.events()), {})
    file = _written(labels, row_format, tmp_path)
    first, _ = FORMATS["raw"](labels)[0]
    assert first.row["ratings"]["honest"] == {"better": "response_a"} and first.row["comment"] == 'a, "b"'
    rows = (
        [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in _rows()] if is_mirrored else _rows()
    )
    items, _ = items_of(rows)
    counts: Any = Counter()
    read = [row.value for row in read_rows(file)]
    made = events_of(said_in(read, pair_format(read[0] or {}), counts), Matcher(items), State(), file.name, "")
    assert not counts and not made.counts
    label, flag = (body for _, body in made.events)
    assert flag["flag"] == "personal data" and flag["reason"] == "a name"
    assert label["edit"] == "It is." and label["comment"] == 'a, "b"'
    assert label["verdict"] == ("second" if is_mirrored else "first")
    assert label["swapped"] is (not is_mirrored)
    mirrored = {"helpful": {"second": 4, "first": 2, "rationale": "clear"}, "honest": {"better": "second"}}
    assert label["ratings"] == (mirrored if is_mirrored else ratings)
    good, bad = FORMATS["unpaired"](labels)[0]
    assert (
        [turn["content"] for turn in good.row["completion"]] == ["It is."]
        and good.row["label"]
        and not bad.row["label"]
    )


def test_ratings_that_no_export_writes_are_rows_that_cannot_be_read() -> None:
    row = {"prompt": "a", "response_a": "b", "response_b": "c", "verdict": "response_a", "person": "ada"}
    for wrong in ({"ratings": {"helpful": {"response_a": "good"}}}, {"ratings": "{"}, {"flag": "ugly"}):
        counts: Any = Counter()
        assert not list(said_in([{**row, **wrong}], "raw", counts)) and counts == {"row that cannot be read": 1}


@pytest.mark.parametrize("column", ["prompt", "person", "comment", "edit"])
def test_half_a_surrogate_pair_is_a_row_that_cannot_be_read(column: str) -> None:
    """JSON can escape it, and no ledger can hash it."""
    row = {"prompt": "a", "response_a": "b", "response_b": "c", "verdict": "response_a", "person": "ada"}
    counts: Any = Counter()
    rows = [{**row, column: "\ud83d"}, row]
    assert len(list(said_in(rows, "raw", counts))) == 1 and counts == {"row that cannot be read": 1}


@pytest.mark.parametrize("row_format", ["argilla", "label-studio"])
def test_records_and_tasks_come_back_without_skips_and_flags(tmp_path: Path, row_format: str) -> None:
    labels = _labels(tmp_path)
    without = FORMATS[row_format](labels)[1]
    assert without == {"skip": 1, "flag": 1}
    state, counts = _read_back(_written(labels, row_format, tmp_path), tmp_path)
    given = {key: one for key, one in _answers(labels.state).items() if one[0] == "label"}
    assert counts == {} and _answers(state) == given


def _hard_rows() -> list[dict[str, Any]]:
    """Pairs that texts alone do not tell apart, and texts that formats have a hard time with."""
    first, second = _turns("assistant", "p"), _turns("assistant", "q")
    plan = [*_turns("assistant", "step 1"), *_turns("user", "go on"), *_turns("assistant", "step 2")]
    other = [*_turns("assistant", "stop"), *_turns("user", "why?"), *_turns("assistant", "because")]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    texts = ("م‫שלום", "a\rb\r\nc", "Human: who?\n\nAssistant: me", "👩‍👩‍👧", "n\0ul", "=1+1", "- item", '"a",b;c\t')
    return [
        {"prompt": _turns("user", "m"), "chosen": first, "rejected": second},
        {"prompt": _turns("user", "m"), "chosen": second, "rejected": first},
        {"prompt": _turns("user", " m"), "chosen": _turns("assistant", "p "), "rejected": second},
        {"prompt": [*_turns("system", "S"), *_turns("user", "x")], "chosen": first, "rejected": second},
        {"prompt": _turns("user", "S\n\nx"), "chosen": first, "rejected": second},
        {"prompt": _turns("user", "plan"), "chosen": plan, "rejected": other},
        {"prompt": _turns("user", '[{"role": "user", "content": "i"}]'), "chosen": first, "rejected": second},
        {
            "prompt": [*_turns("user", "w?"), {"role": "assistant", "content": "", "tool_calls": [call]}],
            "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
            "rejected": second,
        },
        *({"prompt": _turns("user", t), "chosen": _turns("assistant", t), "rejected": second} for t in texts),
    ]


@pytest.mark.parametrize("row_format", ["raw", "csv", "parquet", "argilla", "label-studio"])
def test_labels_of_pairs_of_equal_texts_come_back_to_their_own_pair(tmp_path: Path, row_format: str) -> None:
    items, left_out = items_of(_hard_rows())
    assert left_out == 0
    verdicts = ("first", "second", "tie", "both good", "both bad")
    state = State()
    for number, item in enumerate(items):
        said: Any = {"verdict": verdicts[number % 5], "strength": 1 + number % 3, "swapped": number % 2 == 0}
        state._take("label", {"item": item.id, "annotator": "ada", **said}, number)
    file = _written(Labels(items, state, {}), row_format, tmp_path)
    counts: Any = Counter()
    read = [row.value for row in read_rows(file)]
    made = events_of(said_in(read, pair_format(read[0] or {}), counts), Matcher(items), State(), file.name, "")
    assert not counts and not made.counts
    back = State()
    for number, (kind, body) in enumerate(made.events):
        back._take(kind, body, number)
    assert _answers(back) == _answers(state)


def test_tools_are_in_the_rows_that_have_a_place_for_them(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    items, _ = items_of([{**_rows(1)[0], "tools": [tool]}])
    state = State()
    state._take("label", {"item": items[0].id, "annotator": "ada", "verdict": "first"}, 1)
    labels = Labels(items, state, {})
    for row_format in ("preference", "unpaired", "raw"):
        assert FORMATS[row_format](labels)[0][0].row["tools"] == [tool]
    assert json.loads(FORMATS["csv"](labels)[0][0].row["tools"]) == [tool]
    assert FORMATS["hh"](labels) == ([], {"not a transcript": 1})
    for row_format in ("argilla", "label-studio"):
        assert FORMATS[row_format](labels)[1] == {"label of a pair whose tools have no place there": 1}
    for row_format, shape in (("raw", "preference"), ("csv", "preference"), ("unpaired", "labelled")):
        file = _written(labels, row_format, tmp_path)
        source = DataSource(path=str(file))
        source._files = (file,)
        assert load_rows(source, shape, seed=0, name="labels").train[0]["tools"] == [tool]


def test_of_pairs_of_equal_texts_one_in_the_order_of_the_row_is_meant() -> None:
    items, _ = items_of(_hard_rows()[:2])
    row = {"prompt": "m", "response_a": "q", "response_b": "p", "person": "ada", "verdict": "a"}
    made = events_of(said_in([row], "raw", Counter()), Matcher(items), State(), "x", "")
    ((_, body),) = made.events
    assert (body["item"], body["verdict"]) == (items[1].id, "first")


@pytest.mark.parametrize("is_exchanged", [False, True])
@pytest.mark.parametrize("form", [readable, list])
def test_responses_of_several_turns_are_known_in_either_order(form: Any, is_exchanged: bool) -> None:
    """Without an id, in the form of Label Studio or as turns."""
    items, _ = items_of(_hard_rows()[5:6])
    first, second = map(form, items[0].responses[::-1] if is_exchanged else items[0].responses)
    row = {"prompt": "plan", "response_a": first, "response_b": second, "person": "ada", "verdict": "a"}
    ((_, body),) = events_of(said_in([row], "raw", Counter()), Matcher(items), State(), "x", "").events
    assert body["verdict"] == ("second" if is_exchanged else "first")


@pytest.mark.parametrize("row_format", ["preference", "hh"])
def test_pairs_come_back_as_labels_of_whoever_is_named(tmp_path: Path, row_format: str) -> None:
    file = _written(_labels(tmp_path), row_format, tmp_path)
    state, counts = _read_back(file, tmp_path, "their crowd")
    assert counts == {} and _answers(state) == {
        # The majority of item 0 preferred the first at a mean strength of 2, with a lead of 1 of 3: a margin of 2/3.
        ("their crowd", ITEMS[0].id): ("label", "first", 1),
        ("their crowd", ITEMS[1].id): ("label", "second", 2 if row_format == "preference" else 1),
    }


def test_raw_rows_say_all_that_is_known(tmp_path: Path) -> None:
    rows, _ = FORMATS["raw"](_labels(tmp_path))
    assert len(rows) == 9
    said = rows[3].row
    assert said == {
        "item": ITEMS[1].id,
        "prompt": list(ITEMS[1].prompt),
        "response_a": list(ITEMS[1].responses[0]),
        "response_b": list(ITEMS[1].responses[1]),
        "person": "ada",
        "kind": "label",
        "verdict": "response_b",
        "strength": 2,
        "seconds": 2.5,
        "left": "response_b",
        "guidelines": "0123456789ab",
        "propensity": None,
        "event": 5,
        "time": said["time"],
        "reason": None,
        "comment": None,
        "edit": None,
        "ratings": None,
        "flag": None,
        "tools": None,
    }
    skipped = rows[-2].row
    assert (skipped["kind"], skipped["verdict"], skipped["left"], skipped["reason"]) == ("skip", None, None, "too long")


def test_pseudonyms_hide_names_and_stay_the_same(tmp_path: Path) -> None:
    labels = _labels(tmp_path, pseudonyms=True)
    for row_format in ("raw", "argilla", "label-studio", "csv"):
        text = _written(labels, row_format, tmp_path).read_text(encoding="utf-8")
        assert not re.search(r"\b(ada|grace|mary)\b", text)
    people = [one.row["person"] for one in FORMATS["raw"](labels)[0]]
    assert len(set(people)) == 3 and people == [one.row["person"] for one in FORMATS["raw"](labels)[0]]
    assert all(name.startswith("person-") for name in people)


def test_unpaired_rows_follow_the_decision_of_each_pair(tmp_path: Path) -> None:
    rows, without = FORMATS["unpaired"](_labels(tmp_path))
    told = {(one.row["prompt"][-1]["content"], one.row["completion"][0]["content"]): one.row["label"] for one in rows}
    expected = {}
    for place, labels in {0: (True, False), 1: (False, True), 3: (False, False), 4: (True, True)}.items():
        for response, label in zip(ITEMS[place].responses, labels, strict=True):
            expected[ITEMS[place].prompt[-1]["content"], response[0]["content"]] = label
    assert told == expected and without == {"tie": 1, "flagged": 1}


def test_an_answer_of_several_pairs_makes_one_row() -> None:
    answers = [_turns("assistant", text) for text in ("good", "fair", "poor")]
    pairs = [
        {"prompt": _turns("user", "q"), "chosen": answers[a], "rejected": answers[b]}
        for a, b in ((0, 1), (1, 2), (0, 2))
    ]
    items, _ = items_of(pairs)
    state = State()
    for item in items:
        state._take("label", {"item": item.id, "annotator": "ada", "verdict": "first"}, 1)
    rows, without = FORMATS["unpaired"](Labels(items, state, {}))
    told = {one.row["completion"][0]["content"]: one.row["label"] for one in rows}
    assert told == {"good": True, "poor": False}  # "fair" won once and lost once
    assert without == {"answer with as many for as against": 1}


def test_ties_are_pairs_of_margin_0_when_asked(tmp_path: Path) -> None:
    without_ties, counts = FORMATS["preference"](_labels(tmp_path))
    assert [one.row["margin"] for one in without_ties] == pytest.approx([2 / 3, 2.0])
    assert counts == {"tie": 1, "both bad": 1, "both good": 1, "flagged": 1}
    with_ties, counts = FORMATS["preference"](_labels(tmp_path / "again", ties=True))
    assert [one.row["margin"] for one in with_ties] == pytest.approx([2 / 3, 2, 0, 0, 0]) and counts == {"flagged": 1}
    assert with_ties[2].row["chosen"] == list(ITEMS[2].responses[0])


def test_what_has_no_transcript_is_counted() -> None:
    assert transcript(_turns("user", "Hi")) == "\n\nHuman: Hi"
    assert transcript([*_turns("user", "Hi"), *_turns("assistant", "Yes")]) == "\n\nHuman: Hi\n\nAssistant: Yes"
    assert transcript(_turns("system", "Be brief")) is None
    assert transcript(_turns("user", "a\n\nAssistant: forged")) is None
    rows = [
        {
            "prompt": _turns("user", "q\n\nHuman: p"),
            "chosen": _turns("assistant", "a"),
            "rejected": _turns("assistant", "b"),
        }
    ]
    items, _ = items_of(rows)
    state = State()
    state._take("label", {"item": items[0].id, "annotator": "ada", "verdict": "first"}, 1)
    assert FORMATS["hh"](Labels(items, state, {})) == ([], {"not a transcript": 1})


@pytest.mark.parametrize(
    ("row_format", "shape"),
    [("preference", "preference"), ("unpaired", "labelled"), ("hh", "preference")],
)
def test_data_sources_read_what_was_written(tmp_path: Path, row_format: str, shape: Any) -> None:
    labels = _labels(tmp_path)
    file = _written(labels, row_format, tmp_path)
    source = DataSource(path=str(file))
    source._files = (file,)
    rows = load_rows(source, shape, seed=0, name="labels")
    written = FORMATS[row_format](labels)[0]
    assert rows.shape == shape and len(rows.train) == len(written) and rows.unused == ()
    if row_format != "hh":
        assert [row["prompt"] for row in rows.train] == [one.row["prompt"] for one in written]
    else:
        assert [row["prompt"] for row in rows.train] == [list(one.prompt) for one in written]


def test_the_split_is_the_one_that_data_sources_make(tmp_path: Path) -> None:
    items, _ = items_of(
        {
            "prompt": _turns("user", f"question {n // 3}"),
            "chosen": _turns("assistant", f"a{n}"),
            "rejected": _turns("assistant", "b"),
        }
        for n in range(90)
    )
    state = State()
    for item in items:
        state._take("label", {"item": item.id, "annotator": "ada", "verdict": "first"}, 1)
    rows, _ = FORMATS["preference"](Labels(items, state, {}))
    train, held_out = split_rows(rows, 0.2)
    assert len(train) + len(held_out) == 90 and 0 < len(held_out) < 45
    prompts = [{row["prompt"][0]["content"] for row in side} for side in (train, held_out)]
    assert not prompts[0] & prompts[1]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content_of([one.row for one in rows], "preference"))
    source = DataSource(path=str(file), held_out=0.2)
    source._files = (file,)
    loaded = load_rows(source, "preference", seed=0, name="pairs")
    assert [row["chosen"] for row in loaded.train] == [row["chosen"] for row in train]
    assert [row["chosen"] for row in loaded.held_out] == [row["chosen"] for row in held_out]


def test_files_of_argilla_and_label_studio_are_read(tmp_path: Path) -> None:
    """The files are as their documentation and their code write them; see the comments of each."""
    items, _ = items_of(
        {
            "prompt": _turns("user", f"What is {n} + {n}?"),
            "chosen": _turns("assistant", f"It is {2 * n}."),
            "rejected": _turns("assistant", f"It is {2 * n + 1}."),
        }
        for n in (1, 2)
    )
    said: dict[str, list[tuple[Any, ...]]] = {}
    for file in ("argilla.json", "label_studio.json"):
        rows = [row.value for row in read_rows(TOOLS / file)]
        assert rows[0] is not None
        counts: Any = Counter()
        read = list(said_in(rows, pair_format(rows[0]), counts))
        made = events_of(read, Matcher(items), State(), file, "somebody")
        place = {item.id: n for n, item in enumerate(items, 1)}
        said[file] = [
            (place[body["item"]], body["annotator"], body["verdict"], body["strength"], body["seconds"])
            for _, body in made.events
        ]
        assert dict(counts + made.counts) == ({} if file == "argilla.json" else {"row without a verdict": 1})
    assert said["argilla.json"] == [
        (1, "argilla-17e1b8d2", "first", 1, None),
        (1, "argilla-a3f0c2b4", "tie", 1, None),
        (2, "argilla-17e1b8d2", "second", 1, None),
    ]
    assert said["label_studio.json"] == [
        (1, "ada@example.org", "first", 1, 12.5),
        (1, "label-studio-7", "second", 1, 3.25),
        (2, "label-studio-7", "first", 1, 8.0),
    ]


@pytest.fixture
def labelled(people: Path) -> Path:
    """The recipe of six pairs, with labels of two people."""
    source = load(people).data["answers"]
    items, _ = items_of(load_rows(source, "preference", seed=0, name="answers").train)
    ledger = Ledger(default_url(people.parent / "store"), "labels")
    ledger.extend([("batch", {"salt": "5" * 32})])
    for n, item in enumerate(items):
        for who in ("ada", "grace"):
            verdict = "tie" if n == 5 else "first"
            body = {
                "item": item.id,
                "annotator": who,
                "verdict": verdict,
                "strength": 1,
                "seconds": 1.0,
                "swapped": False,
            }
            ledger.extend([("label", body)])
    assert len(Batch(items).ids) == 6
    return people


def test_an_export_is_imported_once(labelled: Path, call: Any) -> None:
    """Every format that names people: the second import changes nothing, nor does one into the ledger it came from."""
    folder = labelled.parent
    recipe = (labelled, "labels", "--store", "store")
    for row_format, suffix in (("raw", "jsonl"), ("csv", "csv"), ("parquet", "parquet"), ("argilla", "json")):
        file = f"out-{row_format}.{suffix}"
        told = call("labels", "export", *recipe, "--format", row_format, "--out", file, cwd=folder)
        assert told.returncode == 0, told.stderr
        same = call("labels", "import", *recipe, file, cwd=folder)
        assert same.stdout.strip() == "0 labels imported; 12 labels that are there already", same.stdout + same.stderr
        other = (*recipe, "--ledger", f"sqlite:///{row_format}.db", file)
        assert "12 labels of 2 people imported" in call("labels", "import", *other, cwd=folder).stdout
        assert "12 labels that are there already" in call("labels", "import", *other, cwd=folder).stdout
        status = call("labels", "status", *other[:-1], cwd=folder).stdout
        assert "ada (imported): 6 labels" in status


def test_what_is_not_imported_is_said(labelled: Path, call: Any) -> None:
    folder = labelled.parent
    recipe = (labelled, "labels", "--store", "store")
    pair = {"prompt": "What is 1 plus 1?", "chosen": "wrong-1: 3", "rejected": "right-1:  2", "margin": 2}
    stranger = {"prompt": "Who?", "chosen": "a", "rejected": "b"}
    rows = [
        pair,
        pair,
        stranger,
        {**pair, "chosen": "right-1: 2", "rejected": "wrong-1: 3"},
        {"prompt": "x", "chosen": ""},
    ]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    nobody = call("labels", "import", *recipe, "theirs.jsonl", cwd=folder)
    assert nobody.returncode == 2 and "labels name no person" in nobody.stderr and "--as NAME" in nobody.stderr
    told = call("labels", "import", *recipe, "theirs.jsonl", "--as", "them", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == (
        "1 label of 1 person imported; 1 label of no pair of this batch; "
        "1 label that differs from the one there, which stays; 1 label that is there already; "
        "2 rows that cannot be read"
    )
    export = call("labels", "export", *recipe, "--format", "raw", cwd=folder)
    (said,) = (row for row in map(json.loads, export.stdout.splitlines()) if row["person"] == "them")
    assert (said["verdict"], said["strength"], said["left"], said["seconds"]) == ("response_b", 2, None, None)


def test_what_an_import_does_not_understand_is_said(labelled: Path, call: Any) -> None:
    """Words that are no verdict, columns that nobody reads, people whose names are nearly the same."""
    folder = labelled.parent
    recipe = (labelled, "labels", "--store", "store")
    pair = {"prompt": "What is 1 plus 1?", "response_a": "wrong-1: 3", "response_b": "right-1: 2"}  # data: right first
    verdicts = ("respons_a", "respons_a", "better: b", "", "both_bad", "Model B", "tie (bothbad)")
    people = ("x", "x", "x", "x", "Ada", "Lin Ada", "lin  ada")
    rows = [{**pair, "verdict": verdict, "person": who} for verdict, who in zip(verdicts, people, strict=True)]
    rows[4] |= {"confidence": 0.5}
    (folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = call("labels", "import", *recipe, "theirs.jsonl", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == (
        "3 labels of 3 people imported; 1 row with “better: b” for a verdict; 2 rows with “respons_a” for a "
        "verdict; 1 row without a verdict"
    )
    assert "confidence: this column is not read" in told.stderr
    assert "ada, Ada are 2 people, whose names differ in case or white space only" in told.stderr
    assert "Lin Ada, lin  ada are 2 people" in told.stderr
    raw = call("labels", "export", *recipe, "--format", "raw", cwd=folder)
    back = {row["person"]: row for row in map(json.loads, raw.stdout.splitlines())}
    assert [back[who]["verdict"] for who in people[4:]] == ["both bad", "response_a", "both bad"]
    (empty,) = said_in([{**rows[4], "comment": math.nan, "person": math.nan}], "raw", Counter())
    assert (empty.person, empty.details.comment) == ("", "")  # cells that pandas left empty


def test_a_response_that_argilla_has_as_a_draft_is_no_label() -> None:
    record = {"fields": {"prompt": "q", "response_a": "a", "response_b": "b"}, "metadata": {}}
    votes = [{"value": "response_a", "user_id": who, "status": who} for who in ("draft", "submitted", "discarded")]
    said = list(said_in([{**record, "responses": {"preference": votes}}], "argilla", Counter()))
    assert [one.person for one in said] == ["submitted"]


def test_responses_are_submitted_in_argilla(tmp_path: Path) -> None:
    """Without a status, `rg.Record.from_dict` of argilla 2.8 makes drafts of them."""
    rows, _ = FORMATS["argilla"](_labels(tmp_path))
    votes = [vote for one in rows for answers in one.row["responses"].values() for vote in answers]
    assert votes and all(vote["status"] == "submitted" for vote in votes)


def test_an_export_says_what_it_lacks_and_what_to_look_at(labelled: Path, call: Any) -> None:
    folder = labelled.parent
    recipe = (labelled, "labels", "--store", "store")
    ledger = Ledger(default_url(folder / "store"), "labels")
    first = next(event.body["item"] for event in ledger.events() if event.kind == "label")
    said: Any = {"item": first, "annotator": "mary", "verdict": "first", "comment": "=1+1, as ADA says"}
    ledger.extend([("label", said), ("label", {**said, "item": "0" * 16}), ("label", {**said, "item": "gold:x"})])
    told = call("labels", "export", *recipe, "--format", "csv", "--pseudonyms", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert "1 answer to pairs that the data do not have now is left out" in told.stderr
    assert "1 row has a text that names a person: --pseudonyms changes nothing that people wrote" in told.stderr
    assert "1 cell begins like a formula: a spreadsheet should import the columns as text" in told.stderr
    ledger.extend([("adjudicate", {"item": first, "annotator": "lead", "verdict": "second"})])
    ledger.extend([("drop", {"item": first, "reason": ""})])
    plain = call("labels", "export", *recipe, "--format", "raw", cwd=folder)
    assert "1 pair is decided by a lead, whose verdict is nobody's label: --format preference has it" in plain.stderr
    assert "1 pair with answers was dropped; these answers are rows too" in plain.stderr
    assert "names a person" not in plain.stderr and "formula" not in plain.stderr and "left out" in plain.stderr


def test_a_split_writes_two_files_that_a_recipe_takes(labelled: Path, call: Any) -> None:
    folder = labelled.parent
    recipe = (labelled, "labels", "--store", "store")
    told = call("labels", "export", *recipe, "--split", "0.3", "--out", "pairs.jsonl", cwd=folder)
    assert told.returncode == 0 and "5 preferences as of event 13" in told.stderr, told.stderr
    assert "of them held out in pairs.held-out.jsonl, 1 tie" in told.stderr
    train, held_out = ((folder / name).read_text().splitlines() for name in ("pairs.jsonl", "pairs.held-out.jsonl"))
    assert len(train) + len(held_out) == 5 and held_out


FORMATS_OF_PAIRS = {
    "preference": "jsonl",
    "hh": "jsonl",
    "raw": "jsonl",
    "csv": "csv",
    "parquet": "parquet",
    "argilla": "json",
}


def test_a_recipe_takes_the_pairs_of_every_format(labelled: Path, call: Any) -> None:
    """`trueup check` reads all rows; a tie in a file of single labels is a bad row, which the source skips."""
    folder = labelled.parent
    sources, stages = [], []
    for row_format, suffix in FORMATS_OF_PAIRS.items():
        file = f"{row_format}.{suffix}"
        told = call(
            "labels",
            "export",
            labelled,
            "labels",
            "--store",
            "store",
            "--format",
            row_format,
            "--out",
            file,
            cwd=folder,
        )
        assert told.returncode == 0, told.stderr
        sources.append(f"  {row_format}: {{path: {file}, on_bad_row: skip}}")
        stages.append(f"  of_{row_format}: {{kind: labels, data: {row_format}}}")
    (folder / "next.yaml").write_text("\n".join(["name: next", "data:", *sources, "stages:", *stages]) + "\n")
    checked = call("check", "next.yaml", cwd=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for row_format in FORMATS_OF_PAIRS:
        status = call("labels", "status", "next.yaml", f"of_{row_format}", cwd=folder).stdout
        assert "of 5 pairs" in status, (row_format, status)


WRONG = {
    "no such format": (("--format", "xml"), "--format xml; expected one of preference, unpaired, raw"),
    "a split of standard output": (("--split", "0.1"), "--split writes two files"),
    "Parquet on standard output": (("--format", "parquet"), "is not text that can be printed"),
    "ties of transcripts": (("--format", "hh", "--ties"), "has no margin that could be 0"),
    "ties of raw rows": (("--format", "raw", "--ties"), "has ties in any case"),
    "pseudonyms of nobody": (("--pseudonyms",), "names nobody"),
    "an aggregation of raw rows": (("--format", "raw", "--aggregate", "majority"), "every label for itself"),
    "no such aggregation": (("--aggregate", "mean"), "majority or dawid_skene"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_do_not_fit_are_one_line(labelled: Path, call: Any, case: str) -> None:
    options, told = WRONG[case]
    ended = call("labels", "export", labelled, "labels", "--store", "store", *options, cwd=labelled.parent)
    assert ended.returncode == 2 and told in ended.stderr, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_files_of_no_known_format_are_one_line(labelled: Path, call: Any) -> None:
    folder = labelled.parent
    (folder / "odd.jsonl").write_text('{"x": 1}\n')
    for files, told in ((("odd.jsonl",), "the first row has the columns x"), ((), "an import of 0 files")):
        ended = call("labels", "import", labelled, "labels", "--store", "store", *files, cwd=folder)
        assert ended.returncode == 2 and told in ended.stderr, ended.stderr


def test_the_interface_of_label_studio_is_the_one_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")
    ranker, shown = re.findall(r"^```xml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert shown.strip() == LABEL_STUDIO_CONFIG.strip() and ranker.strip() == LABEL_STUDIO_RANKER.strip()
    task = label_studio_task()
    names = set(re.findall(r'name="(\w+)"', shown))
    assert {one["from_name"] for one in task["annotations"][0]["result"]} <= names
    assert {name for one in task["annotations"][0]["result"] for name in one["to_name"].split(",")} <= names
    assert set(re.findall(r'value="\$(\w+)"', shown)) <= task["data"].keys()


def label_studio_task() -> dict[str, Any]:
    """One task with a preference."""
    state = State()
    state._take(
        "label", {"item": ITEMS[0].id, "annotator": "ada", "verdict": "second", "strength": 2, "seconds": 4.0}, 1
    )
    ((_, task),), _ = FORMATS["label-studio"](Labels(ITEMS, state, {}))
    return task


def test_half_of_a_rating_comes_back() -> None:
    row = {"prompt": "a", "response_a": "b", "response_b": "c", "verdict": "response_a", "person": "ada"}
    ratings = {"helpful": {"response_a": 3}, "honest": {"rationale": "hm"}}
    (said,) = said_in([{**row, "ratings": ratings}], "raw", Counter())
    assert said.details.ratings == {"helpful": {"first": 3}, "honest": {"rationale": "hm"}}


def test_labels_whose_comments_have_no_place_are_counted(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    said = {"item": ITEMS[3].id, "annotator": "joan", "verdict": "tie", "strength": 1, "comment": "x"}
    ledger.extend([("label", said)])
    labels = Labels(ITEMS, State().take(ledger.events()), {})
    for row_format in ("argilla", "label-studio"):
        assert FORMATS[row_format](labels)[1]["label whose comment, edit or ratings have no place there"] == 1
