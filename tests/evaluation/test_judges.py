"""Verdicts, prompts, pairs, the cache and the figures of a judge: what is read, refused, remembered and counted."""

from __future__ import annotations

import math
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.endpoints.cache import VERDICTS, ReplyCache
from pipeline.endpoints.forecast import cap_problem
from pipeline.errors import PipelineError
from pipeline.evaluation.judges.endpoint import FEWER, WHERE, Endpoint, asking_of
from pipeline.evaluation.judges.measures import JudgedPair, clustered_share, figures_of, kappa_interval
from pipeline.evaluation.judges.pairs import Pair, pairs_of
from pipeline.evaluation.judges.verdicts import (
    NoVerdictError,
    OrderVerdict,
    Reply,
    TokenLogprobs,
    bradley_terry,
    joined,
    read_verdict,
    verdict_logprobs,
    verdict_of,
)
from pipeline.preferences.candidates import chosen_pairs
from pipeline.records.pair_choice import PairRule


def _reply(text: str, *logprobs: tuple[str, dict[str, float]]) -> Reply:
    tokens = [TokenLogprobs(token, [(one, math.log(share)) for one, share in top.items()]) for token, top in logprobs]
    return {"text": text, "logprobs": verdict_logprobs(text, tokens), "prompt_tokens": 9, "completion_tokens": 1}


def _turns(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _pair(first: str, second: str, prompt: str = "why?", place: int = 0) -> Pair:
    return Pair(place, {"prompt": _turns(prompt, "user")}, _turns(first), _turns(second))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "A"),
        ("B\n", "B"),
        ("Both are right, but A is rude.\n\nB", "B"),
        ("reasons\n**A**", "A"),
        ("[[B]]", "B"),
        ('"tie".', "tie"),
        ("Tie", "tie"),
    ],
)
def test_the_last_line_is_the_verdict(text: str, choice: str) -> None:
    assert read_verdict(_reply(text)).choice == choice


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "A is better", "A or B", "a", "Verdict: A", "A\nI hope this helps.", "AB", "C", "both", "ties", "A B"],
)
def test_anything_else_is_no_verdict_and_no_tie(text: str) -> None:
    with pytest.raises(NoVerdictError):
        read_verdict(_reply(text))


def test_the_probabilities_of_the_verdict_s_token_are_used() -> None:
    # P(A) = 0.6, P(B) = 0.2, P(tie) = 0.1, the rest is something else: (0.6 + 0.05) / 0.9
    top = {"A": 0.5, " A": 0.1, "B": 0.2, "tie": 0.1, "The": 0.1}
    reply = _reply("well\nA", ("well", {"well": 1.0}), ("\n", {"\n": 1.0}), ("A", top))
    assert [len(others) for _, others in reply["logprobs"]] == [0, 0, 4]  # what is no verdict is not kept
    verdict = read_verdict(reply)
    assert verdict.choice == "A"
    assert verdict.probability == pytest.approx(0.65 / 0.9)
    assert read_verdict(_reply("A", ("B", {"B": 1.0}))).probability == 1.0  # the tokens are not those of the text


def test_a_rubric_is_one_line_for_each_criterion_and_weighs_them() -> None:
    weights = {"true": 2.0, "kind": 1.0}
    verdict = read_verdict(_reply("reasons\ntrue: A\n**kind**: B"), weights)
    assert verdict.criteria == {"true": 1.0, "kind": 0.0}
    assert verdict.probability == pytest.approx(2 / 3)
    assert verdict.choice == "A"
    assert read_verdict(_reply("kind: B\ntrue: tie"), {"true": 1.0, "kind": 1.0}).choice == "B"
    assert read_verdict(_reply("a: A\nb: A\nc: B"), {"a": 0.1, "b": 0.2, "c": 0.3}).choice == "tie"
    tokens = [("true", {}), (":", {}), (" B", {" B": 0.75, " A": 0.25})]
    assert read_verdict(_reply("true: B", *tokens), {"true": 1.0}).probability == pytest.approx(0.25)
    for text, said in (
        ("true: A", "it has no line with a verdict on `kind`"),
        ("true: A\nkind: B\nkind: A", "it has several lines with a verdict on `kind`"),
        ("true: A\nkind: good", "it has no line with a verdict on `kind`"),
    ):
        with pytest.raises(NoVerdictError, match=said):
            read_verdict(_reply(text), weights)


