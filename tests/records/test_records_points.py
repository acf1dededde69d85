"""Points, ranks and votes that stand beside two answers under other names: the better answer, or the words that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load

Write = Callable[..., Path]


def loaded(rows: list[dict[str, Any]], jsonl: Write, **fields: Any) -> LoadedRows:
    return load(DataSource(path=[str(jsonl(*rows))], **fields), "preference", seed=0, name="d")


def mended(rows: list[dict[str, Any]], jsonl: Write, columns: dict[str, str]) -> LoadedRows:
    """Load rows as the remedies of the messages say, one after another, the first of several."""
    for _ in range(2):
        try:
            return loaded(rows, jsonl, columns=columns)
        except PipelineError as error:
            remedy = str(error).partition("columns: ")[2]
            columns = yaml.safe_load(remedy[: remedy.index("}") + 1]) if remedy else {}
    return loaded(rows, jsonl, columns=columns)


POINTS_BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "score_response_a": (
        {"score_response_a": 4, "score_response_b": 1},
        {"score_response_a": 1, "score_response_b": 4},
    ),
    "a_rating": ({"a_rating": 4, "b_rating": 1}, {"a_rating": 1, "b_rating": 4}),
    "rank_a": ({"rank_a": 1, "rank_b": 2}, {"rank_a": 2, "rank_b": 1}),
    "votes_a": ({"votes_a": 2, "votes_b": 1}, {"votes_a": 1, "votes_b": 2}),
    "human_score_a": ({"human_score_a": "2", "human_score_b": "1"}, {"human_score_a": "1", "human_score_b": "2"}),
    "elo_rank_a": ({"elo_rank_a": 1, "elo_rank_b": 2}, {"elo_rank_a": 2, "elo_rank_b": 1}),
    "a_wins": ({"a_wins": 1, "b_wins": 0}, {"a_wins": 0, "b_wins": 1}),
    "helpfulness_a": ({"helpfulness_a": 3, "helpfulness_b": 0}, {"helpfulness_a": 1, "helpfulness_b": 2}),
    "likes.a": ({"likes": {"a": 2, "b": 1}}, {"likes": {"a": 1, "b": 2}}),
    "meta.winner": ({"meta": {"winner": "a"}}, {"meta": {"winner": "b"}}),
    "strength": ({"strength": -2}, {"strength": 1}),
    "correct": ({"correct": "A"}, {"correct": "B"}),
    "is_a_better": ({"is_a_better": True}, {"is_a_better": False}),
}


@pytest.mark.parametrize("judged", POINTS_BESIDE.values(), ids=POINTS_BESIDE)
@pytest.mark.parametrize("columns", [{}, {"response_a": "chosen", "response_b": "rejected"}], ids=["plain", "renamed"])
def test_every_way_to_judge_two_answers_gives_the_better_one_or_the_words_that_do(
    judged: tuple[dict[str, Any], dict[str, Any]], columns: dict[str, str], jsonl: Write
) -> None:
    rows = [{"prompt": "Q?", "response_a": "A", "response_b": "B", **one} for one in judged]
    if columns:
        with pytest.raises(PipelineError, match="`columns` makes `response_a` the better answer in every row, and `"):
            loaded(rows, jsonl, columns=columns)
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl, columns=columns).train] == ["A", "B"]


def test_points_that_are_equal_once_are_not_hidden_by_a_renaming(jsonl: Write) -> None:
    rows = [{"prompt": "Q?", "response_a": "A", "response_b": "B", "score_a": 2, "score_b": one} for one in (1, 2)]
    columns = {"response_a": "chosen", "response_b": "rejected"}
    with pytest.raises(PipelineError, match="and `score_a` says which is"):
        loaded(rows, jsonl, columns=columns)
    assert loaded(rows[:1], jsonl, columns=columns).train[0]["chosen"][0]["content"] == "A"


@pytest.mark.parametrize("vote", [{"winner": 1}, {"best": 2}, {"chosen": 0}, {"preferred": "b"}])
def test_a_list_of_answers_with_the_number_of_the_best_is_not_taken_as_ranked(
    vote: dict[str, Any], jsonl: Write
) -> None:
    rows = [{"prompt": "Q?", "responses": ["a", "b"], **vote}] * 2
    (name,) = vote
    with pytest.raises(PipelineError) as caught:
        loaded(rows, jsonl)
    assert "ranked" not in str(caught.value)
    with pytest.raises(
        PipelineError, match=f"the first of `responses` the best answer in every row, and `{name}` says"
    ):
        loaded(rows, jsonl, columns={"responses": "ranked"})
    kept = loaded(rows, jsonl, columns={"responses": "ranked", name: "note"})
    assert kept.train[0]["chosen"][0]["content"] == "a"
    ranked = [{**row, "ranks": [2, 1], name: None} for row in rows]  # as the message says
    assert loaded(ranked, jsonl).train[0]["chosen"][0]["content"] == "b"


@pytest.mark.parametrize(
    ("better", "worse", "values"),
    [
        ("chosen_rank", "rejected_rank", (2, 1)),
        ("chosen_votes", "rejected_votes", (1, 4)),
        ("elo_chosen", "elo_rejected", (1, 4)),
    ],
)
def test_ranks_and_votes_against_the_order_of_pairs_stop_the_run(
    better: str, worse: str, values: tuple[int, int], jsonl: Write
) -> None:
    row = {"prompt": "Q?", "chosen": "A", "rejected": "B"}
    assert loaded([{**row, better: values[1], worse: values[0]}], jsonl).train[0]["chosen"][0]["content"] == "A"
    with pytest.raises(PipelineError, match=r"is above `.*` in 1 of 1 row; expected `chosen` to be the better answer"):
        loaded([{**row, better: values[0], worse: values[1]}], jsonl)


def test_a_third_answer_that_wins_is_no_tie(jsonl: Write) -> None:
    two = {"prompt": "Q?", "response_a": "A", "response_b": "B"}
    rows = [{**two, "response_c": "C", "winner": winner} for winner in ("a", "c")]
    with pytest.raises(PipelineError, match="row `winner` is 'c'; expected a or b, the name of an answer, or tie"):
        loaded(rows, jsonl)
    with pytest.raises(PipelineError, match=r"row is a tie \(`winner` 'c'\)"):
        loaded([{**two, "winner": winner} for winner in ("a", "c")], jsonl)


def test_points_that_lie_beside_each_answer_in_its_object_are_not_hidden(jsonl: Write) -> None:
    rows = [
        {"prompt": "Q?", "good": {"text": "A", "score": one}, "bad": {"text": "B", "score": other}}
        for one, other in ((3, 1), (1, 3))
    ]
    columns = {"good.text": "chosen", "bad.text": "rejected"}
    with pytest.raises(PipelineError, match=r"makes `good.text` the better answer in every row, and `good.score` says"):
        loaded(rows, jsonl, columns=columns)
    assert [row["chosen"][0]["content"] for row in mended(rows, jsonl, columns=columns).train] == ["A", "B"]


@pytest.mark.parametrize(
    ("column", "said", "is_kept"),
    [
        ("is_chosen_better", True, True),
        ("is_chosen_better", False, False),
        ("chosen_wins", "0", False),
        ("rejected_is_preferred", 1, False),
        ("rejected_is_preferred", "no", True),
        ("chosen_length_is_better", "long", True),
    ],
)
def test_a_yes_or_no_of_one_side_of_a_pair_is_heeded(column: str, said: object, is_kept: bool, jsonl: Write) -> None:
    row = {"prompt": "Q?", "chosen": "A", "rejected": "B"}
    rows = [row, {**row, column: said}]
    made = loaded(rows, jsonl, on_bad_row="skip")
    assert (len(made.train), made.rejected) == ((2, 0) if is_kept else (1, 1))
    assert len(loaded(rows, jsonl, columns={column: "note"}).train) == 2
