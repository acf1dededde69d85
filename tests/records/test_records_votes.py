"""Two answers and a vote: read as the vote says, in the schemas people use, and never as the first is better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.conversion import shaped
from pipeline.records.shapes.detection import detected_format
from pipeline.stage import Shape

Write = Callable[..., Path]
ASK = {"role": "user", "content": "Q?"}


def detect(rows: list[dict[str, Any]], *shapes: Shape) -> str | None:
    """Return the name of the format that rows are taken for."""
    detected = detected_format(rows, shapes)
    return detected.format if detected else None


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


AB = {"prompt": "Q?", "response_a": "A", "response_b": "B"}
TWO = {"instruction": "Q?", "input": "", "response1": "A", "response2": "B"}
LLMBAR = {"input": "Q?", "output_1": "A", "output_2": "B"}
PKU = {"prompt": "Q?", "response_0": "A", "response_1": "B", "is_response_0_safe": True, "is_response_1_safe": False}
SHP = {"history": "Q?", "human_ref_A": "A", "human_ref_B": "B"}
ARENA = {"conversation_a": [ASK, said("A")], "conversation_b": [ASK, said("B")]}
HELPSTEER3 = {"context": [ASK], "response1": "A", "response2": "B"}
ARGILLA = {"fields": {"prompt": "Q?", "response-1": "A", "response-2": "B"}}


def argilla(*values: str) -> dict[str, Any]:
    return {**ARGILLA, "responses": {"preference": [{"value": value, "user_id": "u"} for value in values]}}


FIRST = [
    *({**AB, "winner": word} for word in ("a", "A", "model_a", "response_a", "[[A]]", "first", "A>B", "A>>B", "A")),
    {**AB, "winner": "gpt-x", "model_a": "gpt-x", "model_b": "other"},
    {**AB, "winner_model": "GPT-x", "response_a_model": "gpt-x", "response_b_model": "other"},
    {"prompt": "Q?", "response_left": "A", "response_right": "B", "winner": "left"},
    {"prompt": "Q?", "answer_x": "A", "answer_y": "B", "winner": "answer_x"},
    {**AB, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    {**AB, "score_a": 0.5, "score_b": -0.5},
    {**AB, "response_a_score": "9", "response_b_score": "7"},
    {**AB, "label": 0.5, "score_a": 2, "score_b": 1},
    {**AB, "first_is_better": True},
    {**AB, "better_index": 0},
    {**AB, "preference_strength": -1},
    {**TWO, "preference": 1},
    {**TWO, "annotator1": 1, "annotator2": 2, "annotator3": 1},
    {**LLMBAR, "label": 1},
    {**LLMBAR, "label": "1"},
    {**PKU, "better_response_id": 0, "safer_response_id": 1},
    {**SHP, "labels": 1, "score_A": 52, "score_B": 8},
    {**HELPSTEER3, "overall_preference": -3},
    {"question": {"full_text": "Q?"}, "answer_0": "A", "answer_1": "B", "score_0": 1.0, "score_1": -1.0},
    {**ARENA, "winner": "model_a"},
    argilla("response-1"),
    argilla("response-1", "response-2", "response-1"),
    {"info": {"post": "Q?"}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 0},
    {"prompt": "Q?", "responses": ["C", "A", "B"], "ranks": [2, 1, 3]},
    {"prompt": "Q?", "generations": ["C", "A", "B"], "rating": [3, 5, 1]},
    {
        "instruction": "Q?",
        "completions": [{"response": "B", "overall_score": 1}, {"response": "A", "overall_score": 9}],
    },
    {"prompt": "Q?", "answers": [{"answer": "A", "rank": 1}, {"answer": "C", "rank": 2}, {"answer": "B", "rank": 7}]},
    {"prompt": "Q?", "ranked": ["A", "C", "B"]},
    {**AB, "prompt": '["Q?"]', "response_a": '["A"]', "response_b": '["B"]', "winner": "a"},
]
PAIR = {"prompt": [ASK], "chosen": [said("A")], "rejected": [said("B")], "margin": None}
OTHER = {**PAIR, "chosen": [said("B")], "rejected": [said("A")]}
SECOND = [
    {**AB, "winner": "n", "model_a": "m", "model_b": "n"},
    {"prompt": "Q?", "response_first": "A", "response_second": "B", "winner": "second"},
    *({**AB, "winner": word} for word in ("b", "model_b", "response_b", "[[B]]", "second", "B>A", "B")),
    {**AB, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    {**AB, "score_a": 0.5, "score_b": 0.75},
    {**AB, "first_is_better": "false"},
    {**AB, "better_index": 1},
    {**TWO, "preference": 2},
    {**TWO, "annotator1": 1, "annotator2": 2, "annotator3": 2},
    {**LLMBAR, "label": 2},
    {**PKU, "better_response_id": 1, "safer_response_id": 0},
    {**SHP, "labels": 0, "score_A": 5, "score_B": 8},
    {**HELPSTEER3, "overall_preference": 2},
    {**ARENA, "winner": "model_b"},
    argilla("response-2"),
    {"info": {"post": "Q?"}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 1},
    {"prompt": "Q?", "responses": ["B", "A"], "ranks": [1, 2]},
    {"prompt": "Q?", "ranked": ["B", "A"]},
]


@pytest.mark.parametrize(("row", "pair"), [*((row, PAIR) for row in FIRST), *((row, OTHER) for row in SECOND)])
def test_the_vote_decides(row: dict[str, Any], pair: dict[str, Any]) -> None:
    assert detect([row], "preference") == "comparison"
    made = shaped(row, "comparison", "preference")
    assert {key: made[key] for key in pair} == pair
    assert shaped(row, "comparison", "prompt")["prompt"] == [ASK]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        *(({**AB, "winner": word}, "is a tie (`winner` ") for word in ("tie", "tie (bothbad)", "both bad", "C", "A=B")),
        ({**AB, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, "is a tie"),
        ({**AB, "score_a": 1, "score_b": 1.0}, "is a tie (`score_a` 1 and `score_b` 1.0)"),
        ({**TWO, "annotator1": 1, "annotator2": 2, "annotator3": 0}, "is a tie"),
        ({**HELPSTEER3, "overall_preference": 0}, "is a tie"),
        ({"prompt": "Q?", "responses": ["A", "B"], "scores": [1, 1]}, "is a tie (`scores` is 1 for all)"),
        ({**AB, "winner": "who knows"}, "`winner` is 'who knows'; expected a or b, the name of an answer, or tie"),
        ({**AB, "winner": None}, "`winner` is missing"),
        ({**LLMBAR, "label": 3}, "`label` is 3"),
        ({**AB, "score_a": None, "score_b": 1}, "`score_a` is missing; expected a number"),
        ({"prompt": "Q?", "responses": ["A", "B"], "ranks": [1]}, "`ranks` is a list; expected 2 numbers"),
        ({**AB, "winner": "a", "response_b": "A"}, "`chosen` and `rejected` are the same"),
    ],
)
def test_a_tie_or_no_vote_is_a_bad_row_but_a_good_prompt(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        shaped(row, "comparison", "preference")
    assert str(caught.value).startswith(reason)
    if "tie" in reason:
        assert shaped(row, "comparison", "prompt")["prompt"] == [ASK]


def loaded(rows: list[dict[str, Any]], jsonl: Write, shape: Shape = "preference", **fields: Any) -> LoadedRows:
    return load(DataSource(path=[str(jsonl(*rows))], **fields), shape, seed=0, name="d")


def mended(rows: list[dict[str, Any]], jsonl: Write, **fields: Any) -> LoadedRows:
    """Load rows as the remedies of the messages say, one after another, the first of several."""
    for _ in range(3):
        try:
            return loaded(rows, jsonl, **fields)
        except PipelineError as error:
            remedy = str(error).partition("columns: ")[2]
            fields = {**fields, "columns": yaml.safe_load(remedy[: remedy.index("}") + 1]) if remedy else {}}
    raise AssertionError("three remedies did not do")


@pytest.mark.parametrize("votes", [[0, 1], [1, 1], [True, False], [0]])
@pytest.mark.parametrize("base", [AB, TWO])
def test_numbers_that_could_mean_either_are_refused(jsonl: Write, base: dict[str, Any], votes: list[Any]) -> None:
    if base is TWO and votes == [1, 1]:
        pytest.skip("1 beside answers 1 and 2 is the first")
    with pytest.raises(PipelineError, match=r"expected a vote whose numbers say which answer they mean. Say it by its"):
        loaded([{**base, "label": vote} for vote in votes], jsonl)


def test_the_names_that_say_what_a_number_means_work(jsonl: Write) -> None:
    rows = [{**AB, "label": 1}, {**AB, "label": 0}]
    by_first = loaded(rows, jsonl, columns={"label": "first_is_better"}).train
    by_index = loaded(rows, jsonl, columns={"label": "better_index"}).train
    assert [row["chosen"][0]["content"] for row in by_first] == ["A", "B"]
    assert [row["chosen"][0]["content"] for row in by_index] == ["B", "A"]
    assert mended(rows, jsonl).train == by_first
    signed = [{**AB, "label": -1}, {**AB, "label": 2}]
    assert [row["chosen"][0]["content"] for row in mended(signed, jsonl).train] == ["A", "B"]


HIDDEN = [
    (
        [{**LLMBAR, "label": 1}, {**LLMBAR, "label": 2}],
        {"input": "prompt", "output_1": "chosen", "output_2": "rejected"},
    ),
    (
        [{**TWO, "annotator1": 1}, {**TWO, "annotator1": 2}],
        {"instruction": "prompt", "response1": "chosen", "response2": "rejected"},
    ),
    (
        [
            {"q": "Q?", "gpt": "A", "claude": "B", "is_first": True},
            {"q": "Q?", "gpt": "A", "claude": "B", "is_first": False},
        ],
        {"q": "prompt", "gpt": "chosen", "claude": "rejected"},
    ),
    (
        [{"q": "Q?", "x": "A", "y": "B", "winner": "a"}, {"q": "Q?", "x": "A", "y": "B", "winner": "b"}],
        {"q": "prompt", "x": "chosen", "y": "rejected"},
    ),
]


@pytest.mark.parametrize(("rows", "columns"), HIDDEN)
def test_renaming_never_hides_a_vote_and_the_remedy_reads_it(
    jsonl: Write, rows: list[dict[str, Any]], columns: dict[str, str]
) -> None:
    with pytest.raises(PipelineError, match=r"the better answer in every row, and `.*` says which"):
        loaded(rows, jsonl, columns=columns)
    if "is_first" in rows[0]:
        said_so = {"q": "prompt", "gpt": "response_a", "claude": "response_b", "is_first": "first_is_better"}
        got = loaded(rows, jsonl, columns=said_so)
    else:
        got = mended(rows, jsonl, columns=columns)
    assert [row["chosen"][0]["content"] for row in got.train] == ["A", "B"]
    vote = next(name for name in ("label", "annotator1", "is_first", "winner") if name in rows[0])
    with_note = loaded(rows, jsonl, columns={**columns, vote: "note"})  # "if it is no vote, rename it too"
    assert [row["chosen"][0]["content"] for row in with_note.train] == ["A", "A"] and with_note.unused[-1:]


def test_renaming_two_columns_without_a_vote_is_as_before(jsonl: Write) -> None:
    rows = [
        {"q": "Q?", "good": "A", "bad": "B", "label": 1, "lang": "en"},
        {"q": "Q?", "good": "A", "bad": "B", "label": 1},
    ]
    got = loaded(rows, jsonl, columns={"q": "prompt", "good": "chosen", "bad": "rejected"})
    assert len(got.train) == 2 and got.unused == ("label", "lang")


def test_ties_are_counted_and_kept_with_their_reason(jsonl: Write, tmp_path: Path) -> None:
    path, kept = jsonl({**AB, "winner": "tie"}, {**AB, "winner": "b"}), tmp_path / "rejects.jsonl"
    source = DataSource(path=[str(path)], on_bad_row="skip")
    got = load(source, "preference", seed=0, name="d", rejects=kept)
    assert (len(got.train), got.rejected) == (1, 1)
    assert json.loads(kept.read_text())["reason"] == "is a tie (`winner` 'tie'); expected one answer that is better"


NAMED = {"q": "prompt", "x1": "chosen", "x2": "rejected"}


@pytest.mark.parametrize(
    "votes",
    [
        [{"human_vote": "a"}, {"human_vote": "b"}],
        [{"winner_model": "m", "model_a": "m", "model_b": "n"}, {"winner_model": "n", "model_a": "m", "model_b": "n"}],
        [{"votes_a": 3, "votes_b": 1}, {"votes_a": 1, "votes_b": 3}],
        [{"x1_score": 0.5, "x2_score": 0.1}, {"x1_score": 0.1, "x2_score": 0.5}],
    ],
)
def test_a_vote_under_a_name_that_is_not_known_is_noticed(votes: list[dict[str, Any]], jsonl: Write) -> None:
    rows = [{"q": "Q?", "x1": "A", "x2": "B", **vote} for vote in votes]
    with pytest.raises(PipelineError, match=f"the better answer in every row, and `{next(iter(votes[0]))}` says which"):
        loaded(rows, jsonl, columns=NAMED)
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl, columns=NAMED).train] == ["A", "B"]


def test_a_vote_by_the_names_of_renamed_answers_is_one_for_what_they_became(jsonl: Write) -> None:
    rows = [{"q": "Q?", "x1": "A", "x2": "B", "pref": side} for side in ("x1", "X2")]
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl, columns=NAMED).train] == ["A", "B"]


@pytest.mark.parametrize(
    "beside",
    [
        {"preference_reason": ["it is longer", "it is right"]},
        {"x1_score": [3, 2], "x2_score": [1, 1]},
        {"is_english": [True, False]},
        {"level": ["1", "2"]},
    ],
)
def test_what_does_not_vote_against_the_first_is_no_vote(beside: dict[str, list[Any]], jsonl: Write) -> None:
    rows = [{"q": "Q?", "x1": "A", "x2": "B", **{name: values[at] for name, values in beside.items()}} for at in (0, 1)]
    if "is_english" in beside:  # true and false could be a vote: the remedy says what to do if it is none
        assert len(loaded(rows, jsonl, columns={**NAMED, "is_english": "note"}).train) == 2
        return
    assert len(loaded(rows, jsonl, columns=NAMED).train) == 2


def test_two_answers_beside_an_unknown_vote_are_refused_with_the_renaming_that_works(jsonl: Write) -> None:
    rows = [{**AB, "human_vote": "a"}, {**AB, "human_vote": "b"}]
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl).train] == ["A", "B"]


UNKNOWN = [
    *(({"response_a": "A", "response_b": "B"}, "is_a_better", votes) for votes in ([True, False], [1, 0])),
    ({"response_a": "A", "response_b": "B"}, "prefers_second", [False, True]),
    ({"response_a": "A", "response_b": "B"}, "gold_label", ["a", "b"]),
    ({"response_a": "A", "response_b": "B"}, "annotation", [1, 2]),
    ({"response_a": "A", "response_b": "B"}, "human", ["model_a", "model_b"]),
    ({"answer_a": "A", "answer_b": "B"}, "human_judgement", [["A", "wins"][0], "b"]),
    ({"Response A": "A", "Response B": "B"}, "Gold Label", ["a", "b"]),
    ({"left": "A", "right": "B"}, "winner", ["left", "right"]),
    ({"response": "A", "response_2": "B"}, "winner", ["response", "response_2"]),
    ({"response": "A", "response_2": "B"}, "better", [1, 2]),
    ({"first_response": "A", "second_response": "B"}, "winner", ["first_response", "second_response"]),
    ({"model_1_response": "A", "model_2_response": "B"}, "preferred", [1, 2]),
    ({"option_a": "A", "option_b": "B"}, "winner", ["a", "option_b"]),
    ({"a": "A", "b": "B"}, "winner", ["a", "b"]),
    ({"gpt4": "A", "claude": "B"}, "winner", ["gpt4", "Claude"]),
]


@pytest.mark.parametrize(("answers", "vote", "votes"), UNKNOWN)
def test_answers_and_votes_under_other_names_are_refused_with_the_renaming_that_reads_them(
    answers: dict[str, str], vote: str, votes: list[Any], jsonl: Write
) -> None:
    rows = [{"prompt": "Q?", **answers, vote: one} for one in votes]
    with pytest.raises(PipelineError, match=r"[Ss]et `columns: \{"):
        loaded(rows, jsonl)
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl).train] == ["A", "B"]
    assert [row["rejected"][0]["content"] for row in mended(rows, jsonl).train] == ["B", "A"]


@pytest.mark.parametrize("vote", ["y", "human_vote"])
def test_an_unknown_vote_of_0_and_1_is_refused_with_the_two_meanings(vote: str, jsonl: Write) -> None:
    rows = [{"prompt": "Q?", "left": "A", "right": "B", vote: one} for one in (1, 0)]
    with pytest.raises(
        PipelineError, match=f"`{vote}` is 0, 1 beside `left` and `right`; expected a vote whose"
    ) as caught:
        loaded(rows, jsonl)
    got = []
    for remedy in str(caught.value).split("columns: ")[1:3]:
        columns = yaml.safe_load(remedy[: remedy.index("}") + 1])
        got.append([row["chosen"][0]["content"] for row in loaded(rows, jsonl, columns=columns).train])
    assert got == [["A", "B"], ["B", "A"]]


@pytest.mark.parametrize("vote", ["winner", "winner_model", "human_preference"])
def test_a_vote_for_a_model_that_no_column_names_asks_for_the_columns_that_do(vote: str, jsonl: Write) -> None:
    rows = [{**AB, vote: "gpt-4"}, {**AB, vote: "claude-3"}]
    with pytest.raises(PipelineError) as caught:
        loaded(rows, jsonl)
    assert f"`{vote}` is gpt-4, claude-3 beside `response_a` and `response_b`; expected a vote that " in str(
        caught.value
    )
    assert "Add columns `model_a` and `model_b` that say whose answer each is, or write" in str(caught.value)
    told = [{**row, "model_a": "claude-3", "model_b": "gpt-4"} for row in rows]  # the remedy
    assert [row["chosen"][0]["content"] for row in loaded(told, jsonl).train] == ["B", "A"]
    same = [{**row, "model_a": "gpt-4", "model_b": "gpt-4"} for row in rows[:1]]
    with pytest.raises(PipelineError, match="expected a vote that names one of the answers"):
        loaded(same, jsonl)


def test_two_answers_without_a_vote_are_refused_by_name(jsonl: Write) -> None:
    rows = [{"prompt": "Q?", "answer_a": "A", "answer_b": "B"}] * 2
    with pytest.raises(PipelineError, match="`answer_a` and `answer_b` are two answers, and no column says which is"):
        loaded(rows, jsonl)
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl).train] == ["A", "A"]  # "if it is always better"


@pytest.mark.parametrize(
    "further", [{"response_c": "C"}, {"response_c": "C", "response_d": "D"}, {"Response C": ["C"]}, {"response3": "C"}]
)
def test_a_third_answer_is_never_left_out_in_silence(further: dict[str, Any], jsonl: Write) -> None:
    row = {**(TWO if "response3" in further else AB), "winner": 1, **further}
    row |= {} if "response3" in further else {"winner": "a"}
    named = ", ".join(f"`{name}`" for name in further)
    with pytest.raises(PipelineError, match=f"{named} would not reach the model; expected two answers"):
        loaded([row], jsonl)
    assert mended([row], jsonl).train[0]["chosen"] == [said("A")]
    assert loaded([{**row, **dict.fromkeys(further)}], jsonl).train[0]["chosen"] == [said("A")]  # there is none


CR = {"prompt": "Q?", "chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    ("vote", "says"),
    [
        ({"winner": "rejected"}, "is for `rejected`"),
        ({"better": "rejected_response"}, "is for `rejected`"),
        ({"winner": "B"}, "is for `rejected`"),
        ({"winner": "Draw"}, "says tie"),
        ({"winner_model": "m", "chosen_model": "n", "rejected_model": "m"}, "is for `rejected`"),
        ({"response_a": "A", "response_b": "B", "winner": "b"}, "is for `rejected`"),
        ({"response_a": "B", "response_b": "A", "winner": "model_a"}, "is for `rejected`"),
        ({"response_1": "A", "response_2": "B", "rating_1": 2, "rating_2": 5}, "is for `rejected`"),
    ],
)
def test_a_vote_against_the_order_of_a_pair_is_a_bad_row(vote: dict[str, Any], says: str, jsonl: Write) -> None:
    with pytest.raises(PipelineError) as caught:
        loaded([{**CR, **vote}, CR], jsonl)
    assert "rows.jsonl:1: row `" in str(caught.value) and f"{says}; expected one for `chosen`" in str(caught.value)
    kept = mended([{**CR, **vote}, CR], jsonl)
    assert [row["chosen"][0]["content"] for row in kept.train] == ["A", "A"]  # "if it is no vote on the two"
    assert loaded([{**CR, **vote}], jsonl, "prompt").train[0]["prompt"] == [ASK]


@pytest.mark.parametrize(
    "vote",
    [
        {"winner": "chosen"},
        {"winner": "A"},
        {"winner_model": "n", "chosen_model": "n", "rejected_model": "m"},
        {"response_a": "B", "response_b": "A", "winner": "b"},
        {"response_1": "A", "response_2": "B", "rating_1": 5, "rating_2": 2},
        {"score_chosen": 2, "score_rejected": 2},
        {"gold_chosen": 1, "gold_rejected": 2},
        {"margin": 0},
        {"preferred_output": None},
    ],
)
def test_a_vote_for_the_order_of_a_pair_needs_no_word(vote: dict[str, Any], jsonl: Write) -> None:
    got = loaded([{**CR, **vote}], jsonl)
    assert got.train[0]["chosen"] == [said("A")] and got.notes == ()


def test_a_pair_as_openai_writes_it_is_no_vote(jsonl: Write) -> None:
    row = {"input": {"messages": [ASK]}, "preferred_output": [said("A")], "non_preferred_output": [said("B")]}
    assert loaded([row], jsonl).notes == ()


def test_a_vote_that_cannot_be_understood_beside_a_pair_is_said(jsonl: Write) -> None:
    got = loaded([{**CR, "winner": "gpt-4"}, {**CR, "winner": "claude"}], jsonl)
    assert got.notes == ("the vote `winner` is not read; `chosen` is taken as the better answer",)


@pytest.mark.parametrize(
    ("first", "second"), [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")]
)
def test_points_against_the_order_are_counted_and_refused_where_most_are(first: str, second: str, jsonl: Write) -> None:
    good, bad = {**CR, first: 2, second: 1}, {**CR, first: "1", second: "1.5"}
    got = loaded([good, good, bad, CR], jsonl)
    assert got.notes == (f"`{second}` is above `{first}` in 1 of 3 rows; `chosen` is taken as the better answer",)
    with pytest.raises(
        PipelineError, match=f"`{second}` is above `{first}` in 2 of 3 rows; expected `chosen` to be"
    ) as caught:
        loaded([good, bad, bad], jsonl)
    turned, as_they_are = (
        loaded([good, bad, bad], jsonl, columns=yaml.safe_load(one[: one.index("}") + 1]))
        for one in str(caught.value).split("columns: ")[1:]
    )
    assert [row["chosen"][0]["content"] for row in turned.train] == ["B"] * 3
    assert [row["chosen"][0]["content"] for row in as_they_are.train] == ["A"] * 3


def test_a_margin_below_0_is_said(jsonl: Write) -> None:
    rows = [{**CR, "margin": -1}, {**CR, "margin": 1}]
    assert loaded(rows, jsonl).notes == ("`margin` is below 0 in 1 of 2 rows; `chosen` is taken as the better answer",)
    with pytest.raises(
        PipelineError, match=r"`margin` is below 0 in 1 of 1 row; expected 0 or more. Set `columns: {mar"
    ):
        loaded(rows[:1], jsonl)
    assert mended(rows[:1], jsonl).train[0]["margin"] is None