@pytest.mark.parametrize(
    ("probabilities", "outcome", "probability"),
    [
        ((0.9, 0.2), "first", 0.85),  # (0.9 + 1 - 0.2) / 2
        ((0.1, 0.6), "second", 0.25),
        ((0.9, 0.8), "flip", 0.55),  # both times what was shown first
        ((0.2, 0.4), "flip", 0.4),
        ((0.5, 0.2), "tie", 0.65),
        ((0.5, 0.5), "tie", 0.5),
    ],
)
def test_a_response_wins_only_in_both_orders(
    probabilities: tuple[float, float], outcome: str, probability: float
) -> None:
    said, p = joined(*map(verdict_of, probabilities))
    assert (said, p) == (outcome, pytest.approx(probability))


def test_bradley_terry_is_the_sigmoid_and_does_not_overflow() -> None:
    assert bradley_terry(0) == 0.5
    assert bradley_terry(math.log(3)) == pytest.approx(0.75)
    assert (bradley_terry(1e4), bradley_terry(-1e4)) == (1.0, 0.0)


SERVER: dict[str, Any] = {"url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{prompt} {first}"}, "endpoint.template lacks {second}"),
        ({"template": "{prompt} {first} {second} {secnd}"}, "has the placeholder {secnd}"),
        ({"template": "{prompt} {first} {second} {"}, "has a brace that stands alone"),
        ({"template": "{prompt} {first} {second} {prompt.x}"}, "has the placeholder {prompt.x}"),
        (
            {"template": "{prompt}{first}{second}", "rubric": [{"name": "a"}]},
            "endpoint.template lacks {rubric}",
        ),
        ({"rubric": [{"name": "a"}, {"name": "a"}]}, "endpoint.rubric names `a` twice"),
        ({"url": "127.0.0.1:8000"}, "expected the base URL of a server"),
        ({"url": "http://me:secret@host/v1"}, "endpoint.url holds a user or a password"),
        ({"url": "http://h/v1/chat/completions"}, "expected the base URL. Write http://h/v1"),
        ({"parameters": {"model": "x"}}, "endpoint.parameters names `model`"),
        ({"key_env": "sk-abc123"}, "endpoint.key_env is no name of an environment variable"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings: dict[str, Any], message: str) -> None:
    problems = "\n".join(map(str, Endpoint.model_validate({**SERVER, **settings}).check()))
    assert message in problems
    assert "secret" not in problems and "sk-abc123" not in problems


def test_braces_of_the_responses_are_text() -> None:
    endpoint = Endpoint.model_validate({**SERVER, "template": "{{x}} {prompt}|{first}|{second}"})
    straight, swapped = endpoint.requests(_pair("{second}", "{format}"))
    assert straight.messages[0]["content"] == "{x} why?|{second}|{format}"
    assert swapped.messages[0]["content"] == "{x} why?|{format}|{second}"


def test_the_key_of_a_reply_is_made_of_everything_that_matters_to_it() -> None:
    pair = _pair("a", "b")

    def keys(**settings: Any) -> tuple[str, str]:
        endpoint = Endpoint.model_validate({**SERVER, **settings})
        straight, swapped = endpoint.requests(pair)
        return straight.key, swapped.key

    plain = keys()
    assert len(set(plain)) == 2
    others = [
        {"model": "n"},
        {"revision": "2"},
        {"template": "{prompt} {first} {second}"},
        {"system": "Be just."},
        {"rubric": [{"name": "true"}]},
        {"rubric": [{"name": "true", "description": "no lies"}]},
        {"temperature": 1.0},
        {"max_tokens": 9},
        {"logprobs": False},
        {"parameters": {"seed": 1}},
    ]
    assert len({plain, *(keys(**settings) for settings in others)}) == len(others) + 1
    for settings in ({"url": "http://h/v1"}, {"key_env": "K"}, {"parallel": 1}, {"attempts": 2}, {"max_calls": 5}):
        assert keys(**settings) == plain
    # the weight of a criterion changes what is made of a reply, not the reply
    assert keys(rubric=[{"name": "true", "weight": 2.0}]) == keys(rubric=[{"name": "true"}])


def _candidates(*texts: str, **more: Any) -> dict[str, Any]:
    listed = [{"text": text, "names_model": "Claude" in text} for text in texts]
    return {"prompt": _turns("why?", "user"), "answer": "x", "candidates": listed, **more}


def test_answers_that_are_empty_or_name_a_model_are_in_no_pair() -> None:
    choice = pairs_of([_candidates("a", " ", "I am Claude", "b")], "prompt", per_prompt=0)
    assert [{pair.first[0]["content"], pair.second[0]["content"]} for pair in choice.pairs] == [{"a", "b"}]
    assert choice.left_out == {"empty": 1, "names a model": 1}
    assert choice.pairs[0].row == {"prompt": _turns("why?", "user"), "answer": "x"}


