"""A reward model, a function or a server judges: preferences become pairs, failures are counted, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import TEMPLATE, Answer, Decide, JudgeServer, longer, sides
from ports import free_port
from stopping import StopAfter
from waiting import until

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.evaluation.judges.endpoint import cache_of
from pipeline.evaluation.judges.pairs import pairs_of
from pipeline.plan import make_plan
from pipeline.preflight import check_plan
from pipeline.recipe import load
from pipeline.stages.judge.config import Config

FILES = ("preferences.jsonl", "verdicts.jsonl", "report.md")
FUNCTIONS = """
def always_first(prompts, completions):
    return [1.0 for _ in prompts]


def longer(prompts, completions):
    sizes = [[len(turns[-1]["content"]) for turns in both] for both in completions]
    return [float(first > second) if first != second else 0.5 for first, second in sizes]


def size(completions, bonus, **columns):
    return [len(turns[-1]["content"]) + extra for turns, extra in zip(completions, bonus)]


def far(prompts, completions):
    return [3.0 for _ in prompts]
"""


def _rows(count: int) -> list[dict[str, Any]]:
    """Return preference rows whose chosen answer is the longer one in every other row."""
    rows = []
    for i in range(count):
        texts = [f"answer {i}", f"a longer answer {i}"]
        rows.append({"prompt": f"question {i}", "chosen": texts[i % 2], "rejected": texts[1 - i % 2], "bonus": 0})
    return rows


def _read(ran: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.out / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def judge(tmp_path: Path, run_stage: Callable[..., Any], write_jsonl: Callable[..., Path]) -> Callable[..., Any]:
    """Run a judge on rows, in a store of the test's own."""
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    store = tmp_path / "store"

    def run(rows: list[dict[str, Any]] | Path, **config: Any) -> Any:
        options = {key: config.pop(key) for key in list(config) if key in ("inputs", "expect", "stopping", "seed")}
        file = rows if isinstance(rows, Path) else write_jsonl(tmp_path / "rows.jsonl", rows)
        data: dict[str, Any] = {"data": file}
        if "people" in config:
            data["people"] = write_jsonl(tmp_path / "people.jsonl", config.pop("people"))
        number = len(list(store.glob(".work/*"))) if store.exists() else 0
        return run_stage("judge", config, data=data, out=store / ".work" / f"judge-{number}", **options)

    return run


@pytest.fixture
def serve() -> Iterator[Callable[[Decide], JudgeServer]]:
    with contextlib.ExitStack() as stack:
        yield lambda decide: stack.enter_context(JudgeServer(decide).running())


