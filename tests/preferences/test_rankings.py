"""Rankings: what a person may send, the pairs that follow, aggregation without cycles, and how far people agree."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.stats.annotators import against_the_rest, raw_agreement
from pipeline.evaluation.stats.rankings import kendall_tau_b, rank_agreement
from pipeline.preferences.agreement import exported, label_table
from pipeline.preferences.blinding import shown_order
from pipeline.preferences.candidates import items_to_label
from pipeline.preferences.events import EventBody, EventKind, LedgerEvent, NewEvent
from pipeline.preferences.exchange.cautions import cautions
from pipeline.preferences.exchange.export import FORMATS, Labels, split_rows
from pipeline.preferences.exchange.files import content_of
from pipeline.preferences.exchange.importing import Matcher, events_of
from pipeline.preferences.exchange.ranking_import import RANKING_READERS, ranking_format
from pipeline.preferences.exchange.ranking_rows import RANKING_FORMATS
from pipeline.preferences.exchange.reading import said_in
from pipeline.preferences.items import Item, groups_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.rankings import (
    CYCLE,
    Ranked,
    by_response,
    differ,
    implied,
    ranks_of,
    shown_first,
    tau_b,
)
from pipeline.records import LoadedRows
from pipeline.records.files.reader import read_rows
from pipeline.records.pair_choice import PairChoice
from pipeline.stages.collect.aggregation import aggregated
from pipeline.stages.collect.config import Config


def _turns(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def _items(groups: int = 1, size: int = 3) -> list[Item]:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"which of {n}?"}],
            "answers": [_turns(f"{n}: {'abcdef'[place]}") for place in range(size)],
            "propensity": 0.1,
        }
        for n in range(groups)
    ]
    items, left_out = groups_of(rows)
    assert (len(items), left_out) == (groups, 0)
    return items


ITEMS = _items()
Say = Callable[..., State]


@pytest.fixture
def say(tmp_path: Any) -> Say:
    """Return the state after rankings of the first group, by person."""

    def state(_: str = "", /, item: Item = ITEMS[0], **rankings: list[list[int]]) -> State:
        ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "batch")
        events: list[NewEvent] = [("batch", {"salt": "5" * 32})]
        order = [2, 0, 1, *range(3, len(item.responses))]
        for who, ranking in rankings.items():
            events.append(
                ("label", {"item": item.id, "annotator": who, "ranking": ranking, "order": order, "seconds": 2.0})
            )
        ledger.extend(events)
        return State().take(ledger.events())

    return state


def _texts(rows: Any) -> list[tuple[str, str, float]]:
    return [(row["chosen"][0]["content"][-1], row["rejected"][0]["content"][-1], row["margin"]) for row in rows]


def test_a_ranking_names_every_place_once() -> None:
    # On the screen: the third, the first, the second response. Screen place 0 is the best, the others are equal.
    assert by_response([[0], [1, 2]], (2, 0, 1)) == ((2,), (0, 1))
    assert ranks_of(((2,), (0, 1))) == [1, 1, 0]
    for wrong in ([[0], [1]], [[0], [1], [1, 2]], [[0], [1], [3]], [[0, 1, 2], []], [[-1], [0], [1]], []):
        with pytest.raises(PipelineError, match="each of 0 to 2 once"):
            by_response(wrong, (2, 0, 1))


def test_one_person_s_ranking_makes_all_its_pairs_but_ties(say: Say) -> None:
    # b first, then a and c together: two rows, each one tier apart; a and c are a tie.
    pairs = implied(ITEMS, say(ada=[[1], [0, 2]]))
    rows, without = exported(pairs.items, pairs.state, aggregated("majority", pairs))
    assert _texts(rows) == [("b", "a", 1.0), ("b", "c", 1.0)] and without == Counter(tie=1)
    # c, b, a: c and a are two tiers apart.
    pairs = implied(ITEMS, say("", ada=[[2], [1], [0]]))
    rows, without = exported(pairs.items, pairs.state, aggregated("majority", pairs))
    assert _texts(rows) == [("b", "a", 1.0), ("c", "a", 2.0), ("c", "b", 1.0)] and not without


def test_the_margin_is_that_of_a_pair_and_strength_ends_at_three(say: Say) -> None:
    items = _items(size=6)
    state = say(item=items[0], ada=[[0], [1], [2], [3], [4], [5]])
    rows, _ = exported(implied(items, state).items, implied(items, state).state)
    assert len(rows) == 15
    by_pair = {pair[:2]: pair[2] for pair in _texts(rows)}
    assert by_pair["a", "b"] == 1 and by_pair["a", "d"] == by_pair["a", "f"] == 3


def test_contradicting_majorities_make_no_rows_that_contradict(say: Say) -> None:
    # a>b>c, b>c>a, c>a>b: two of three say a>b, b>c and c>a, all by 1/3. No order is better than the others.
    cycle = {"ada": [[0], [1], [2]], "bob": [[1], [2], [0]], "cyd": [[2], [0], [1]]}
    pairs = implied(ITEMS, say(**cycle))
    rows, without = exported(pairs.items, pairs.state, aggregated("majority", pairs))
    assert rows == [] and without == Counter({CYCLE: 3})
    # A fourth a>b>c. a>b: 3 to 1, b>c: 3 to 1; a>c: 2 to 2, a split vote. No cycle is left.
    pairs = implied(ITEMS, say("", **cycle, dan=[[0], [1], [2]]))
    rows, without = exported(pairs.items, pairs.state, aggregated("majority", pairs))
    assert [one[:2] for one in _texts(rows)] == [("a", "b"), ("b", "c")] and without == Counter(split=1)


def test_the_weakest_link_of_a_cycle_gives_way(say: Say) -> None:
    # a>b, strength 1, by 3 of 5 less 2: 1/5. b>c by 5 to 0. c>a by 3 to 2, margin mean strength 4/3 · 1/5.
    votes = {
        "one": [[0], [1], [2]], "two": [[0], [1], [2]], "six": [[1], [2], [0]], "ten": [[1], [2], [0]],
        "odd": [[2], [0, 1]],
    }  # fmt: skip
    pairs = implied(ITEMS, say(**votes))
    decide = aggregated("majority", pairs)
    rows, without = exported(pairs.items, pairs.state, decide)
    # a>b: 2 to 2 and a tie, split. b>c: 4 to 1 = 3/5. c>a: 3 to 2. No cycle: b>c>a stands.
    assert [one[:2] for one in _texts(rows)] == [("c", "a"), ("b", "c")] and without == Counter(split=1)
    votes["odd"] = [[2], [0], [1]]
    pairs = implied(ITEMS, say("", **votes))
    rows, without = exported(pairs.items, pairs.state, aggregated("majority", pairs))
    # Now a>b 3 to 2: strengths 1, 1, 1 · 1/5 = 0.2; b>c 4 to 1: 1 · 3/5; c>a 3 to 2: (1 + 1 + 1)/3 · 1/5 = 0.2.
    # The orders a>b>c (0.2 + 0.6 - 0.2) and b>c>a (0.6 + 0.2 - 0.2) are best: only b>c holds in both.
    assert [one[:2] for one in _texts(rows)] == [("b", "c")] and without == Counter({CYCLE: 2})


def test_a_simulated_crowd_recovers_the_order() -> None:
    """Three people of ten rank each of 60 groups; a person exchanges two neighbours in 30 % of the rankings."""
    rng = random.Random(0)
    items = _items(60, 5)
    state = State()
    number = 0
    events = [LedgerEvent(1, 0.0, "batch", {"salt": "5" * 32}, "")]
    for item in items:
        for who in rng.sample([f"p{n}" for n in range(10)], 3):
            order = list(range(5))
            if rng.random() < 0.3:
                at = rng.randrange(4)
                order[at], order[at + 1] = order[at + 1], order[at]
            number += 1
            shown = rng.sample(range(5), 5)
            body: Any = {"item": item.id, "annotator": who, "ranking": [[one] for one in order], "order": shown}
            events.append(LedgerEvent(number + 1, 0.0, "label", {**body, "seconds": 1.0}, ""))
    state.take(events)
    for how in ("majority", "dawid_skene"):
        pairs = implied(items, state)
        rows, _ = exported(pairs.items, pairs.state, aggregated(how, pairs))
        right = sum(better < worse for better, worse, _ in _texts(rows))
        assert len(rows) >= 590 and right / len(rows) > 0.97, how
    table = label_table(pairs.items, pairs.state)
    agreed = raw_agreement(table.verdict_NA, seed=0, cluster_N=pairs.group_N)
    alone = raw_agreement(table.verdict_NA, seed=0)
    assert agreed is not None and alone is not None
    assert agreed.value == alone.value > 0.9 and agreed.n == 60 and alone.n == 600
    tau = tau_b(items, state)
    assert tau is not None and tau.n == 60 and 0.85 < tau.low < tau.value < tau.high < 1
    people = [answer for own in state.answers.values() for answer in own.values()]
    first = shown_first(people)
    assert first is not None and first.low < 0.5 < first.high and first.n == 180
    rest = against_the_rest(table.verdict_NA, cluster_N=pairs.group_N)
    assert all(one is not None and one.value > 0.85 and one.n <= 60 for one in rest)


def test_tau_by_hand() -> None:
    assert kendall_tau_b([0, 1, 2], [0, 1, 2]) == 1 and kendall_tau_b([0, 1, 2], [2, 1, 0]) == -1
    # One pair of three is reversed: (2 - 1) / 3. With a tie in one: 2 agree, 0 differ, √(3 · 2).
    assert kendall_tau_b([0, 1, 2], [1, 0, 2]) == pytest.approx(1 / 3)
    assert kendall_tau_b([0, 1, 2], [0, 0, 1]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau_b([0, 1, 2], [0, 0, 0]) is None
    assert rank_agreement([[[0, 1, 2]], [[0, 1], [0, 0]]], seed=0) is None
    # Means of two items: 1, and of three people (1 - 1 - 1) / 3.
    told = rank_agreement([[[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [0, 1, 2], [2, 1, 0]]], seed=0)
    assert told is not None and told.value == pytest.approx((1 - 1 / 3) / 2) and told.n == 2


def test_how_rankings_differ() -> None:
    one, other, tied = ((0,), (1,), (2,)), ((1,), (0,), (2,)), ((0, 1), (2,))
    assert (differ([one, one]), differ([one, tied]), differ([one, other])) == ("", "ties", "order")
    assert differ([((0, 1), (2,)), ((1, 0), (2,))]) == ""


def test_position_bias_counts_the_answer_shown_first(say: Say) -> None:
    # Shown: c, a, b. Ranked c > a > b: all three preferences are for the one shown first. Then b > a > c: none is.
    told = shown_first(say(ada=[[2], [0], [1]]).answers["ada"].values())
    assert told is not None and (told.value, told.n) == (1.0, 1)
    told = shown_first(say("", bob=[[1], [0], [2]]).answers["bob"].values())
    assert told is not None and told.value == 0.0
    assert shown_first(say("", cyd=[[0, 1, 2]]).answers["cyd"].values()) is None


def test_the_order_on_the_screen_is_secret_and_differs_between_people(tmp_path: Any) -> None:
    items = _items(40, 4)
    queue = LabelQueue(Batch(items, per_item=2), Ledger(f"sqlite:///{tmp_path / 'l.db'}", "b"))
    orders: dict[str, list[tuple[int, ...]]] = {}
    for who in ("ada", "bob"):
        for shown in queue.next(who, 40):
            assert set(shown) == {"item", "prompt", "answers"}
            texts = [one[0]["content"][-1] for one in shown["answers"]]
            orders.setdefault(who, []).append(tuple("abcd".index(text) for text in texts))
        assert orders[who] == [shown_order(queue.salt, who, item.id, 4) for item in items]
    assert sum(one == other for one, other in zip(orders["ada"], orders["bob"], strict=True)) < 8  # 1 in 24 by chance
    firsts = Counter(order[0] for own in orders.values() for order in own)
    assert all(8 < firsts[place] < 33 for place in range(4))  # 20 of 80 each
    ids = [[shown["item"] for shown in queue.next(who, 40)] for who in ("ada", "bob")]
    assert set(ids[0]).isdisjoint(ids[1])


def test_a_ranking_is_recorded_once_with_all_that_is_known(tmp_path: Any) -> None:
    queue = LabelQueue(Batch(_items(2)), Ledger(f"sqlite:///{tmp_path / 'l.db'}", "b"), "be fair")
    shown = queue.next("ada")[0]
    given = Ranked([[2], [0, 1]], 3.5, "r1", "hm")
    queue.rank("ada", shown["item"], given)
    queue.rank("ada", shown["item"], given)  # sent again
    events = [event.body for event in queue.ledger.events() if event.kind == "label"]
    assert len(events) == 1
    order = events[0]["order"]
    assert events[0]["ranking"] == [[order[2]], sorted([order[0], order[1]])]
    assert {"seconds": 3.5, "comment": "hm", "request": "r1"}.items() <= events[0].items() and events[0]["guidelines"]
    with pytest.raises(PipelineError, match="this group was answered"):
        queue.rank("ada", shown["item"], given._replace(request="r2"))
    assert queue.undo("ada") == shown["item"] and queue.progress()["done"] == 0
    with pytest.raises(PipelineError, match="each of 0 to 2 once"):
        queue.rank("ada", shown["item"], Ranked([[0], [1]]))


def _labels(say: Say, **more: Any) -> Labels:
    state = say(ada=[[1], [0, 2]], bob=[[2], [1], [0]])
    return Labels(ITEMS, state, {2: 7.0, 3: 8.0}, **more)


def test_raw_rows_have_the_ranking_and_the_propensity(say: Say) -> None:
    rows, _ = RANKING_FORMATS["raw"](_labels(say))
    row = rows[0].row
    assert row["ranking"] == [["response_b"], ["response_a", "response_c"]] and row["person"] == "ada"
    assert row["shown"] == ["response_c", "response_a", "response_b"] and row["propensity"] == 0.1
    assert row["response_b"] == _turns("0: b") and row["seconds"] == 2.0
    table, _ = RANKING_FORMATS["csv"](_labels(say))
    text = content_of([one.row for one in table], "csv").decode()
    assert text.splitlines()[0].startswith("item,prompt,response_a,response_b,response_c,response_d")
    assert '[[""response_b""], [""response_a"", ""response_c""]]' in text
    assert content_of([one.row for one in table], "parquet")[:4] == b"PAR1"


def test_other_tools_get_rankings_as_they_hold_them(say: Say) -> None:
    (record,), without = RANKING_FORMATS["argilla"](_labels(say))
    assert [one["value"] for one in record.row["responses"]["ranking"]] == [["response_c", "response_b", "response_a"]]
    assert without == Counter({"ranking with a tie, which Argilla cannot hold": 1})
    assert set(record.row["fields"]) == {"prompt", "response_a", "response_b", "response_c"}
    (task,), without = RANKING_FORMATS["label-studio"](_labels(say))
    first = next(one for one in task.row["annotations"][0]["result"] if one["type"] == "ranker")
    assert first["value"]["ranker"] == {"1": ["response_b"], "2": ["response_a", "response_c"]} and not without
    assert first["to_name"] == "answers" and task.row["data"]["answers"][0]["id"] == "response_a"


def test_answers_to_train_on_come_from_the_pairs_and_a_prompt_stays_on_one_side(say: Say) -> None:
    items = _items(40)
    state = State()
    for item in items:
        state.given[item.id].update(say("", item=item, ada=[[0], [1], [2]]).given[item.id])
    pairs = implied(items, state)
    labels = Labels(pairs.items, pairs.state, {})
    rows, _ = FORMATS["preference"](labels)
    assert len(rows) == 120
    train, held_out = split_rows(rows, 0.3)
    prompts = [{row["prompt"][0]["content"] for row in side} for side in (train, held_out)]
    assert prompts[0].isdisjoint(prompts[1]) and all(prompts) and len(train) % 3 == len(held_out) % 3 == 0
    # b is better than c and worse than a: as many for as against.
    unpaired, without = FORMATS["unpaired"](labels)
    assert Counter(one.row["label"] for one in unpaired) == {True: 40, False: 40}
    assert without["answer with as many for as against"] == 40


GROUP = {"prompt": [{"role": "user", "content": "q"}], "row": 3, "propensity": 0.2}
GROUP |= {"candidates": [{"text": text} for text in "abcd"]}


def _loaded(shape: Any, *rows: Any) -> LoadedRows:
    return LoadedRows(shape, list(rows), [], [], 0, "", (), "", ())


def test_what_is_ranked_and_what_is_paired() -> None:
    candidates = {key: value for key, value in GROUP.items() if key != "propensity"} | {"pairs": []}
    ranked = items_to_label(_loaded("candidates", GROUP), PairChoice(), 0)
    assert ranked.is_ranked and len(ranked.items[0].responses) == 4 and ranked.items[0].propensity == 0.2
    paired = items_to_label(_loaded("candidates", GROUP), PairChoice(pairs_per_prompt=0), 0)
    assert not paired.is_ranked and len(paired.items) == 6
    assert not items_to_label(_loaded("candidates", candidates), PairChoice(), 0).is_ranked
    three = items_to_label(_loaded("candidates", candidates), PairChoice(pair_choice="rank", rank_size=3), 0)
    assert three.is_ranked and len(three.items[0].responses) == 3 and three.items[0].propensity == 0.25
    few = {**candidates, "candidates": GROUP["candidates"][:2]}
    assert items_to_label(_loaded("candidates", few), PairChoice(pair_choice="rank"), 0)[1:] == (0, 1, True)
    with pytest.raises(PipelineError, match="rank_size is 3, and the data are groups already"):
        items_to_label(_loaded("candidates", GROUP), PairChoice(pair_choice="rank", rank_size=3), 0)
    with pytest.raises(PipelineError, match="pair_choice is rank, and the data are pairs already"):
        items_to_label(_loaded("preference", {}), PairChoice(pair_choice="rank"), 0)


@pytest.mark.parametrize(
    "more", [{"gold": "known"}, {"repeats": 0.1}, {"dimensions": [{"name": "helpful", "rated": 3}]}]
)
def test_what_applies_to_pairs_only_is_refused(more: Any) -> None:
    (problem,) = Config(data="answers", pair_choice="rank", **more).check()
    assert problem.found == f"{next(iter(more))} applies to pairs, and people rank groups here"
    assert Config(data="answers", **more).check() == []


def _said(*events: tuple[str, dict[str, Any]]) -> State:
    """Return the state after events about the first group."""
    return State().take(
        LedgerEvent(n, 0.0, cast(EventKind, kind), cast(EventBody, {"item": ITEMS[0].id, **body}), "")
        for n, (kind, body) in enumerate(events, 1)
    )


RANKED = ("label", {"annotator": "ada", "ranking": [[1], [0, 2]], "order": [2, 0, 1]})
FLAGGED = ("flag", {"annotator": "bob", "flag": "harmful", "reason": "rude"})


def test_a_group_that_somebody_flagged_makes_no_row_until_a_lead_decides() -> None:
    pairs = implied(ITEMS, _said(RANKED, FLAGGED))
    assert exported(pairs.items, pairs.state) == ([], Counter(flagged=3))
    taken_back = ("undo", {"annotator": "bob", "until": 0.0})
    pairs = implied(ITEMS, _said(RANKED, FLAGGED, taken_back))
    assert len(exported(pairs.items, pairs.state)[0]) == 2
    decided = ("adjudicate", {"annotator": "lin", "ranking": [[2], [1], [0]]})
    pairs = implied(ITEMS, _said(RANKED, FLAGGED, decided))
    assert _texts(exported(pairs.items, pairs.state)[0]) == [("b", "a", 1.0), ("c", "a", 2.0), ("c", "b", 1.0)]


def test_a_group_that_was_dropped_makes_no_row() -> None:
    pairs = implied(ITEMS, _said(RANKED, ("drop", {})))
    assert exported(pairs.items, pairs.state) == ([], Counter(dropped=3))


def test_exported_rankings_have_what_pairs_have_and_speak_of_groups() -> None:
    """Responses are submitted in Argilla; calls of tools are in the prompt; tools are in raw rows or are counted."""
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    prompt = (*ITEMS[0].prompt, {"role": "assistant", "content": "", "tool_calls": [call]})
    tools = ({"type": "function", "function": {"name": "add"}},)
    item = replace(ITEMS[0], prompt=cast(Any, prompt), tools=tools)
    ranked = ("label", {"annotator": "ada", "ranking": [[1], [0], [2]], "order": [2, 0, 1]})
    final = ("adjudicate", {"annotator": "lin", "ranking": [[2], [1], [0]]})
    labels = Labels([item], _said(ranked, final, ("drop", {})), {})
    (record,), without = RANKING_FORMATS["argilla"](labels)
    assert record.row["responses"]["ranking"][0]["status"] == "submitted"
    assert "add" in record.row["fields"]["prompt"][1]["content"]
    assert without == Counter({"label of a group whose tools have no place there": 1})
    (raw,), _ = RANKING_FORMATS["raw"](labels)
    assert raw.row["tools"] == list(tools)
    told = list(cautions(labels, [raw.row], "raw"))
    assert [one.split(" is ")[0].split(" with ")[0] for one in told] == ["1 group", "1 group"]


def test_ids_of_pairs_of_different_groups_differ() -> None:
    pairs = implied(_items(3, 4), State())
    assert len({item.id for item in pairs.items}) == 18
    assert pairs.group_N is not None and pairs.group_N.tolist() == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.parametrize("row_format", ["raw", "csv", "parquet", "label-studio", "argilla"])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_rankings_come_back_as_they_were(tmp_path: Any, say: Say, row_format: str, is_shuffled: bool) -> None:
    """Also into a batch whose answers stand in another order."""
    said = {"ada": [[1], [0, 2]], "bob": [[2], [1], [0]]}
    state = say(**said)
    suffix = {"csv": "csv", "parquet": "parquet", "raw": "jsonl"}.get(row_format, "json")
    file = tmp_path / f"rankings.{suffix}"
    told, _ = RANKING_FORMATS[row_format](Labels(ITEMS, state, {2: 7.0}))
    file.write_bytes(content_of([one.row for one in told], row_format))
    rows = [row.value for row in read_rows(file)]
    assert rows[0] is not None
    known_format = ranking_format(rows[0])
    counts = Counter[str]()
    read = list(said_in(rows, known_format, counts, RANKING_READERS))
    order = [2, 0, 1] if is_shuffled else [0, 1, 2]
    item = ITEMS[0]
    moved = Item("other", item.prompt, tuple(item.responses[place] for place in order))
    made = events_of(read, Matcher([moved]), State(), "theirs", "")
    assert not counts and not made.counts
    expected = {who: [sorted(order.index(place) for place in tier) for tier in one] for who, one in said.items()}
    if row_format == "argilla":
        del expected["ada"]  # a tie, which it cannot hold
    assert {body["annotator"]: body["ranking"] for _, body in made.events} == expected
    shown = {tuple(body["order"] or ()) for _, body in made.events}
    assert shown == (
        {tuple(order.index(place) for place in (2, 0, 1))} if row_format in ("raw", "csv", "parquet") else {()}
    )
    after = State()
    events = [LedgerEvent(n, 0.0, kind, body, "") for n, (kind, body) in enumerate(made.events, 1)]
    again = events_of(read, Matcher([moved]), after.take(events), "theirs", "")
    assert not again.events and again.counts == Counter({"label that is there already": len(expected)})


def test_files_of_other_tools_and_of_wrong_rankings() -> None:
    """Argilla's server says ranks, which may be equal; a `<Ranker>` without buckets lists ids."""
    texts = {f"response_{letter}": f"0: {letter}" for letter in "abc"}
    values = [("response_b", 1), ("response_a", 2), ("response_c", 2)]
    vote = {"value": [{"value": name, "rank": rank} for name, rank in values], "user_id": "u"}
    argilla = {"fields": {"prompt": "which of 0?", **texts}, "responses": {"ranking": [vote]}}
    listed = [{"id": name, "body": text} for name, text in texts.items()]
    result = [{"type": "ranker", "value": {"ranker": ["response_c", "response_a", "response_b"]}}]
    studio = {
        "data": {"prompt": "which of 0?", "items": listed},
        "annotations": [{"result": result, "completed_by": 3}],
    }
    for row, ranking in ((argilla, [[1], [0, 2]]), (studio, [[2], [0], [1]])):
        counts = Counter[str]()
        read = said_in([row], ranking_format(row), counts, RANKING_READERS)
        ((_, body),) = events_of(read, Matcher(ITEMS), State(), "f", "").events
        assert body["ranking"] == ranking and not counts
    raw = {
        "prompt": "which of 0?",
        **texts,
        "person": "ada",
        "ranking": [["response_a"], ["response_b"], ["response_c"]],
    }
    empty = dict.fromkeys(("kind", "shown", "seconds", "guidelines", "comment", "flag", "item"), float("nan"))
    (one,) = said_in([{**raw, **empty}], "raw", counts, RANKING_READERS)  # as pandas writes empty cells
    assert (one.tiers, one.order, one.guidelines, one.item) == (((0,), (1,), (2,)), None, "", "") and not counts
    wrong: Any = [
        {**raw, "ranking": [["response_a"], ["response_b"]]},
        {**raw, "ranking": [["response_a"], ["response_a", "response_b", "response_c"]]},
        {**raw, "ranking": "not json"},
        {**raw, "ranking": 7},
        {**raw, "ranking": [["response_f"], ["response_b"], ["response_c"]]},
        {**raw, "kind": "flag", "flag": "boring"},
    ]
    counts = Counter[str]()
    assert list(said_in(wrong, "raw", counts, RANKING_READERS)) == []
    assert counts == Counter({"row that cannot be read": len(wrong)})
    with pytest.raises(
        PipelineError, match="people rank groups here, and the first row has the columns prompt, chosen"
    ):
        ranking_format({"prompt": "", "chosen": "", "rejected": ""})
    stranger = said_in([{**raw, "prompt": "who?"}], "raw", counts, RANKING_READERS)
    assert events_of(stranger, Matcher(ITEMS), State(), "f", "").counts == Counter(
        {"label of no group of this batch": 1}
    )