def test_pairs_are_all_or_so_many_or_those_that_were_drawn() -> None:
    row = _candidates("a", "b", "c", "d", pairs=[{"first": 3, "second": 1, "propensity": 0.2}])
    assert len(pairs_of([row], "prompt", per_prompt=0).pairs) == 6
    assert len(pairs_of([row], "prompt", per_prompt=2, seed=1).pairs) == 2
    (drawn,) = pairs_of([row], "prompt").pairs
    assert (drawn.first, drawn.second) == (_turns("d"), _turns("b"))
    assert len(pairs_of([row], "prompt", per_prompt=0, limit=4).pairs) == 4
    rows = [{**_candidates("a", "b"), "prompt": _turns(str(i), "user")} for i in range(200)]
    firsts = [pair.first[0]["content"] == "a" for pair in pairs_of(rows, "prompt", per_prompt=1).pairs]
    assert 70 < sum(firsts) < 130


@pytest.mark.parametrize("count", [1, 2, 0])
def test_random_pairs_are_those_that_people_would_get(count: int) -> None:
    rows = [
        {**_candidates("a", "b", " ", "c", "I am Claude", "d"), "prompt": _turns(f"{place}?", "user")}
        for place in range(20)
    ]
    judged = pairs_of(rows, "prompt", per_prompt=count, seed=7).pairs
    told = [(one.place, one.first[0]["content"], one.second[0]["content"]) for one in judged]
    shown = []
    for place, row in enumerate(rows):
        for pair in chosen_pairs(row, PairRule(count=count), 7, place):
            shown.append((place, *(row["candidates"][i]["text"] for i in (pair.first, pair.second))))
    assert told == shown and len(told) == 20 * (count or 6)


def test_rows_without_candidates_are_refused_and_a_pair_that_comes_twice_counts_once() -> None:
    with pytest.raises(PipelineError, match="row 1 of data has no `candidates`"):
        pairs_of([{"prompt": _turns("q", "user")}], "prompt")

    row = {"prompt": _turns("q", "user"), "chosen": _turns("a"), "rejected": _turns("b")}
    again = {**row, "chosen": _turns(" b"), "rejected": _turns("a")}
    choice = pairs_of([row, again], "preference")
    assert (len(choice.pairs), choice.left_out["repeated"]) == (1, 1)


def test_the_cache_has_what_was_put_and_nothing_else(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / VERDICTS)
    assert cache.known(["a"]) == {}
    assert not cache.file.exists()
    cache.put({"a": _reply("A", ("A", {"A": 1.0}))})
    cache.put({"b": _reply("é"), "a": _reply("B")})
    assert {key: reply["text"] for key, reply in ReplyCache(tmp_path / VERDICTS).known(["a", "b", "c"]).items()} == {
        "a": "B",
        "b": "é",
    }
    keys = [f"k{i}" for i in range(1200)]
    cache.put({key: _reply(key) for key in keys})
    assert len(cache.known(keys)) == 1200


def test_a_cache_that_a_kill_left_empty_is_used_and_one_that_is_none_is_told(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / VERDICTS)
    cache.file.parent.mkdir()
    cache.file.touch()
    assert cache.known(["a"]) == {}
    cache.put({"a": _reply("A")})
    assert set(cache.known(["a"])) == {"a"}
    cache.file.write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(PipelineError, match="is no cache of replies"):
        cache.known(["a"])


def test_a_process_killed_while_it_writes_leaves_a_whole_cache(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / VERDICTS)
    cache.put({"a": _reply("A")})
    database = sqlite3.connect(cache.file)
    database.execute("INSERT INTO replies VALUES ('b', '{}')")  # never committed
    assert set(cache.known(["a", "b"])) == {"a"}
    database.close()
    assert set(cache.known(["a", "b"])) == {"a"}


