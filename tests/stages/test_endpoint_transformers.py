"""A checkpoint behind a real server answers beside others: `transformers serve`, on the tiny chain's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_server import served

pytest.importorskip("fastapi", reason="`transformers serve` needs fastapi, of the extra `test`")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serve")]

FILES = ("candidates.jsonl", "pairs.jsonl")


@pytest.fixture(scope="module")
def url(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the chain's `dpo` checkpoint."""
    with served(chain["dpo"].path, tmp_path_factory.mktemp("home")) as url:
        yield url


@pytest.fixture
def stage(chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a stage on the chain's prompts, in a store of the test's own."""
    store = tmp_path / "store"

    def run(kind: str, *models: str, out: str = "", **config: Any) -> Any:
        number = len(list(store.glob(".work/*"))) if store.exists() else 0
        options = {key: config.pop(key) for key in list(config) if key in ("expect", "stopping")}
        return run_stage(
            kind,
            {"max_new_tokens": 8, **config},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": [as_input(chain[name]) for name in models]} if models else {},
            out=store / ".work" / (out or f"{kind}-{number}"),
            responses=store / ".responses",
            **options,
        )

    return run


def _served(url: str, chain: Any, **more: Any) -> dict[str, Any]:
    return {"url": url, "model": str(chain["dpo"].path), "parallel": 2, "timeout_s": 120, "backoff_s": 0.01, **more}


def _rows(ran: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.out / FILES[0]).read_text(encoding="utf-8").splitlines()]


def _of(row: dict[str, Any], model: str) -> list[str]:
    return [one["text"] for one in row["candidates"] if one["model"] == model]


def test_it_answers_beside_two_checkpoints_and_one_more_asks_it_nothing(
    stage: Callable[..., Any], chain: Any, url: str
) -> None:
    endpoints = {"server": _served(url, chain)}
    ran = stage("sample", "sft", "dpo", n=2, limit=6, endpoints=endpoints, log_probabilities=True)
    rows = _rows(ran)
    assert len(rows) == 6
    for row in rows:
        origins = {one["model"]: one for one in row["candidates"]}
        assert set(origins) <= {"sft", "dpo", "server"}
        for one in row["candidates"]:
            assert (one["log_probability"] is None) is (one["model"] == "server")  # it passes over `logprobs`
            assert 0 < one["tokens"] <= 8 and one["finish_reason"] in ("eos", "max_new_tokens")
    assert any(_of(row, "server") for row in rows)
    assert "server: the server gives no log-probabilities; they are null" in ran.notes
    greedy = "server: its answers to a prompt are all the same, so the server does not sample"
    assert any(note.startswith(greedy) for note in ran.notes)
    assert ran.outcome.runtime_report["endpoints"]["server"] == {"calls_sent": 12, "cached": 0}
    more = stage("sample", "base", "sft", "dpo", n=2, limit=6, endpoints=endpoints, log_probabilities=True)
    assert "endpoints" not in more.outcome.runtime_report  # all are cached, so it is not asked
    assert any(f"no calls to send to {chain['dpo'].path}" in note for note in more.notes)
    again = stage("sample", "sft", "dpo", n=2, limit=6, endpoints=endpoints, log_probabilities=True)
    assert [(again.out / name).read_bytes() for name in FILES] == [(ran.out / name).read_bytes() for name in FILES]


def test_the_greedy_answers_are_those_of_the_checkpoint_itself(
    stage: Callable[..., Any], chain: Any, url: str, load_plain: Callable[[Path], tuple[Any, Any]], tmp_path: Path
) -> None:
    """An evaluation compares it with checkpoints; its greedy answers are computed beside it by plain passes."""
    (tmp_path / "gold.py").write_text((chain.recipe.parent / "gold.py").read_text())
    config = {"gold": "gold.py:gold", "resamples": 100, "limit": 8}
    ran = stage(
        "evaluate", "sft", baseline="sft", greedy=["server"], endpoints={"server": _served(url, chain)}, **config
    )
    report = json.loads((ran.out / "report.json").read_text())
    assert list(report["models"]) == ["sft", "server", "server (greedy)"]
    for name in ("server", "server (greedy)"):
        assert {"win_rate", "gold"} <= set(report["models"][name])
        assert report["models"][name].get("kl") is None
    assert any("no KL for server: it is behind a server" in text for text in report["warnings"])
    assert any("no KL for server: it is behind a server" in note for note in ran.notes)
    model, tokenizer = load_plain(chain["dpo"].path)
    for row in map(json.loads, (ran.out / "samples.jsonl").read_text().splitlines()):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        own: list[int] = []
        while len(own) < 8 and (not own or own[-1] not in _ends(model, tokenizer)):
            with torch.no_grad():
                own.append(int(model(input_ids=torch.tensor([ids + own])).logits[0, -1].argmax()))
        answer = row["answers"]["server (greedy)"]
        assert answer["text"] == tokenizer.decode(own, skip_special_tokens=True).strip()
        assert answer["length"] == len(own)
    metrics = ran.outcome.result.metrics
    assert metrics["errors"] == 0.0 and metrics["server/win_rate"] == report["models"]["server"]["win_rate"]["value"]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]


def test_a_server_as_baseline(stage: Callable[..., Any], chain: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text((chain.recipe.parent / "gold.py").read_text())
    endpoints = {"server": _served(url, chain)}
    ran = stage("evaluate", "sft", baseline="server", endpoints=endpoints, gold="gold.py:gold", limit=6, resamples=100)
    report = json.loads((ran.out / "report.json").read_text())
    assert list(report["models"]) == ["sft", "server", "server (greedy)"]
    assert report["models"]["server (greedy)"]["variant"] is True
    assert "win_rate" in report["models"]["sft"] and report["models"]["sft"].get("kl") is None
    assert any("no KL is measured: the baseline server is behind a server" in note for note in ran.notes)


def test_a_server_that_is_stopped_midway_is_asked_for_the_rest_by_the_next_run(
    stage: Callable[..., Any], chain: Any, tmp_path: Path
) -> None:
    folder = chain["dpo"].path
    samples = {**json.loads((folder / "generation_config.json").read_text()), "do_sample": True}
    more = {"parallel": 1, "attempts": 1, "parameters": {"generation_config": json.dumps(samples)}}
    with served(folder, tmp_path / "first") as url:
        endpoints = {"server": _served(url, chain, **more)}
        half = stage("sample", n=2, limit=4, temperatures=[2.0], endpoints=endpoints)
    asked = half.outcome.runtime_report["endpoints"]["server"]["calls_sent"]
    assert asked == 8
    endpoints = {"server": _served(url, chain, **more)}
    gone = stage("sample", n=3, limit=4, temperatures=[2.0], endpoints=endpoints, expect="failed")
    problem = str(gone.outcome.problems[0])
    assert "server: 4 of 12 answers failed" in problem and "no connection" in problem
    with served(folder, tmp_path / "second") as url:
        endpoints = {"server": _served(url, chain, **more)}
        whole = stage("sample", n=3, limit=4, temperatures=[2.0], endpoints=endpoints)
    assert whole.outcome.runtime_report["endpoints"]["server"] == {"calls_sent": 4, "cached": 8}
    for one, three in zip(_rows(half), _rows(whole), strict=True):
        assert set(_of(one, "server")) <= set(_of(three, "server"))
