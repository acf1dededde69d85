"""Which format is taken and why, what no one reads, and that every remedy a message about rows names works."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load
from pipeline.stage import Shape

Write = Callable[..., Path]
SHAPES = Path(__file__).parents[3] / "shared" / "faults" / "shapes"
TURNS = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]
HH = "\n\nHuman: Q?\n\nAssistant: "


def refused(path: Path, shape: Shape, **fields: Any) -> tuple[str, ...]:
    with pytest.raises(PipelineError) as caught:
        load(DataSource(path=[str(path)], **fields), shape, seed=0, name="d")
    return tuple(map(str, caught.value.problems))


def heeded(path: Path, shape: Shape, **fields: Any) -> LoadedRows:
    """Load a file, doing what the messages say one after another until it loads."""
    for _ in range(5):
        try:
            return load(DataSource(path=[str(path)], **fields), shape, seed=0, name="d")
        except PipelineError as error:
            said = str(error)
            columns = re.search(r"columns: (\{[^}]*\})", said)
            if "leave `columns` out" in said.casefold():
                fields["columns"] = {}
            elif columns is not None:
                fields["columns"] = yaml.safe_load(columns[1])
            elif "set `format: " in said.casefold():
                fields["format"] = re.split("`format: ", said)[1].partition("`")[0]
            elif "on_bad_row: skip" in said and "on_bad_row" not in fields:
                fields["on_bad_row"] = "skip"
            else:
                raise
    raise AssertionError("five remedies did not do")


def content(row: dict[str, Any], key: str, at: int = 0) -> str:
    return str(row[key][at]["content"])


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"question": "Q?", "answer": "A"}, "messages", {"messages": TURNS}),
        ({"problem": "Q?", "solution": "A", "level": 1}, "messages", {"messages": TURNS}),
        ({"input": "Q?", "output": "A"}, "messages", {"messages": TURNS}),
        ({"prompt": "Q?", "response": "A"}, "messages", {"messages": TURNS}),
        ({"conversation": TURNS}, "messages", {"messages": TURNS}),
        ({"conversation": [{"input": "Q?", "output": "A"}]}, "messages", {"messages": TURNS}),
        ({"data": ["Q?", "A"], "id": 1}, "messages", {"messages": TURNS}),
        (
            {"contents": [{"role": "user", "parts": [{"text": "Q?"}]}, {"role": "model", "parts": [{"text": "A"}]}]},
            "messages",
            {"messages": TURNS},
        ),
        (
            {"system_prompt": "S", "question": "Q?", "response": "A"},
            "messages",
            {"messages": [{"role": "system", "content": "S"}, *TURNS]},
        ),
        (
            {"instruction": "Q?", "context": "C", "response": "A"},
            "messages",
            {"messages": [{"role": "user", "content": "Q?\n\nC"}, TURNS[1]]},
        ),
        ({"question": "Q?", "chosen": "A", "rejected": "B"}, "preference", {"prompt": TURNS[:1], "chosen": TURNS[1:]}),
        ({"q": {"question": "Q?"}, "chosen": "A", "rejected": "B"}, "preference", {"prompt": TURNS[:1]}),
        ({"instruction": "Q?", "output": ["A", "B"]}, "preference", {"prompt": TURNS[:1], "chosen": TURNS[1:]}),
        ({"question": "Q?", "answer": "A"}, "prompt", {"prompt": TURNS[:1], "answer": "A"}),
        ({"prompt": {"text": "Q?", "replies": []}}, "prompt", {"prompt": TURNS[:1]}),
        ({"content": "T", "url": "u"}, "text", {"text": "T"}),
        ({"prompt": "Q?", "chosen": "A", "rejected": "B"}, "messages", {"messages": TURNS}),
        ({"Prompt": "Q?", "Completion": "A"}, "messages", {"messages": TURNS}),
        ({"PROMPT": "Q?", "Response": "A"}, "messages", {"messages": TURNS}),
        ({"Question": "Q?", "Answer": "A"}, "messages", {"messages": TURNS}),
        ({"User Prompt": "Q?", "assistantResponse": "A"}, "messages", {"messages": TURNS}),
        ({"Instruction": "Q?", "Input": "", "Output": "A"}, "messages", {"messages": TURNS}),
        ({"Messages": TURNS}, "messages", {"messages": TURNS}),
        (
            {"systemPrompt": "S", "Question": "Q?", "Response": "A"},
            "messages",
            {"messages": [{"role": "system", "content": "S"}, *TURNS]},
        ),
        ({"Prompt": "Q?", "Chosen": "A", "Rejected": "B"}, "preference", {"prompt": TURNS[:1], "chosen": TURNS[1:]}),
        ({"prompt": "Q?", "Chosen": "A", "Rejected": "B"}, "preference", {"prompt": TURNS[:1], "chosen": TURNS[1:]}),
        ({"Question": "Q?", "Good": "A", "Bad": "B"}, "preference", {"prompt": TURNS[:1], "chosen": TURNS[1:]}),
        ({"Prompt": "Q?", "responseA": "B", "responseB": "A", "Winner": "b"}, "preference", {"chosen": TURNS[1:]}),
        ({"Prompt": "Q?"}, "prompt", {"prompt": TURNS[:1]}),
        ({"Text": "T"}, "text", {"text": "T"}),
    ],
)
def test_the_columns_that_a_message_suggests_work(
    jsonl: Write, row: dict[str, Any], shape: Shape, expected: dict[str, Any]
) -> None:
    path = jsonl(row)
    refused(path, shape)
    got = heeded(path, shape).train[0]
    assert {key: got[key] for key in expected} == expected


@pytest.mark.parametrize("label", ["thumbs_up", "Is Good", "Label"])
def test_a_label_under_another_name_is_found_by_what_it_holds(jsonl: Write, label: str) -> None:
    for asked, answer in (("prompt", "completion"), ("Question", "Answer")):
        path = jsonl(*({asked: "Q?", answer: "A", label: is_good, "turn": 1} for is_good in (True, False)))
        refused(path, "labelled")
        assert [row["label"] for row in heeded(path, "labelled").train] == [True, False]


def test_a_reason_that_all_rows_share_is_said_once(jsonl: Write) -> None:
    path = jsonl(*[{"prompt": "Q?", "completion": "A"}] * 30)
    first, summary = refused(path, "labelled")
    assert "rows.jsonl:1: row `label` is missing; expected true or false" in first
    assert summary == "data d: all 30 rows are bad for this reason. Mend the data"
    more = refused(jsonl(*[{"prompt": "Q?", "completion": "A"}] * 2, {"prompt": "", "completion": "A"}), "labelled")
    assert len(more) == 4  # two reasons: each row with its own


ALPACA_PAIR = {"instruction": "Q?", "input": "C", "chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    ("row", "shape", "columns"),
    [
        (ALPACA_PAIR, "preference", {"instruction": "prompt"}),
        ({"question": "Q?", "context": "C", "answer": "A"}, "messages", {"question": "prompt", "answer": "completion"}),
        ({"prompt": "Q?", "context": "C", "completion": "A"}, "messages", {}),
        ({"q": "Q?", "input": "C", "a": "A"}, "messages", {"q": "prompt", "a": "completion"}),
        ({"prompt": "Q?", "input": "C", "chosen": "A", "rejected": "B"}, "preference", {}),
        ({"instruction": "Q?", "context": "C"}, "prompt", {}),
    ],
)
def test_a_part_of_the_prompt_is_never_lost(
    jsonl: Write, row: dict[str, Any], shape: Shape, columns: dict[str, str]
) -> None:
    path = jsonl(row, row)
    (said,) = refused(path, shape, columns=columns)
    lost = "input" if "input" in row else "context"
    assert f"data d: column `{lost}` would not reach the model. " in said
    made = heeded(path, shape, columns=columns).train[0]
    assert content(made, "messages" if shape == "messages" else "prompt") == "Q?\n\nC"
    note = yaml.safe_load(said.split("columns: ")[-1].rstrip("`"))  # or it is no part of the prompt
    kept = load(DataSource(path=[str(path)], columns=note), shape, seed=0, name="d")
    assert content(kept.train[0], "messages" if shape == "messages" else "prompt") == "Q?"
    assert kept.unused == (() if shape == "prompt" else ("note",))


def test_a_column_whose_text_stands_in_the_prompt_is_not_lost(jsonl: Write) -> None:
    row = {"prompt": "Read C. Q?", "context": "C", "completion": "A"}
    assert load(DataSource(path=[str(jsonl(row))]), "messages", seed=0, name="d").unused == ("context",)


@pytest.mark.parametrize(
    ("row", "shape", "unused"),
    [
        ({"messages": TURNS, "id": 1, "lang": "en", "score": None, "tags": []}, "messages", ("id", "lang")),
        (
            {"messages": [{**TURNS[0], "id": "u1"}, {**TURNS[1], "model": "m"}]},
            "messages",
            ("messages[].id", "messages[].model"),
        ),
        ({"messages": [{**TURNS[0], "model": None}, TURNS[1]]}, "messages", ()),
        ({"prompt": "Q?", "answer": "A"}, "prompt", ()),  # a reward function may read it
        ({"prompt": "Q?", "completion": "A", "label": True, "kto_tag": None}, "messages", ("label",)),
        ({"text": "T", "url": "u"}, "text", ("url",)),
    ],
)
def test_what_no_one_reads_is_named(jsonl: Write, row: dict[str, Any], shape: Shape, unused: tuple[str, ...]) -> None:
    assert load(DataSource(path=[str(jsonl(row))]), shape, seed=0, name="d").unused == unused


def test_pictures_beside_a_conversation_are_refused_by_name(jsonl: Write) -> None:
    (said,) = refused(jsonl({"messages": TURNS, "images": ["a.png"]}), "messages")
    assert "column `images` would not reach the model; expected text only" in said


def test_half_pairs_do_not_outvote_whole_ones(jsonl: Write) -> None:
    halves = [{"chosen": "A", "rejected": None}] * 5
    whole = {"chosen": HH + "A", "rejected": HH + "B"}
    got = load(
        DataSource(path=[str(jsonl(*halves, whole, {"prompt": "x"}))], on_bad_row="skip"),
        "preference",
        seed=0,
        name="d",
    )
    assert got.detected == "format hh: 1 of 7 rows has `chosen` and `rejected`; 1 of format prompt"
    assert (len(got.train), got.rejected) == (1, 6)
    (*_, said) = refused(jsonl(*[{**whole, "rejected": ""}] * 3), "preference")
    assert "3 of 3 rows are bad" in said


def test_the_format_named_by_a_recipe_is_said(jsonl: Write) -> None:
    got = load(DataSource(path=[str(jsonl({"text": "T"}))], format="text"), "prompt", seed=0, name="d")
    assert got.detected == "format text: the recipe names it"


def test_all_rows_are_looked_at(jsonl: Write) -> None:
    rows = [{"prompt": "x"}] * 150 + [{"messages": TURNS}] * 200
    got = load(DataSource(path=[str(jsonl(*rows))], on_bad_row="skip"), "messages", seed=0, name="d")
    assert got.detected == "format messages: 200 of 350 rows have `messages`; 150 of format prompt"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"role": "assistant"}, "`role` is assistant, so `text` is no prompt; expected a message of the user"),
        ({"role": "prompter", "parent_id": "p"}, "`parent_id` is set, so `text` is the middle of a conversation"),
    ],
)
def test_a_message_of_the_assistant_is_no_prompt(jsonl: Write, row: dict[str, Any], reason: str) -> None:
    good = {"text": "Q?", "role": "prompter", "parent_id": None}
    path = jsonl(good, {**good, **row})
    assert f"rows.jsonl:2: row {reason}" in refused(path, "prompt")[0]
    got = heeded(path, "prompt")
    assert ([content(one, "prompt") for one in got.train], got.rejected) == (["Q?"], 1)
    assert len(load(DataSource(path=[str(path)]), "text", seed=0, name="d").train) == 2  # raw text it is


def test_a_text_file_of_lines_is_no_prompt_and_the_command_makes_prompts(tmp_path: Path) -> None:
    (tmp_path / "asks.txt").write_text("Q?\n\nAnd?\n")
    (said,) = refused(tmp_path / "asks.txt", "prompt")
    assert "file is one document of several lines; expected prompts" in said
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    subprocess.run(["bash", "-c", said.split("`")[-2]], cwd=tmp_path, check=True)
    got = load(DataSource(path=[str(tmp_path / "asks.jsonl")]), "prompt", seed=0, name="d")
    assert [content(row, "prompt") for row in got.train] == ["Q?", "And?"]


NO_ANSWERS = {"content_col": "text", "prompts_lines": "text", "verl": "prompt", "oai_image": "", "sharegpt_double": ""}
PAIRS = (
    "alpaca_pref alpaca_pref_list arena argilla argilla_dpo helpsteer2p oai_pref orca_dpo pku ranked_list rlaif_ends "
)
PAIRS += "uf_raw ufb webgpt"


@pytest.mark.skipif(not SHAPES.is_dir(), reason="the public schemas are not here")
@pytest.mark.parametrize("path", sorted(SHAPES.glob("*")), ids=lambda path: path.stem)
def test_every_public_schema_is_read_or_its_remedy_works(path: Path, tmp_path: Path) -> None:
    """Row n asks "What is n plus n+1?": its right answer is in the file, and the wrong one says "Maybe"."""
    path = Path(shutil.copy(path, tmp_path))
    shape: Any = "preference" if path.stem in PAIRS.split() else NO_ANSWERS.get(path.stem, "messages")
    if not shape:
        first, all_of_them = refused(path, "messages")
        assert ":1: row `" in first and "data d: all 12 rows are bad for this reason. " in all_of_them
        return
    got = heeded(path, shape)
    if shape == "messages":
        assert all(row["messages"][-1]["role"] == "assistant" for row in got.train)
        assert any(turn["content"].startswith("What is 0 plus 1?") for turn in got.train[0]["messages"])
    assert len(got.train) + got.rejected == (12 if path.suffix == ".jsonl" else 1)
    assert len(got.train) >= 6 or path.suffix == ".txt"


def test_an_answer_of_another_type_is_a_bad_row(jsonl: Write) -> None:
    said = refused(jsonl({"prompt": "Q?", "rejected": 0}), "preference")[0]
    assert "row `chosen` is missing; expected text" in said