def test_a_forecast_counts_what_is_not_cached_and_caps_it(tmp_path: Path) -> None:
    pairs = [_pair("a", "b", f"q{i}") for i in range(5)] + [_pair("same", "same ")]
    endpoint = Endpoint.model_validate({**SERVER, "max_tokens": 7, "template": "{prompt}|{first}|{second}"})
    asking = asking_of(endpoint, pairs, tmp_path)
    # `q0|a|b` has 6 bytes: 2 tokens, and 8 of its message
    assert asking.forecast[:5] == (6, 10, 0, 100, 70)
    first = asking.requests[0][0]
    ReplyCache(tmp_path / VERDICTS).put({first.key: _reply("A")})
    forecast = asking_of(endpoint, pairs, tmp_path).forecast
    assert forecast[:5] == (6, 10, 1, 90, 63)
    assert str(forecast) == (
        "6 pairs to judge with 9 calls to m at 127.0.0.1:1 (1 more is cached): about 90 tokens, and replies of at "
        "most 63"
    )

    def problem(settings: Endpoint) -> str:
        return str(cap_problem(settings, WHERE, forecast, FEWER))

    assert problem(endpoint) == "None"
    tight = endpoint.model_copy(update={"max_calls": 8})
    assert problem(tight).startswith("endpoint.max_calls is 8; there are 6 pairs to judge with 9")
    tight = endpoint.model_copy(update={"max_tokens_total": 152})
    assert problem(tight).startswith("endpoint.max_tokens_total is 152; there are 6 pairs")
    assert problem(endpoint.model_copy(update={"max_tokens_total": 153})) == "None"


def _judged(rng: random.Random, count: int, prefer_first: float) -> list[JudgedPair]:
    """Return pairs of a judge that takes what it sees first with a probability, in each order anew."""
    judged = []
    for i in range(count):
        orders = tuple(OrderVerdict("A", 1.0) if rng.random() < prefer_first else OrderVerdict("B", 0.0) for _ in "ab")
        pair = _pair("long answer" if i % 2 else "x", "yy", f"q{i}")
        outcome, p = joined(*orders)
        judged.append(JudgedPair(pair, outcome, p, orders))
    return judged


def test_the_figures_of_a_judge_of_known_bias() -> None:
    always = figures_of(_judged(random.Random(0), 40, 1.0), seed=1)
    assert always.first_position is not None and always.flip_rate is not None
    assert (always.first_position.value, always.flip_rate.value, always.preferences) == (1.0, 1.0, 0)
    assert always.longer_wins is None
    assert always.first_position.low == pytest.approx(0.025 ** (1 / 40))  # Clopper-Pearson of 40 prompts
    # A judge that takes what it sees first with 0.8 flips with 0.8² + 0.2² = 0.68.
    biased = figures_of(_judged(random.Random(1), 2000, 0.8), seed=1)
    assert biased.first_position is not None and biased.flip_rate is not None
    assert biased.first_position.low < 0.8 < biased.first_position.high
    assert biased.flip_rate.low < 0.68 < biased.flip_rate.high
    assert biased.first_position.high - biased.first_position.low < 0.03
    fair = figures_of(_judged(random.Random(2), 2000, 0.5), seed=1)
    assert fair.first_position is not None and fair.longer_wins is not None
    assert fair.first_position.low < 0.5 < fair.first_position.high
    assert fair.longer_wins.low < 0.5 < fair.longer_wins.high


