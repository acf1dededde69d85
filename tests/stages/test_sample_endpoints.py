"""Models behind servers answer beside checkpoints: cached, resumed, capped, blind, and independent of the ranks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, Decide, JudgeServer
from stopping import StopAfter

from pipeline.endpoints.answers import AnswerEndpoint, AnswerSampling, answer_request, answers_cache
from pipeline.stages.sample.config import Config

FILES = ("candidates.jsonl", "pairs.jsonl")


def _said(text: str, times: int) -> Answer:
    return Answer(f"  it is {len(text)} . and {text[-3:]} ")


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
    rows = [{"prompt": f"question {i}", "answer": i} for i in range(10)]

    def run(endpoints: dict[str, Any], **more: Any) -> Any:
        options = {key: more.pop(key) for key in list(more) if key in ("stopping", "expect", "seed", "name")}
        data = write_jsonl(tmp_path / "rows.jsonl", more.pop("rows", rows))
        (tmp_path / "store").mkdir(exist_ok=True)
        out = tmp_path / "store" / ".work" / options.pop("name", f"s-{len(list(tmp_path.rglob('payload')))}")
        config = {"n": 2, "max_new_tokens": 6, "endpoints": endpoints, **more}
        return run_stage(
            "sample", config, data={"data": data}, out=out, responses=tmp_path / "store" / ".responses", **options
        )

    return run


def _rows(ran: Any, name: str = "candidates.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.out / name).read_text(encoding="utf-8").splitlines()]


def _bytes(ran: Any) -> list[bytes]:
    return [(ran.out / name).read_bytes() for name in FILES]


def test_an_endpoint_alone_answers_every_prompt(
    sample: Callable[..., Any], serve: Callable[[Decide], JudgeServer]
) -> None:
    server = serve(lambda text, times: Answer(f" it is {text[-1]} or {times} "))
    ran = sample({"big": _endpoint(server, system="Be short.")}, temperatures=[0.5, 1.0], top_p=0.9)
    rows = _rows(ran)
    assert len(server.asked) == 40 and len(rows) == 10
    for row in rows:
        both = [(one["temperature"], one["sample"]) for one in row["candidates"]]
        assert both == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
        one = row["candidates"][0]
        assert one["text"].startswith("it is ") and one["text"] == one["text"].strip()
        assert (one["model"], one["ref"], one["tokens"], one["finish_reason"]) == ("big", "endpoint:m", 1, "eos")
        assert one["log_probability"] is None
    bodies = server.asked
    assert {body["temperature"] for body in bodies} == {0.5, 1.0}
    assert all(body["max_tokens"] == 6 and body["top_p"] == 0.9 and "logprobs" not in body for body in bodies)
    assert all(body["messages"][0] == {"role": "system", "content": "Be short."} for body in bodies)
    assert len({body["seed"] for body in bodies}) == 40
    assert all(not (key or "").endswith("secret") for key in server.keys)
