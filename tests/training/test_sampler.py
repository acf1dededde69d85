"""What was sampled is reused by every stage that asks the same again, gives the same bytes, and is never trusted blind.

Stages are real; a checkpoint is known by its fingerprint, so copies of one model stand for several.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from disks import mounted
from stopping import StopAfter

from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.sampling import Sampling
from pipeline.models.tokenizer.contract import end_ids
from pipeline.stage import ResolvedInput
from pipeline.training.sampler import Request, Sampler, _may_change

EVALUATION: dict[str, Any] = {"baseline": "m0", "greedy": [], "max_new_tokens": 12, "resamples": 100}


@pytest.fixture
def evaluate(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluate copies of the chain's models, `m0` first; what they say is kept in a folder."""

    def run(count: int, responses: Path, **more: Any) -> Any:
        models = []
        for i in range(count):
            made = as_input(chain[("sft", "dpo", "base")[i % 3]])
            named = {"ref": f"m{i}", "name": f"m{i}", "fingerprint": sha256(str(i).encode()).hexdigest()}
            models.append(made.model_copy(update=named))
        options = {key: more.pop(key) for key in list(more) if key in ("stopping", "expect", "seed")}
        return run_stage(
            "evaluate",
            {**EVALUATION, "models": [f"m{i}" for i in range(count)], "gold": _gold(chain), **more},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": models},
            responses=responses,
            **options,
        )

    return run


def _gold(chain: Any) -> str:
    return f"{chain.recipe.parent}/gold.py:gold"


def _texts(ran: Any) -> dict[str, bytes]:
    return {name: (ran.out / name).read_bytes() for name in ("report.json", "samples.jsonl", "report.md")}


def _sampled(ran: Any) -> int:
    return int(ran.outcome.runtime_report["sampling"]["tokens"])