def _server(server: JudgeServer | str, **more: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    return {"url": url, "model": "m", "template": TEMPLATE, "parallel": 4, "backoff_s": 0.01, "timeout_s": 20, **more}


def test_a_function_that_scores_judges_by_its_scores(judge: Callable[..., Any]) -> None:
    ran = judge(_rows(6), function="judges.py:size")
    rows = _read(ran, "preferences.jsonl")
    assert [len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows] == [True] * 6
    assert rows[0]["prompt"] == [{"role": "user", "content": "question 0"}]
    # nine characters more: sigmoid(9) - sigmoid(-9)
    assert rows[0]["margin"] == pytest.approx(0.99975321, abs=1e-8)
    metrics = ran.outcome.result.metrics
    assert (metrics["longer_wins"], metrics["preferences"], metrics["calls"]) == (1.0, 6.0, 0.0)
    assert "first_position" not in metrics  # it sees one response at a time
    assert _read(ran, "verdicts.jsonl")[0]["scores"] == [8.0, 17.0]


def test_the_bias_of_a_function_that_compares_is_reported(judge: Callable[..., Any]) -> None:
    rows = [*_rows(6), {"prompt": "equal", "chosen": "the same", "rejected": "the  same", "bonus": 0}]
    ran = judge(rows, function="judges.py:longer", pairwise=True)
    metrics = ran.outcome.result.metrics
    assert (metrics["longer_wins"], metrics["first_position"], metrics["flip_rate"]) == (1.0, 0.5, 0.0)
    assert (metrics["preferences"], metrics["equal"], metrics["ties"]) == (6.0, 1.0, 0.0)
    assert _read(ran, "verdicts.jsonl")[-1]["outcome"] == "equal"
    report = (ran.out / "report.md").read_text()
    assert "| prefers the longer response | 100.0 % [" in report
    first = judge(_rows(6), function="judges.py:always_first", pairwise=True, expect="failed")
    problem = str(first.outcome.problems[0])
    assert "no pair has a preference: 0 ties, and 6 verdicts that flipped with the order" in problem
    assert {row["outcome"] for row in map(json.loads, (first.work / "verdicts.jsonl").open())} == {"flip"}


def test_people_who_compared_other_pairs_are_told_of(judge: Callable[..., Any]) -> None:
    others = [{**row, "prompt": f"another {row['prompt']}"} for row in _rows(4)]
    ran = judge(_rows(4), function="judges.py:size", people=others, pairs_per_prompt=2)
    assert "people: they compared none of these pairs, so no agreement is known" in ran.notes
    assert "pairs_per_prompt has no effect: the data has pairs, not candidates" in ran.notes
    known = judge(_rows(4), function="judges.py:size", people=_rows(4))
    metrics = known.outcome.result.metrics
    # people chose the longer answer of rows 1 and 3, and the shorter one of the others
    assert (metrics["people_pairs"], metrics["people_agreement"]) == (4.0, 0.5)


def test_a_function_that_scores_is_not_taken_for_one_that_compares(judge: Callable[..., Any]) -> None:
    ran = judge(_rows(2), function="judges.py:far", pairwise=True, expect="failed")
    assert "judges.py:far returned 3; expected the probability that the first response is better" in str(
        ran.outcome.problems[0]
    )


@pytest.mark.slow
def test_a_reward_model_judges_the_answers_of_checkpoints(
    judge: Callable[..., Any], chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    sampled = run_stage(
        "sample",
        {"n": 3, "max_new_tokens": 12, "limit": 8},
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain["sft"])]},
    )
    candidates = sampled.out / "candidates.jsonl"
    ran = judge(candidates, inputs={"reward": as_input(chain["rm"])}, pairs_per_prompt=0)
    verdicts = _read(ran, "verdicts.jsonl")
    texts = {
        row["prompt"][-1]["content"]: {one["text"] for one in row["candidates"]}
        for row in _read(sampled, "candidates.jsonl")
    }
    assert len(verdicts) == sum(len(own) * (len(own) - 1) // 2 for own in texts.values())
    for row in verdicts:
        first, second = row["scores"]
        assert row["outcome"] == ("first" if first > second else "second" if second > first else "tie")
        assert {row["first"][0]["content"], row["second"][0]["content"]} <= texts[row["prompt"][-1]["content"]]
    drawn = judge(candidates, inputs={"reward": as_input(chain["rm"])})  # the pairs that `sample` drew
    pairs = [(row["chosen"], row["rejected"]) for row in _read(sampled, "pairs.jsonl")]
    assert [(row["first"], row["second"]) for row in _read(drawn, "verdicts.jsonl")] == pairs
    assert any("warning: the reward model rm" in note for note in ran.notes) is False  # it is better than chance
    # and it agrees with the people whose pairs it learnt from
    people = [json.loads(line) for line in (chain.recipe.parent / "pairs.jsonl").open()]
    taught = judge(chain.recipe.parent / "pairs.jsonl", inputs={"reward": as_input(chain["rm"])}, people=people)
    metrics = taught.outcome.result.metrics
    assert metrics["people_pairs"] == metrics["pairs"] > 50
    assert metrics["people_kappa_low"] > 0
    assert metrics["people_kappa_low"] <= metrics["people_kappa"] <= metrics["people_kappa_high"]


RECIPE = """
name: rlaif
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  compared: {{artifact: candidates, file: candidates.jsonl}}
  preferred: {{artifact: verdicts, file: preferences.jsonl}}
stages:
  candidates: {{kind: sample, data: asks, models: [{sft}], n: 3, max_new_tokens: 12}}
  verdicts: {{kind: judge, data: compared, reward: {rm}, pairs_per_prompt: 0}}
  tuned: {{kind: dpo, data: preferred, model: {sft}, train: {{max_steps: 2, batch_size: 4}}}}
compute: {{threads: 1}}
"""


@pytest.mark.slow
def test_sampled_answers_are_judged_and_trained_on(tmp_path: Path, chain: Any, call: Any) -> None:
    recipe = tmp_path / "rlaif.yaml"
    recipe.write_text(
        RECIPE.format(folder=chain.recipe.parent, sft=chain["sft"].path, rm=chain["rm"].path), encoding="utf-8"
    )
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = {
        name: json.loads(next((tmp_path / "store" / name).glob("*/manifest.json")).read_text())
        for name in ("verdicts", "tuned")
    }
    assert manifests["tuned"]["rows"]["train"] == manifests["verdicts"]["rows"]["pairs"] > 10
    assert manifests["verdicts"]["metrics"]["preferences"] == manifests["verdicts"]["rows"]["pairs"]


def test_a_server_is_asked_in_both_orders_and_its_verdicts_become_pairs(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server = serve(longer)
    ran = judge(_rows(10), endpoint=_server(server))
    rows = _read(ran, "preferences.jsonl")
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows)
    assert len(rows) == 10 and {row["margin"] for row in rows} == {1.0}
    assert len(server.asked) == len(set(server.texts)) == 20
    assert {tuple(sorted(sides(text))) for text in server.texts} == {
        (f"a longer answer {i}", f"answer {i}") for i in range(10)
    }
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["logprobs"]) == ("m", 0.0, 256, True)
    assert server.most_at_once <= 4
    metrics = ran.outcome.result.metrics
    assert (metrics["calls"], metrics["tokens"], metrics["cached"]) == (20.0, 220.0, 0.0)
    assert (metrics["first_position"], metrics["flip_rate"], metrics["error_rate"]) == (0.5, 0.0, 0.0)
    steps = [event for event in ran.events if event.kind == "progress"]
    assert (steps[-1].step, steps[-1].total) == (20, 20) and steps[-1].metrics["calls_per_s"] > 0
    again = judge(_rows(10), endpoint=_server(server, parallel=1))
    assert len(server.asked) == 20  # all from the cache, and the same bytes
    assert [(again.out / name).read_bytes() for name in FILES] == [(ran.out / name).read_bytes() for name in FILES]
    assert again.outcome.result.metrics == {**metrics, "cached": 20.0}
    more = judge(_rows(12), endpoint=_server(server))
    assert (len(server.asked), more.outcome.result.metrics["cached"]) == (24, 20.0)


