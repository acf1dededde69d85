"""Models behind servers answer prompts: cached, resumed, capped, and independent of how their replies come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, Decide, JudgeServer
from ports import free_port
from stopping import StopAfter
from waiting import until

from pipeline.artifacts import Store
from pipeline.endpoints.answers import AnswerEndpoint, AnswerSampling, answer_request, answers_cache
from pipeline.stages.sample.config import Config, endpoint_passes

FILES = ("candidates.jsonl", "pairs.jsonl")
ROWS = [{"prompt": f"question {i}", "answer": str(i)} for i in range(10)]


@pytest.fixture
def serve() -> Iterator[Callable[[Decide], JudgeServer]]:
    with contextlib.ExitStack() as stack:
        yield lambda decide: stack.enter_context(JudgeServer(decide).running())


def _endpoint(server: JudgeServer | str, **more: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    return {"url": url, "model": "m", "parallel": 4, "backoff_s": 0.01, "timeout_s": 20, **more}


@pytest.fixture
def sample(tmp_path: Path, run_stage: Callable[..., Any], write_jsonl: Any) -> Callable[..., Any]:
    """Ask endpoints alone, in a store of the test's own."""
    store = tmp_path / "store"

    def run(endpoints: dict[str, Any], **more: Any) -> Any:
        options = {key: more.pop(key) for key in list(more) if key in ("stopping", "expect", "seed")}
        data = write_jsonl(tmp_path / "rows.jsonl", more.pop("rows", ROWS))
        number = len(list(store.glob(".work/*"))) if store.exists() else 0
        out, kept = store / ".work" / f"sample-{number}", store / ".responses"
        config = {"n": 2, "max_new_tokens": 6, "endpoints": endpoints, **more}
        return run_stage("sample", config, data={"data": data}, out=out, responses=kept, **options)

    return run