def test_one_more_checkpoint_is_the_only_one_that_is_sampled(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    seven = evaluate(7, kept)
    assert not [note for note in seven.notes if "answered before" in note]
    assert _sampled(seven) == seven.outcome.result.tokens
    eight = evaluate(8, kept)
    assert "7 of 8 checkpoints were answered before: these responses are reused" in eight.notes
    rows = [json.loads(line) for line in (eight.out / "samples.jsonl").read_text().splitlines()]
    assert _sampled(eight) == sum(row["answers"]["m7"]["length"] for row in rows) > 0
    assert _texts(eight) == _texts(evaluate(8, fresh))
    again = evaluate(8, kept)
    assert "8 of 8 checkpoints were answered before: these responses are reused" in again.notes
    assert _sampled(again) == 0 and _texts(again) == _texts(eight)


@pytest.mark.parametrize(
    ("changed", "reused"),
    [
        ({"temperature": 0.9}, False),
        ({"max_new_tokens": 11}, False),
        ({"seed": 8}, False),
        ({"title": "Other", "resamples": 101}, True),
    ],
)
def test_all_that_decides_the_tokens_and_nothing_else_is_compared(
    changed: dict[str, Any], reused: bool, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate(1, tmp_path / "kept")
    assert (_sampled(evaluate(1, tmp_path / "kept", **changed)) == 0) is reused


def test_greedy_answers_depend_on_no_seed(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    evaluate(1, tmp_path / "kept", greedy=["m0"])
    other = evaluate(1, tmp_path / "kept", greedy=["m0"], seed=8)
    assert "0 of 1 checkpoint were answered before, and 1 in part: these responses are reused" in other.notes
    rows = [json.loads(line) for line in (other.out / "samples.jsonl").read_text().splitlines()]
    assert _sampled(other) == sum(row["answers"]["m0"]["length"] for row in rows)


def test_a_checkpoint_that_was_answered_before_is_not_loaded(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    model = shutil.copytree(chain["sft"].path, tmp_path / "model")
    source = as_input(chain["sft"]).model_copy(update={"path": str(model)})

    def sample() -> Any:
        return run_stage(
            "sample",
            {"n": 2, "max_new_tokens": 12, "log_probabilities": True},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": [source]},
            responses=tmp_path / "kept",
        )

    first = sample()
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    again = sample()
    for name in ("candidates.jsonl", "pairs.jsonl"):
        assert (again.out / name).read_bytes() == (first.out / name).read_bytes()


def test_a_stopped_evaluation_goes_on_with_what_it_sampled(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    whole = evaluate(3, tmp_path / "fresh")
    evaluate(3, tmp_path / "kept", stopping=StopAfter(2), expect="stopped")
    resumed = evaluate(3, tmp_path / "kept")
    assert 0 < _sampled(resumed) < _sampled(whole)
    assert _texts(resumed) == _texts(whole)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "other", "value": []}'])
def test_a_damaged_entry_is_sampled_again(damage: bytes, evaluate: Callable[..., Any], tmp_path: Path) -> None:
    whole = evaluate(2, tmp_path / "kept")
    for file in (tmp_path / "kept").glob("*/*.json"):
        file.write_bytes(damage)
    again = evaluate(2, tmp_path / "kept")
    assert _sampled(again) == _sampled(whole) and _texts(again) == _texts(whole)


def test_a_full_disk_is_said_once_and_stops_nothing(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    whole = evaluate(2, tmp_path / "kept")
    with mounted(tmp_path / "small", "4k") as small:
        ran = evaluate(2, small / "responses")
        again = evaluate(2, small / "responses")
    said = [note for note in ran.notes if note.startswith("the responses cannot be kept (the disk of ")]
    assert len(said) == 1 and said[0].endswith("): a rerun samples them again")
    assert _sampled(ran) == _sampled(whole) and _texts(ran) == _texts(again) == _texts(whole)


def test_progress_has_the_speed(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    steps = [event for event in evaluate(2, tmp_path / "kept").events if event.kind == "progress"]
    assert (steps[0].step, steps[-1].step, steps[-1].total) == (0, 48, 48)
    assert all(event.metrics["tokens_per_s"] > 0 for event in steps if event.metrics)
    assert sum(bool(event.metrics) for event in steps) == 2
    assert not any(event.metrics for event in evaluate(2, tmp_path / "kept").events if event.kind == "progress")


def test_batches_give_the_tokens_of_one_call_of_decode(
    make_context: Callable[..., Any], chain: Any, as_input: Any, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(5, 300) for _ in range(rng.randint(1, 20))] for _ in range(300)]
    row_ids = [7 * row for row in range(300)]
    sampling, source = Sampling(temperature=1.2), as_input(chain["sft"])
    request = Request(source, tiny_tokenizer, prompts, row_ids, sampling, 10, seed=5)
    assert [len(rows) for rows in request.batches()] == [128, 128, 44]
    ((*responses,),) = Sampler(make_context(), [request]).answer([request])
    eos = end_ids(tiny_tokenizer, tiny_model)
    settings = GenerationSettings(10, eos, tiny_tokenizer.pad_token_id, sampling, seed=5)
    assert [response.ids for response in responses] == decode(tiny_model, prompts, settings, row_ids=row_ids)
    ends = {"eos" if response.ids[-1] in eos else "max_new_tokens" for response in responses}
    assert ends == {response.finish_reason for response in responses} == {"eos", "max_new_tokens"}


def test_the_tokens_of_a_response_end_with_its_stop_string(
    make_context: Callable[..., Any], chain: Any, as_input: Any, tiny_tokenizer: Any
) -> None:
    """As of a server that halts there: tokens and log-probabilities are of the answer, not of what would follow."""
    rng, source = random.Random(2), as_input(chain["sft"])
    prompts = [[rng.randrange(5, 300) for _ in range(8)] for _ in range(64)]

    def answers(*stop: str) -> list[Any]:
        sampling = Sampling(temperature=1.2)
        request = Request(source, tiny_tokenizer, prompts, range(64), sampling, 12, seed=5, stop=stop)
        return Sampler(make_context(), [request]).answer([request])[0]

    whole, cut = answers(), answers("e", "a")
    assert sum(one.finish_reason == "stop" for one in cut) > 10
    for before, after in zip(whole, cut, strict=True):
        if after.finish_reason != "stop":
            assert after == before
            continue
        text, but_last = (tiny_tokenizer.decode(ids, skip_special_tokens=True) for ids in (after.ids, after.ids[:-1]))
        assert after.ids == before.ids[: len(after.ids)]
        assert ("a" in text or "e" in text) and "a" not in but_last and "e" not in but_last
        assert text.strip().startswith(after.text)


@pytest.mark.parametrize(
    ("fingerprint", "may_change"),
    [("hub:a/b", True), ("hub:a/b@main", True), ("hub:a/b@0123abc", False), ("5" * 64, False)],
)
def test_a_hub_model_without_a_commit_is_asked_anew(fingerprint: str, may_change: bool) -> None:
    source = ResolvedInput(ref="a/b", name="b", kind="external", fingerprint=fingerprint, path="a/b")
    assert _may_change(source) is may_change
