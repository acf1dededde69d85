"""Which prompts are asked: all, or a seeded sample in which every group keeps its share."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation.prompts import ask
from pipeline.evaluation.stats.sampling import stratified

SORTED = ["a"] * 250 + ["b"] * 150 + ["c"] * 95 + ["d"] * 5


def test_a_file_sorted_by_task_gives_all_tasks():
    # Of 60: 250/500 · 60 = 30, 18, 11.4 and 0.6; 11 + 0 leave one, which the larger remainder (0.6) gets.
    places = stratified(SORTED, 60, seed=0)
    assert Counter(SORTED[place] for place in places) == {"a": 30, "b": 18, "c": 11, "d": 1}
    assert places == sorted(set(places))
    assert places != list(range(60))


def test_a_small_task_keeps_one_prompt():
    # Of 10: 5, 3, 1.9 and 0.1: d gets one all the same, and c is left with one.
    assert Counter(SORTED[place] for place in stratified(SORTED, 10, seed=0)) == {"a": 5, "b": 3, "c": 1, "d": 1}


def test_the_seed_decides():
    assert stratified(SORTED, 60, seed=1) == stratified(SORTED, 60, seed=1)
    assert stratified(SORTED, 60, seed=1) != stratified(SORTED, 60, seed=2)


def test_every_row_is_as_likely_as_any_other():
    # 2,000 draws of 1 of 4: each 500 times, with a standard deviation of √(2000 · 3/16) = 19.4; five of those is 97.
    counts = Counter(stratified(["x"] * 4, 1, seed=seed)[0] for seed in range(2000))
    assert all(abs(counts[place] - 500) < 97 for place in range(4))


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 9))
def test_shares_differ_from_their_due_by_less_than_one(groups, limit, seed):
    places = stratified(groups, limit, seed=seed)
    assert len(set(places)) == len(places) == min(limit, len(groups))
    sizes, drawn = Counter(groups), Counter(groups[place] for place in places)
    if limit >= len(sizes):
        assert set(drawn) == set(sizes)
    for group, size in sizes.items():
        due = min(limit, len(groups)) * size / len(groups)
        # One for each group may take from the large ones what they were due.
        assert drawn[group] < due + 1
        assert drawn[group] >= min(size, due) - len(sizes)


ROWS = [
    {"prompt": [{"role": "user", "content": "1 + 1?"}], "topic": "sum", "answer": 2},
    {"prompt": [{"role": "user", "content": "1 + 2?"}], "topic": None, "answer": None},
]


def test_groups_and_right_answers():
    asked = ask(ROWS, group_by="topic", limit=None, seed=0)
    assert (asked.groups, asked.references, asked.places, asked.available) == (["sum", ""], [2, None], [0, 1], 2)
    assert ask(ROWS, group_by="topic", reference="topic", limit=None, seed=0).references == ["sum", None]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert ask([{"prompt": turns[:1], "messages": turns}], group_by="task", limit=None, seed=0).references == ["hello"]
    assert ask([{"prompt": turns[:1], "messages": turns[:1]}], group_by="task", limit=None, seed=0).references == [None]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"group_by": "topik"},
            "group_by `topik`; expected a column of the prompts: topic, answer. Did you mean `topic`?",
        ),
        ({"group_by": "task", "reference": "x"}, "reference `x`; expected a column of the prompts: topic, answer"),
    ],
)
def test_a_column_that_is_not_there_is_named(fields, problem):
    with pytest.raises(PipelineError) as caught:
        ask(ROWS, limit=None, seed=0, **fields)
    assert str(caught.value) == problem