def test_a_share_of_clusters_is_wider_than_wilson_s_where_they_differ() -> None:
    single = clustered_share([(str(i), i % 4 == 0) for i in range(100)], seed=0)
    # ten prompts of ten equal verdicts are worth ten verdicts
    grouped = clustered_share([(str(i // 10), i // 10 % 4 == 0) for i in range(100)], seed=0)
    assert single is not None and grouped is not None
    assert (single.value, single.n, grouped.value, grouped.n) == (0.25, 100, 0.3, 10)
    assert grouped.high - grouped.low > 2 * (single.high - single.low)
    assert clustered_share([], seed=0) is None


def test_errors_and_parse_failures_are_shares_of_the_asked_pairs() -> None:
    said = OrderVerdict("A", 1.0)
    judged = [
        JudgedPair(_pair("a", "b", "1"), "first", 0.9, (said, OrderVerdict("B", 0.0))),
        JudgedPair(_pair("a", "b", "2"), "error", None, (said, None), error="HTTP 500"),
        JudgedPair(_pair("a", "b", "3"), "error", None, (None, said), error="x", unreadable={0: "well"}),
        JudgedPair(_pair("a", "a", "4"), "equal"),
    ]
    figures = figures_of(judged, seed=0)
    assert (figures.errors, figures.parse_failures, figures.equal, figures.preferences) == (2, 1, 1, 1)
    assert figures.error_rate is not None and figures.parse_failure_rate is not None and figures.flip_rate is not None
    assert figures.error_rate.value == pytest.approx(2 / 3)
    assert figures.parse_failure_rate.value == pytest.approx(1 / 3)
    assert (figures.flip_rate.value, figures.flip_rate.n) == (0.0, 1)


def test_kappa_has_an_interval_that_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 400)
    other = np.where(rng.random(400) < 0.8, truth, 1 - truth)  # kappa of 80 % agreement of two even classes is 0.6
    estimate = kappa_interval(truth, other, seed=0)
    assert estimate is not None
    assert estimate.low < 0.6 < estimate.high
    assert estimate.high - estimate.low < 0.2
    assert kappa_interval(np.zeros(5, int), np.zeros(5, int), seed=0) is None


def test_kappa_of_few_labels_that_all_agree_is_not_certain() -> None:
    one = np.repeat([0, 1], 20)
    estimate = kappa_interval(one, one, seed=0)
    # Wilson's lower end at 40 of 40 is 40 / (40 + 3.8415) = 0.9124; by chance half of them agree.
    assert estimate is not None and (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx((0.91238 - 0.5) / 0.5, abs=1e-4)


def test_agreement_with_people_on_several_pairs_of_a_prompt_resamples_prompts() -> None:
    # Of ten prompts with ten pairs each, the judge agrees on all pairs of five, on none of the others.
    judged, people = [], []
    for n in range(100):
        prompt = f"q{n // 10}"
        judged.append(JudgedPair(_pair(f"a{n}", f"b{n}", prompt), "first" if n < 50 else "second", 1.0))
        people.append({"prompt": _turns(prompt, "user"), "chosen": _turns(f"a{n}"), "rejected": _turns(f"b{n}")})
    agreement = figures_of(judged, seed=0, people=people).people
    assert agreement is not None and agreement.same.value == 0.5
    assert agreement.same.high - agreement.same.low > 0.5  # of ten prompts; Wilson's of a hundred pairs has 0.19


def test_agreement_with_people_knows_pairs_by_their_texts() -> None:
    outcomes = ["first", "second", "flip", "first", "error"]
    judged = [JudgedPair(_pair("a", "b", str(i)), outcome) for i, outcome in enumerate(outcomes)]  # type: ignore[arg-type]
    people = [
        {"prompt": _turns(str(i), "user"), "chosen": _turns(chosen), "rejected": _turns("b" if chosen == "a" else "a")}
        for i, chosen in ((0, "a"), (1, "a"), (2, "b"), (4, "a"), (9, "a"), (3, "a"), (3, "b"))
    ]
    agreement = figures_of(judged, seed=0, people=people).people
    assert agreement is not None
    # 0 agrees, 1 does not, 2 flips; 3 is split between people, 4 has no verdict, nobody judged 9
    assert (agreement.pairs, agreement.same.value) == (3, pytest.approx(1 / 3))


def test_kappa_does_not_depend_on_the_chosen_response_standing_first() -> None:
    pairs = [_pair(f"good {i}", f"bad {i}", str(i)) for i in range(200)]
    people = [{**pair.row, "chosen": pair.first, "rejected": pair.second} for pair in pairs]
    rng = random.Random(0)
    judged = [JudgedPair(pair, "first" if rng.random() < 0.8 else "second") for pair in pairs]
    swapped = [
        JudgedPair(
            Pair(0, one.pair.row, one.pair.second, one.pair.first), "second" if one.outcome == "first" else "first"
        )
        for one in judged
    ]
    for own in (judged, swapped):
        agreement = figures_of(own, seed=0, people=people).people
        assert agreement is not None and agreement.kappa is not None
        assert agreement.same.low < 0.8 < agreement.same.high
        assert agreement.kappa.low < 0.6 < agreement.kappa.high  # by chance half of them agree


def test_a_verdict_of_several_tokens_is_what_the_reply_says() -> None:
    """The first token of "tie" is no verdict: what is left of its alternatives says nothing of a tie."""
    top = {"t": 0.85, "A": 0.1, "B": 0.05}
    verdict = read_verdict(_reply("tie", ("t", top), ("ie", {"ie": 1.0})))
    assert (verdict.choice, verdict.probability) == ("tie", 0.5)


def test_marks_and_letter_case_of_a_criterion_do_not_matter() -> None:
    for text in ("- truth: A", "Truth: A", "> **truth**: A", "# truth: A!"):
        assert read_verdict(_reply(text), {"truth": 1.0}).criteria == {"truth": 1.0}
    with pytest.raises(NoVerdictError):
        read_verdict(_reply("truth: a"), {"truth": 1.0})


def test_a_key_is_read_without_white_space_and_refused_with_other_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(url="http://h/v1", model="m", key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", " sk-1\r\n")
    assert endpoint.key == "sk-1" and not [one for one in endpoint.machine_problems(WHERE) if "JUDGE_KEY" in str(one)]
    for value, said in (("sk-\n1", "no key has"), ("schlüssel", "no key has"), ("  ", "not set")):
        monkeypatch.setenv("JUDGE_KEY", value)
        assert any(said in str(one) for one in endpoint.machine_problems(WHERE))