def _rows(ran: Any, name: str = "candidates.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.out / name).read_text(encoding="utf-8").splitlines()]


def _bytes(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def _by_seed(text: str, times: int) -> Answer:
    return Answer(f" it is {text[9:]} or {times} ")


def test_an_endpoint_answers_every_prompt_at_every_temperature(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-secret")
    server = serve(_by_seed)
    endpoint = _endpoint(server, system="Be short.", key_env="BIG_KEY", revision="2")
    ran = sample({"big": endpoint}, temperatures=[0.5, 1.0], top_p=0.9)
    rows = _rows(ran)
    assert len(server.asked) == 40 and len(rows) == 10
    for row in rows:
        origins = {(one["temperature"], one["sample"]) for one in row["candidates"]}
        assert origins == {(heat, number) for heat in (0.5, 1.0) for number in (0, 1)}
        one = row["candidates"][0]
        assert one["text"].startswith("it is ") and one["text"] == one["text"].strip()
        assert (one["model"], one["ref"], one["tokens"], one["finish_reason"]) == ("big", "endpoint:m@2", 1, "eos")
        assert one["log_probability"] is None
    assert {body["temperature"] for body in server.asked} == {0.5, 1.0}
    for body in server.asked:
        assert (body["max_tokens"], body["top_p"], body["model"]) == (6, 0.9, "m")
        assert "logprobs" not in body and "stop" not in body
        assert body["messages"][0] == {"role": "system", "content": "Be short."}
    assert len({body["seed"] for body in server.asked}) == 40
    assert set(server.keys) == {"Bearer sk-secret"}
    told = [file for file in ran.out.parent.rglob("*") if file.is_file()]
    assert told and not any(b"sk-secret" in file.read_bytes() for file in told)
    metrics = ran.outcome.result.metrics
    assert (metrics["candidates"], metrics["errors"], metrics["mean_tokens"]) == (40.0, 0.0, 1.0)
    assert any(event.kind == "progress" and event.metrics["tokens_per_s"] > 0 for event in ran.events)


def test_a_text_is_cut_at_a_stop_string_and_other_ones_ask_nothing_anew(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    def decide(text: str, times: int) -> Answer:
        finish = {"0": "length", "1": None}.get(text[9:], "stop")
        return Answer(f"{text} # {times}", finish=finish)

    server = serve(decide)
    rows = _rows(sample({"big": _endpoint(server)}))
    assert [row["candidates"][0]["finish_reason"] for row in rows] == ["max_new_tokens", *["eos"] * 9]
    cut = sample({"big": _endpoint(server)}, stop=["7", "#"], expect="failed")
    assert "no prompt has enough different answers" in str(cut.outcome.problems[0])  # all are `question N`
    cut = _rows(sample({"big": _endpoint(server)}, stop=["n 7"]))
    assert [one["finish_reason"] for one in cut[7]["candidates"]] == ["stop"]
    assert [one["text"] for one in cut[7]["candidates"]] == ["questio"]
    assert len(server.asked) == 20


def test_one_more_endpoint_and_other_limits_ask_only_what_is_new(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server, other = serve(_by_seed), serve(_by_seed)
    first = sample({"big": _endpoint(server)})
    assert sample({"big": _endpoint(server)}).outcome.result.metrics == first.outcome.result.metrics
    assert len(server.asked) == 20
    both = _rows(sample({"small": _endpoint(other, model="s"), "big": _endpoint(server)}))
    assert (len(server.asked), len(other.asked)) == (20, 20)
    for one, row in zip(_rows(first), both, strict=True):
        assert [c["text"] for c in row["candidates"] if c["model"] == "big"] == [c["text"] for c in one["candidates"]]
    few = _rows(sample({"again": _endpoint(other, model="s", parallel=1)}, limit=3, n=3))
    assert len(other.asked) == 20 + 3  # the third answer to three prompts; neither address nor name matter
    assert all(c["model"] == "again" for row in few for c in row["candidates"])
    sample({"big": _endpoint(server, revision="2")}, limit=3)
    assert len(server.asked) == 26


def test_log_probabilities_are_the_server_s_or_null_with_a_sentence(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    with_them = serve(lambda text, times: Answer(f"{times}", logprobs={"x": -1.0}))
    without = serve(lambda text, times: Answer(f"{times} words", counts=False))
    endpoints = {"kind": _endpoint(with_them), "mute": _endpoint(without, model="n")}
    ran = sample(endpoints, log_probabilities=True)
    for row in _rows(ran):
        for one in row["candidates"]:
            assert one["log_probability"] == (0.0 if one["model"] == "kind" else None)
            assert one["tokens"] == (1 if one["model"] == "kind" else 2)  # 7 bytes
    assert all(body["logprobs"] is True for body in with_them.asked)
    assert "mute: the server gives no log-probabilities; they are null" in ran.notes
    assert "mute: the server counts no tokens; lengths are estimates, a token for every 4 bytes" in ran.notes
    assert not any(note.startswith("kind: the server") for note in ran.notes)


def test_what_fails_for_a_while_is_asked_again(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    passing = [Answer(status=429, headers={"Retry-After": "0.01"}), Answer(status=500), Answer(closes=True)]

    def decide(text: str, times: int) -> Answer:
        return passing[times] if times < len(passing) else Answer(f"{text} {times}")

    server = serve(decide)
    ran = sample({"big": _endpoint(server, parallel=1, attempts=6)}, rows=ROWS[:1])
    assert ran.outcome.result.metrics["errors"] == 0.0
    assert len(server.asked) == 2 + 3
    assert ran.outcome.runtime_report["endpoints"]["big"] == {"calls_sent": 5, "cached": 0}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Answer(status=500), "HTTP 500: no luck after 2 attempts"),
        (Answer(status=400), "HTTP 400: no luck"),
        (Answer(raw=b"{}"), "the answer is no chat completion"),
        (Answer("half an", finish="content_filter"), "the server withheld the answer"),
    ],
)
def test_a_failed_answer_is_counted_left_out_and_never_cached(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer], bad: Answer, reason: str
) -> None:
    is_well = threading.Event()

    def decide(text: str, times: int) -> Answer:
        return bad if text == "question 3" and not is_well.is_set() else Answer(f"{text} {times}")

    server = serve(decide)
    ran = sample({"big": _endpoint(server, attempts=2)})
    errors = _rows(ran, "errors.jsonl")
    assert [(one["model"], one["row"], one["sample"]) for one in errors] == [("big", 3, 0), ("big", 3, 1)]
    assert all(one["error"].startswith(reason) for one in errors)
    assert [len(row["candidates"]) for row in _rows(ran)] == [2, 2, 2, 0, 2, 2, 2, 2, 2, 2]
    assert ran.outcome.result.metrics["errors"] == 2.0
    assert "big: 2 answers failed and are left out" in ran.notes
    is_well.set()
    asked = len(server.asked)
    mended = sample({"big": _endpoint(server)})
    assert len(server.asked) == asked + 2  # only what failed
    assert mended.outcome.result.metrics["errors"] == 0.0 and not (mended.out / "errors.jsonl").exists()


def test_a_server_that_goes_away_ends_the_stage_and_the_next_run_asks_for_the_rest(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer], tmp_path: Path
) -> None:
    is_well = threading.Event()

    def decide(text: str, times: int) -> Answer:
        is_bad = int(text[9:]) >= 4 and not is_well.is_set()
        return Answer(closes=True) if is_bad else Answer(f"{text} is {len(text)}")

    server = serve(decide)
    config: dict[str, Any] = {"temperatures": [0.5, 1.0], "n": 1}
    ran = sample({"big": _endpoint(server, attempts=1, parallel=1)}, expect="failed", **config)
    problem = str(ran.outcome.problems[0])
    assert problem.startswith("big: ") and "of 20 answers failed" in problem and "no connection" in problem
    assert "expected at most 20% (max_errors)" in problem and "only what failed is asked" in problem
    assert ran.outcome.exit_code == 1
    assert len(answers_cache(tmp_path / "store").known(_keys(server, config))) == 4
    assert "no connection" in (ran.work / "errors.jsonl").read_text()
    is_well.set()
    asked = len(server.asked)
    again = sample({"big": _endpoint(server)}, expect="failed", **config)
    assert len(server.asked) == asked + 16
    assert "no prompt has enough different answers" in str(again.outcome.problems[0])  # it says one thing only


def _keys(server: JudgeServer, config: dict[str, Any], count: int = 10) -> list[str]:
    """Return the keys of all requests of `sample`."""
    whole = Config.model_validate(
        {"data": "d", "n": 2, "max_new_tokens": 6, "endpoints": {"big": _endpoint(server)}, **config}
    )
    rows = [{"prompt": [{"role": "user", "content": f"question {i}"}]} for i in range(count)]
    return [one.key for each in endpoint_passes(whole, rows, range(count), 7) for one in each.requests]


def test_a_wrong_key_or_address_is_told_at_once(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-wrong")
    server = serve(lambda text, times: Answer(status=401))
    ran = sample({"big": _endpoint(server, key_env="BIG_KEY", parallel=2)}, expect="failed")
    assert "HTTP 401: no luck" in str(ran.outcome.problems[0]) and len(server.asked) <= 4
    assert "sk-wrong" not in str(ran.outcome.problems[0])
    gone = _endpoint(f"http://127.0.0.1:{free_port()}/v1", attempts=1, parallel=1)
    ran = sample({"big": gone}, expect="failed")
    assert "no connection" in str(ran.outcome.problems[0])
    monkeypatch.delenv("BIG_KEY")
    ran = sample({"big": _endpoint(server, key_env="BIG_KEY")}, expect="failed")
    assert "endpoints.big.key_env is BIG_KEY, and that variable is not set" in str(ran.outcome.problems[0])


def test_nothing_is_sent_if_one_endpoint_has_more_to_send_than_allowed(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server = serve(_by_seed)
    endpoints = {"a": _endpoint(server), "b": _endpoint(server, model="n", max_calls=19)}
    ran = sample(endpoints, expect="failed")
    problem = str(ran.outcome.problems[0])
    assert problem.startswith("endpoints.b.max_calls is 19; there are 20 answers to sample with 20 calls to n at 127.")
    assert problem.endswith("Raise it, or ask for fewer answers with `limit` or `n`")
    endpoints["b"] = _endpoint(server, model="n", max_tokens_total=50)
    assert "endpoints.b.max_tokens_total is 50" in str(sample(endpoints, expect="failed").outcome.problems[0])
    assert server.asked == []


def test_a_stop_keeps_the_answers_and_the_next_run_ends_in_the_same_bytes(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer], tmp_path: Path
) -> None:
    def decide(text: str, times: int) -> Answer:
        return Answer(f"{text} is {times % 2}")

    server, keys = serve(decide), _keys(serve(decide), {"temperatures": [1.0]})
    stopped = sample({"big": _endpoint(server, parallel=1)}, stopping=StopAfter(5), expect="stopped")
    assert not (stopped.out / "candidates.jsonl").exists()
    asked, known = len(server.asked), len(answers_cache(tmp_path / "store").known(keys))
    assert 0 < known < 20 and asked - known in (0, 1)  # the last one may have had no time to end
    done = sample({"big": _endpoint(server)})
    assert len(server.asked) - asked == 20 - known
    again = sample({"big": _endpoint(server)})
    assert _bytes(done.out) == _bytes(again.out)


def test_answers_that_name_a_model_are_in_no_pair(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    def decide(text: str, times: int) -> Answer:
        return Answer(f"As an AI language model, I am {times}" if text == "question 1" else f"it is {times}")

    ran = sample({"secret-name": _endpoint(serve(decide))})
    assert [one["names_model"] for one in _rows(ran)[1]["candidates"]] == [True, True]
    assert not _rows(ran)[1]["pairs"]
    assert "secret-name" not in (ran.out / "pairs.jsonl").read_text()  # what people are shown


def test_a_request_is_what_the_interface_takes() -> None:
    endpoint = AnswerEndpoint.model_validate(
        {
            "url": "http://h/v1",
            "model": "m",
            "system": "S",
            "length_field": "max_completion_tokens",
            "send_seed": False,
            "parameters": {"reasoning_effort": "low"},
        }
    )
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
    row = {
        "prompt": [
            {"role": "system", "content": "own"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm", "train": False},
            {"role": "tool", "content": "2", "tool_call_id": "1", "name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    request = answer_request(endpoint, AnswerSampling(0.0, 9), row, 5)
    assert request.body == {
        "model": "m",
        "temperature": 0.0,
        "max_completion_tokens": 9,
        "tools": row["tools"],
        "reasoning_effort": "low",
    }
    assert request.messages == [
        {"role": "system", "content": "own"},  # its own system message, and not that of the endpoint
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "f"},
    ]
    other = answer_request(endpoint, AnswerSampling(0.0, 9), row, 6)
    assert other.body == request.body and other.key != request.key  # another sample of the same request


SERVER = "{url: 'http://h/v1', model: m}"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("n: 2", "neither models nor endpoints is set; expected `models`, checkpoints that answer, or `endpoints`"),
        (f"endpoints: {{a: {SERVER}}}, n: 1", "n is 1, with one model at one temperature; expected two answers"),
        (f"endpoints: {{a: {SERVER}, b: {SERVER}}}", "endpoints.b asks the same of the same model as endpoints.a"),
        ("endpoints: {a: {url: ftp://h, model: m}}", "endpoints.a.url is 'ftp://h'; expected the base URL"),
        (
            "endpoints: {a: {url: 'http://h:99999/v1', model: m}}",
            "endpoints.a.url is 'http://h:99999/v1'; expected the",
        ),
        ("endpoints: {a: {url: 'http://h/v1?k=1', model: m}}", "endpoints.a.url holds a query or a fragment"),
        ("endpoints: {a: {url: 'http://h/v1', model: m, paralel: 2}}", "key `paralel` in `endpoints.a`. Did you mean"),
        ("endpoints: {a: {url: 'http://h/v1', model: m, zzz: 2}}", "in `endpoints.a`; expected one of url, model, "),
        (
            f"endpoints: {{a: {SERVER}}}, n: 2, pair_choice: rank",
            "n is 2, and each prompt has 2 answers; expected 3 answers or more to rank. Raise n",
        ),
        (f"endpoints: {{a/b: {SERVER}}}", "endpoints names one `a/b`; expected letters"),
        (f"endpoints: {{a: {SERVER}}}, top_k: 5", "top_k is 5, which chat completions do not have"),
        (
            "endpoints: {a: {url: 'http://h/v1', model: m, parameters: {seed: 1}}}",
            "endpoints.a.parameters names `seed`",
        ),
        ("models: [gpt2], max_errors: 0.5", "max_errors has no effect without endpoints"),
        ("endpoints: {a: {url: 'http://h/v1'}}", "stage asked: `endpoints.a.model` is missing"),
        (
            "endpoints: {a: {url: 'http://h/v1', model: m, key_env: NO_SUCH_KEY}}",
            "endpoints.a.key_env is NO_SUCH_KEY, and that variable is not set",
        ),
        (
            "endpoints: {a: {url: 'http://h/v1', model: m, max_calls: 5}}",
            "endpoints.a.max_calls is 5; there are 20 answers to sample with 20 calls to m at h",
        ),
    ],
)
def test_check_tells_what_is_wrong_before_anything_is_sent(
    tmp_path: Path, write_jsonl: Any, call: Any, stage: str, message: str
) -> None:
    more = "" if "n: 1" in stage or "n: 2" in stage else ", n: 2"
    shown = call("check", _recipe(tmp_path, write_jsonl, stage + more), "--store", "store", cwd=tmp_path)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert message in " ".join((shown.stdout + shown.stderr).split())
    assert "ask.yaml:" in shown.stdout + shown.stderr


def test_a_baseline_that_is_missing_is_told_once(tmp_path: Path, write_jsonl: Any, call: Any) -> None:
    recipe = _recipe(tmp_path, write_jsonl, "endpoints: {a: " + SERVER + "}, gold: gold.py:gold")
    recipe.write_text(recipe.read_text().replace("kind: sample", "kind: evaluate"))
    (tmp_path / "gold.py").write_text("def gold(prompts, completions, **columns): return [0.0] * len(prompts)\n")
    shown = call("check", recipe, "--store", "store", cwd=tmp_path)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    (line,) = shown.stderr.splitlines()
    assert "stage asked: `baseline` is missing; expected one of `models` or `endpoints`" in line


def _recipe(folder: Path, write_jsonl: Any, stage: str) -> Path:
    write_jsonl(folder / "rows.jsonl", ROWS)
    recipe = folder / "ask.yaml"
    recipe.write_text(
        "name: ask\nseed: 7\ndata: {rows: {path: rows.jsonl}}\n"
        f"stages:\n  asked: {{kind: sample, data: rows, max_new_tokens: 6, {stage}}}\n"
    )
    return recipe


def test_a_dry_run_tells_the_calls_and_sends_none(
    tmp_path: Path, write_jsonl: Any, serve: Callable[[Decide], JudgeServer], call: Any
) -> None:
    server = serve(_by_seed)
    stage = f"endpoints: {{a: {{url: '{server.url}', model: m}}, b: {{url: '{server.url}', model: n}}}}, limit: 4"
    recipe = _recipe(tmp_path, write_jsonl, stage)
    for line in (("run", recipe, "--dry-run"), ("plan", recipe), ("check", recipe)):
        shown = call(*line, "--store", "store", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        for model in "mn":
            assert f"stage asked: 8 answers to sample with 8 calls to {model} at 127.0.0.1:" in shown.stdout
        assert "and replies of at most 48" in shown.stdout
    data = json.loads(call("plan", recipe, "--json", "--store", "store", cwd=tmp_path).stdout)
    assert [(one["stage"], one["answers"], one["calls"]) for one in data["requests"]] == [("asked", 8, 8)] * 2
    assert server.asked == []


def _identity(body: dict[str, Any]) -> str:
    return f"{body['messages'][-1]['content']} {body['model']} {body['seed']}"


def test_killed_in_the_middle_it_asks_only_what_is_missing_and_ends_in_the_same_bytes(
    tmp_path: Path, command: Any, call: Any, write_jsonl: Any
) -> None:
    rest = threading.Event()

    def decide(text: str, times: int) -> Answer:
        if int(text.split()[1]) >= 5:
            rest.wait(600)
        return Answer(f"it is {text.split()[-1]}")

    with JudgeServer(decide, _identity).running() as server:
        stage = f"endpoints: {{a: {{url: '{server.url}', model: m}}, b: {{url: '{server.url}', model: n}}}}"
        recipe = _recipe(tmp_path, write_jsonl, stage)
        cache = answers_cache(tmp_path / "killed")
        running = command.start("run", recipe, "--store", "killed", cwd=tmp_path)
        keys = _keys(server, {"temperatures": [1.0]})
        until(lambda: len(cache.known(keys)) >= 8 or running.poll() is not None, "8 answers in the cache")
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        known = len(cache.known(keys))
        assert 8 <= known <= 10
        rest.set()
        before = len(server.asked)
        for store, left in (("killed", 40 - known), ("whole", 40)):
            ended = call("run", recipe, "--store", store, cwd=tmp_path)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert len(server.asked) - before == left
            before = len(server.asked)
    killed, whole = (Store(tmp_path / store).artifacts("asked")[-1] for store in ("killed", "whole"))
    assert _bytes(killed.path) == _bytes(whole.path)
    assert killed.manifest.fingerprint == whole.manifest.fingerprint