def test_probabilities_of_a_server_become_the_margin(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    def decide(text: str, times: int) -> Answer:
        # it prefers what it sees first: P(A) is 0.9 for the longer response, 0.4 for the shorter one
        log = {"A": -0.10536, "B": -2.30259} if longer(text, 0).text == "A" else {"A": -0.91629, "B": -0.51083}
        return Answer(longer(text, 0).text, logprobs=log)

    ran = judge(_rows(4), endpoint=_server(serve(decide)))
    # p = (0.9 + 1 - 0.4) / 2 = 0.75, and the margin 2p - 1
    assert [row["margin"] for row in _read(ran, "preferences.jsonl")] == pytest.approx([0.5] * 4, abs=1e-4)
    first, second = _read(ran, "verdicts.jsonl")[1]["orders"]
    assert (first["probability"], second["probability"]) == (pytest.approx(0.9, abs=1e-4), pytest.approx(0.4, abs=1e-4))


def test_the_criteria_of_a_rubric_are_asked_at_once_and_weighed(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    def decide(text: str, times: int) -> Answer:
        better = longer(text, times).text
        return Answer(f"Well.\ntruth: {better}\nbrevity: {'AB'[better == 'A']}")

    server = serve(decide)
    rubric = [{"name": "truth", "description": "Is it right?", "weight": 3}, {"name": "brevity"}]
    ran = judge(_rows(3), endpoint=_server(server, template=f"{TEMPLATE}{{rubric}}", rubric=rubric))
    assert "- truth: Is it right?\n- brevity\n" in server.texts[0] and "truth: …\nbrevity: …" in server.texts[0]
    # truth has 3 of 4 parts: p is 0.75 in one order and 0.25 in the other
    assert [row["margin"] for row in _read(ran, "preferences.jsonl")] == [0.5] * 3
    first, second = _read(ran, "verdicts.jsonl")[1]["orders"]
    assert (first["criteria"], second["criteria"]) == ({"truth": 1.0, "brevity": 0.0}, {"truth": 0.0, "brevity": 1.0})
    assert len(server.asked) == 6
    judge(
        _rows(3),
        endpoint=_server(
            server,
            template=f"{TEMPLATE}{{rubric}}",
            rubric=[{**rubric[0], "weight": 1}, rubric[1]],
        ),
        expect="failed",
    )
    assert len(server.asked) == 6  # other weights ask nothing anew; now both criteria balance, and all are ties


def test_a_server_that_flips_or_says_tie_makes_no_row(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    def decide(text: str, times: int) -> Answer:
        number = int(sides(text)[0].rsplit(" ", 1)[1])
        return Answer("A") if number == 0 else Answer("tie") if number == 1 else longer(text, times)

    ran = judge(_rows(5), endpoint=_server(serve(decide)))
    assert [row["outcome"] for row in _read(ran, "verdicts.jsonl")][:2] == ["flip", "tie"]
    metrics = ran.outcome.result.metrics
    assert (metrics["flips"], metrics["ties"], metrics["preferences"]) == (1.0, 1.0, 3.0)
    assert metrics["flip_rate"] == 0.2
    assert metrics["flip_rate_low"] < 0.2 < metrics["flip_rate_high"]


def test_what_fails_for_a_while_is_asked_again(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    passing = [
        Answer(status=429, headers={"Retry-After": "0"}),
        Answer(status=500),
        Answer(closes=True),
        Answer(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        *(Answer(status=status) for status in (408, 409, 502)),
    ]

    def decide(text: str, times: int) -> Answer:
        return passing[times] if times < len(passing) else longer(text, times)

    server = serve(decide)
    ran = judge(_rows(3), endpoint=_server(server, attempts=8, backoff_s=0.001))
    assert len(server.asked) == 6 * 8
    metrics = ran.outcome.result.metrics
    assert (metrics["preferences"], metrics["errors"], metrics["calls"]) == (3.0, 0.0, 6.0)
    assert ran.outcome.runtime_report["judge"]["calls_sent"] == 48


def test_a_server_is_given_the_time_it_asks_for(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    seen: dict[str, float] = {}
    waited: list[float] = []

    def decide(text: str, times: int) -> Answer:
        if times == 0:
            seen[text] = time.monotonic()
            return Answer(status=429, headers={"Retry-After": "0.5"})
        waited.append(time.monotonic() - seen[text])
        return longer(text, times)

    judge(_rows(1), endpoint=_server(serve(decide)))
    assert len(waited) == 2 and min(waited) >= 0.5


@pytest.mark.parametrize(
    ("bad", "reason", "sent"),
    [
        (Answer(status=500), "HTTP 500: no luck after 2 attempts", 2),
        (Answer(status=400), "HTTP 400: no luck", 1),
        (Answer(closes=True), "no connection", 2),
        (Answer(raw=b"<html>busy</html>"), "the answer cannot be read", 1),
        (Answer(raw=b"{}"), "the answer is no chat completion", 1),
        (Answer(raw=b"[]"), "the answer", 1),
        (Answer(status=429, headers={"Retry-After": "86400"}), "HTTP 429", 1),
        (Answer("I like both."), "no verdict in the reply: its last line is 'I like both.'", 1),
    ],
)
def test_what_fails_for_good_is_an_error_and_never_cached(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer], bad: Answer, reason: str, sent: int
) -> None:
    is_well = threading.Event()

    def decide(text: str, times: int) -> Answer:
        return (
            bad if "question 3" in text and sides(text)[0] == "answer 3" and not is_well.is_set() else longer(text, 0)
        )

    server = serve(decide)
    ran = judge(_rows(8), endpoint=_server(server, attempts=2))
    (row,) = [row for row in _read(ran, "verdicts.jsonl") if row["outcome"] == "error"]
    assert reason in row["error"]
    assert row["prompt"][0]["content"] == "question 3"
    (verdict,) = {order["verdict"] for order in row["orders"] if order is not None} - {None}  # of the other order
    assert verdict in ("A", "B")
    replies = [order["reply"] for order in row["orders"] if order is not None and order["verdict"] is None]
    assert replies == (["I like both."] if "no verdict" in reason else [])
    metrics = ran.outcome.result.metrics
    assert (metrics["errors"], metrics["preferences"], metrics["ties"]) == (1.0, 7.0, 0.0)
    assert metrics["parse_failures"] == float("no verdict" in reason)
    assert len(server.asked) == 15 + sent
    assert any("1 pair has no verdict and is left out" in note for note in ran.notes)
    is_well.set()
    asked = len(server.asked)
    mended = judge(_rows(8), endpoint=_server(server))
    assert len(server.asked) == asked + 1  # only what failed
    assert mended.outcome.result.metrics["errors"] == 0


def test_a_slow_server_is_an_error_of_its_own(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    released = threading.Event()

    def decide(text: str, times: int) -> Answer:
        if "question 7" in text:
            released.wait(60)
        return longer(text, times)

    server = serve(decide)
    judge(_rows(7), endpoint=_server(server))
    ran = judge(_rows(8), endpoint=_server(server, attempts=1, timeout_s=0.3))
    released.set()
    (row,) = [row for row in _read(ran, "verdicts.jsonl") if row["outcome"] == "error"]
    assert row["error"] == "no answer within 0.3 s"


def test_too_many_errors_end_the_stage_and_keep_what_was_paid(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    is_well = threading.Event()

    def decide(text: str, times: int) -> Answer:
        number = int(sides(text)[0].rsplit(" ", 1)[1])
        return longer(text, times) if number < 5 or is_well.is_set() else Answer(status=500)

    server = serve(decide)
    ran = judge(_rows(10), endpoint=_server(server, attempts=1, parallel=1), max_errors=0.3, expect="failed")
    problem = str(ran.outcome.problems[0])
    assert "pairs have no verdict" in problem and "HTTP 500: no luck" in problem
    assert "expected at most 30% (max_errors)" in problem
    assert "more than 30% of the pairs had failed" in problem
    assert ran.outcome.exit_code == 1
    # 5 pairs of 2 calls, then 3 failing pairs of 2 calls and the first call of the fourth
    assert len(server.asked) == 10 + 6 + 1
    is_well.set()
    done = judge(_rows(10), endpoint=_server(server))
    assert done.outcome.result.metrics["cached"] == 10.0
    assert done.outcome.result.metrics["preferences"] == 10.0


def test_a_server_that_is_not_there_or_knows_nobody_is_given_up_at_once(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = judge(
        _rows(300), endpoint=_server(f"http://127.0.0.1:{free_port()}/v1", attempts=2, parallel=2), expect="failed"
    )
    problem = str(ran.outcome.problems[0])
    assert "none of the first 1" in problem and "no connection" in problem
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")

    def refuse(text: str, times: int) -> Answer:
        return Answer(status=401, raw=b'{"error": {"message": "wrong key sk-very-secret"}}')

    server = serve(refuse)
    ran = judge(_rows(300), endpoint=_server(server, key_env="JUDGE_KEY", parallel=2), expect="failed")
    problem = str(ran.outcome.problems[0])
    assert "HTTP 401: wrong key …" in problem
    assert len(server.asked) <= 3
    assert set(server.keys) == {"Bearer sk-very-secret"}
    told = [*ran.out.parent.rglob("*"), cache_of(ran.work.parents[2]).file]
    assert all(b"sk-very-secret" not in file.read_bytes() for file in told if file.is_file())
    assert "sk-very-secret" not in f"{ran.outcome} {ran.events}"


def test_a_key_for_another_server_is_not_sent(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another")
    server = serve(longer)
    judge(_rows(2), endpoint=_server(server))
    assert set(server.keys) == {"Bearer none"}


def test_calls_and_tokens_over_the_cap_are_not_sent(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server = serve(longer)
    ran = judge(_rows(10), endpoint=_server(server, max_calls=19), expect="failed")
    problem = str(ran.outcome.problems[0])
    assert problem.startswith("endpoint.max_calls is 19; there are 10 pairs to judge with 20 calls to m at 127.0.0.1:")
    ran = judge(_rows(10), endpoint=_server(server, max_tokens_total=100), expect="failed")
    assert "endpoint.max_tokens_total is 100; there are 10 pairs" in str(ran.outcome.problems[0])
    assert server.asked == []


def test_repeated_attempts_count_as_calls(judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]) -> None:
    server = serve(lambda text, times: Answer(status=500) if times == 0 else longer(text, times))
    ran = judge(_rows(10), endpoint=_server(server, max_calls=25, parallel=1), expect="failed")
    assert len(server.asked) == 25
    assert "endpoint.max_calls is 25, and repeated calls count too" in str(ran.outcome.problems[0])
    done = judge(_rows(10), endpoint=_server(server, max_calls=25))
    assert done.outcome.result.metrics["cached"] == 12.0


def test_a_stop_keeps_the_verdicts_and_the_next_run_asks_for_the_rest(
    judge: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server = serve(longer)
    stopped = judge(_rows(30), endpoint=_server(server, parallel=1), stopping=StopAfter(5), expect="stopped")
    asked, known = len(server.asked), len(cache_of(stopped.work.parents[2]).known(_keys(server.url)))
    assert asked < 60 and asked - known in (0, 1)  # the last one may have had no time to end
    done = judge(_rows(30), endpoint=_server(server))
    assert done.outcome.result.metrics["cached"] == known
    assert len(server.asked) - asked == 60 - known


@pytest.mark.slow
def test_killed_in_the_middle_it_asks_only_what_is_missing(
    tmp_path: Path, serve: Callable[[Decide], JudgeServer], command: Any, call: Any, write_jsonl: Any, judge: Any
) -> None:
    rest = threading.Event()

    def decide(text: str, times: int) -> Answer:
        if int(sides(text)[0].rsplit(" ", 1)[1]) >= 15:
            rest.wait(600)
        return longer(text, times)

    server = serve(decide)
    write_jsonl(tmp_path / "rows.jsonl", _rows(30))
    recipe = tmp_path / "ai.yaml"
    stage = json.dumps({"kind": "judge", "data": "rows", "endpoint": _server(server)})
    recipe.write_text(f"name: ai\ndata: {{rows: {{path: rows.jsonl}}}}\nstages: {{verdicts: {stage}}}\n")
    cache = cache_of(tmp_path / "killed")
    running = command.start("run", recipe, "--store", "killed", cwd=tmp_path)
    keys = _keys(server.url)
    until(lambda: len(cache.known(keys)) >= 24 or running.poll() is not None, "24 verdicts in the cache")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    known = set(cache.known(keys))
    assert 24 <= len(known) <= 30
    rest.set()
    before = len(server.asked)
    again = call("run", recipe, "--store", "killed", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"with {60 - len(known)} calls" in again.stdout
    assert len(server.asked) - before == 60 - len(known)
    (killed,) = (tmp_path / "killed" / "verdicts").iterdir()
    whole = judge(_rows(30), endpoint=_server(server))
    assert [(killed / name).read_bytes() for name in FILES] == [(whole.out / name).read_bytes() for name in FILES]


def _keys(url: str) -> list[str]:
    """Return the keys of all requests for 30 rows."""
    endpoint = Config.model_validate({"data": "rows", "endpoint": _server(url)}).endpoint
    assert endpoint is not None
    turns = [
        {
            key: [{"role": "user" if key == "prompt" else "assistant", "content": row[key]}]
            for key in row
            if key != "bonus"
        }
        for row in _rows(30)
    ]
    return [request.key for pair in pairs_of(turns, "preference").pairs for request in endpoint.requests(pair)]


def _recipe(folder: Path, write_jsonl: Any, stage: str) -> Path:
    write_jsonl(folder / "rows.jsonl", _rows(10))
    recipe = folder / "ai.yaml"
    recipe.write_text(
        f"name: ai\ndata: {{rows: {{path: rows.jsonl}}}}\nstages:\n  verdicts: {{kind: judge, data: rows, {stage}}}\n"
    )
    return recipe


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("max_errors: 0.1", "no judge is set; expected one of reward, function and endpoint"),
        (
            "function: f.py:f, endpoint: {url: 'http://h/v1', model: m}",
            "function and endpoint are set; expected one of",
        ),
        ("pairwise: true, endpoint: {url: 'http://h/v1', model: m}", "pairwise is true without a function"),
        ("endpoint: {url: 'http://h/v1', model: m, template: hi}", "endpoint.template lacks {prompt} and {first} and"),
        (
            "endpoint: {url: 'http://h/v1', model: m, key_env: NO_SUCH_KEY}",
            "endpoint.key_env is NO_SUCH_KEY, and that variable is not set. Run `export NO_SUCH_KEY=…` first",
        ),
        (
            "endpoint: {url: 'http://h/v1', model: m, max_calls: 5}",
            "endpoint.max_calls is 5; there are 10 pairs to judge with 20 calls to m at h",
        ),
    ],
)
def test_check_tells_what_is_wrong_before_anything_is_sent(
    tmp_path: Path, write_jsonl: Any, stage: str, message: str, call: Any
) -> None:
    (tmp_path / "f.py").write_text("def f(completions, **columns):\n    return [0.0 for _ in completions]\n")
    recipe = _recipe(tmp_path, write_jsonl, stage)
    checked = call("check", recipe, "--store", "store", cwd=tmp_path)
    assert checked.returncode == 2, checked.stdout
    assert message in checked.stderr
    assert "ai.yaml:4 stage verdicts: " in checked.stderr


def test_missing_libraries_are_told_for_a_server_only(
    tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.endpoints.settings.MODULES", ("openai_that_is_not_there",))
    (tmp_path / "f.py").write_text("def f(completions, **columns):\n    return [0.0 for _ in completions]\n")
    store = Store(tmp_path / "store")
    check_plan(make_plan(load(_recipe(tmp_path, write_jsonl, "function: f.py:f")), store), store)
    recipe = _recipe(tmp_path, write_jsonl, "endpoint: {url: 'http://h/v1', model: m}")
    with pytest.raises(PipelineError) as caught:
        check_plan(make_plan(load(recipe), store), store)
    assert "endpoint is set, and openai_that_is_not_there is not installed. Run `pip install 'trueup[judge]'`" in str(
        caught.value
    )


def test_a_dry_run_tells_the_calls_and_sends_none(
    tmp_path: Path, write_jsonl: Any, serve: Callable[[Decide], JudgeServer], call: Any
) -> None:
    server = serve(longer)
    recipe = _recipe(tmp_path, write_jsonl, f"endpoint: {{url: '{server.url}', model: m, max_tokens: 5}}")
    said = "stage verdicts: 10 pairs to judge with 20 calls to m at 127.0.0.1:"
    for line in (("run", recipe, "--dry-run"), ("plan", recipe), ("check", recipe)):
        shown = call(*line, "--store", "store", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert said in shown.stdout and "and replies of at most 100" in shown.stdout
    data = json.loads(call("plan", recipe, "--json", "--store", "store", cwd=tmp_path).stdout)
    assert data["requests"][0] | {"prompt_tokens": 0, "server": ""} == {
        "stage": "verdicts",
        "pairs": 10,
        "calls": 20,
        "cached": 0,
        "prompt_tokens": 0,
        "completion_tokens": 100,
        "server": "",
    }
    assert server.asked == []
