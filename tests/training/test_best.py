"""`load_best_model_at_end`: the weights kept are those of the best evaluation, through stops and resumes."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAfter

from pipeline.recipe import DataSource
from pipeline.training.checkpoint.completion import COMPLETE_FILE, step_of

TRAIN = {"batch_size": 16, "lr_scheduler_type": "constant", "eval_steps": 2, "logging_steps": 1}
CASES: dict[str, dict[str, Any]] = {
    # A rate this high overshoots: the best evaluation is neither the first nor the last.
    "sft": {"data": "demos.jsonl", "config": {}, "rate": 0.05, "steps": 8},
    # The greatest loss is called the best one: that of the first evaluation, since every step learns.
    "dpo": {
        "data": "pairs.jsonl",
        "config": {"adapter": {"r": 4}},
        "rate": 0.05,
        "steps": 8,
        "fields": {"metric_for_best_model": "eval_loss", "greater_is_better": True},
    },
}


def _digest(ran: Any, name: str = "model.safetensors") -> str:
    return hashlib.sha256((ran.out / name).read_bytes()).hexdigest()


@pytest.fixture
def train_best(chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a stage of `CASES` with held-out rows."""

    def train(kind: str, out: str, *, compute: dict[str, Any] | None = None, **more: Any) -> Any:
        case = CASES[kind]
        words = {key: more.pop(key) for key in list(more) if key not in ("stopping", "expect")}
        fields = {**TRAIN, "learning_rate": case["rate"], "max_steps": case["steps"], **words}
        source = DataSource(path=str(chain.recipe.parent / case["data"]), held_out=0.2)
        return run_stage(
            kind,
            {**case["config"], "train": fields},
            data={"data": source},
            inputs={"model": as_input(chain["sft"])},
            out=tmp_path / out,
            compute=compute,
            **more,
        )

    return train


@pytest.mark.parametrize("kind", CASES)
def test_the_best_weights_are_those_of_a_run_that_ends_there(kind: str, train_best: Callable[..., Any]) -> None:
    best = train_best(kind, "best", load_best_model_at_end=True, **CASES[kind].get("fields", {}))
    evaluated = {row["step"]: row["eval_loss"] for row in best.history if "eval_loss" in row}
    step = {"sft": min, "dpo": max}[kind](evaluated, key=lambda one: evaluated[one])
    steps = CASES[kind]["steps"]
    assert set(evaluated) == {*range(2, steps + 1, 2)} and step == {"sft": 6, "dpo": 2}[kind]
    result = best.outcome.result
    assert result.best == {"eval_loss": pytest.approx(evaluated[step], rel=1e-4), "step": step}  # the log is rounded
    assert result.metrics["kept_step"] == step and result.metrics["eval_loss"] == result.best["eval_loss"]
    assert f"weights of step {step:g}" in result.summary
    assert any(f"keeps the weights of step {step}, where eval_loss was best" in note for note in best.notes)
    ended_there = train_best(kind, "there", max_steps=step)  # a constant rate: the steps before are the same
    ended_last = train_best(kind, "last")
    assert _digest(best) == _digest(ended_there) != _digest(ended_last)


def test_stopped_before_and_after_the_best_gives_the_same_bytes(train_best: Callable[..., Any]) -> None:
    fields = {"load_best_model_at_end": True}
    whole = train_best("sft", "whole", **fields)
    step = int(whole.outcome.result.metrics["kept_step"])
    assert step == 6
    before = train_best("sft", "cut", stopping=StopAfter(2), expect="stopped", **fields)  # step 3
    after = train_best("sft", "cut", stopping=StopAfter(3), expect="stopped", **fields)  # step 7: 6 is kept beside it
    assert "at step 3 of 8" in str(before.outcome.problems[0]) and "at step 7 of 8" in str(after.outcome.problems[0])
    assert {folder.name for folder in (after.work / "checkpoints").iterdir()} == {"checkpoint-6", "checkpoint-7"}
    last = train_best("sft", "cut", compute={"checkpoint_every_s": 1e-9}, **fields)
    assert "resumes at step 7 of 8" in last.notes
    assert _digest(last) == _digest(whole)
    assert last.history == whole.history and last.outcome.result.best == whole.outcome.result.best


def test_another_metric_and_its_direction_decide(train_best: Callable[..., Any]) -> None:
    fields = {"load_best_model_at_end": True, "metric_for_best_model": "mean_token_accuracy"}
    ran = train_best("sft", "accuracy", **fields)
    name = "eval_mean_token_accuracy"
    evaluated = {row["step"]: row[name] for row in ran.history if name in row}
    step = max(evaluated, key=lambda one: evaluated[one])
    assert ran.outcome.result.best == {name: pytest.approx(evaluated[step], rel=1e-4), "step": step}


def test_without_held_out_rows_there_is_no_best(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    train = {**TRAIN, "max_steps": 2, "load_best_model_at_end": True}
    data, inputs = {"data": chain.recipe.parent / "demos.jsonl"}, {"model": as_input(chain["base"])}
    ran = run_stage("sft", {"train": train}, data=data, inputs=inputs, expect="failed")
    assert "train.load_best_model_at_end is true; expected held-out rows to evaluate on" in str(ran.outcome.problems[0])


def _killed(run: Callable[[], Any], file: str) -> None:
    """Run in a process of its own that is killed, unasked, at the moment it begins to write a file."""
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(lambda event, args: _kill_at(file, event, args))
            run()
        finally:
            os._exit(0)  # it got to its end: the parent sees that
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _kill_at(file: str, event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and str(args[0]).endswith(file) and "w" in str(args[1]):
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_around_the_best_gives_the_same_bytes(train_best: Callable[..., Any], tmp_path: Path) -> None:
    """Killed while the best is written, before it is said to be whole, beside a newer one, and once it is loaded."""
    fields = {"load_best_model_at_end": True}
    whole = train_best("sft", "whole", **fields)
    assert whole.outcome.result.metrics["kept_step"] == 6

    def train() -> Any:
        return train_best("sft", "killed", compute={"checkpoint_every_s": 1e-9}, **fields)

    def left() -> dict[int, bool]:
        """Say which checkpoints are there, and whether each is whole."""
        folders = (tmp_path / "killed" / "work" / "checkpoints").iterdir()
        return {step_of(folder): (folder / COMPLETE_FILE).is_file() for folder in folders}

    _killed(train, "checkpoint-6/trainer_state.json")
    assert {step: left()[step] for step in (5, 6)} == {5: True, 6: False}
    _killed(train, f"checkpoint-6/{COMPLETE_FILE}.part")
    assert {step: left()[step] for step in (5, 6)} == {5: True, 6: False}
    _killed(train, "checkpoint-7/trainer_state.json")
    assert left() == {6: True, 7: False}
    _killed(train, "payload/config.json")  # the best is loaded, and being saved
    assert left() == {6: True, 7: True}
    last = train()
    assert "resumes at step 7 of 8" in last.notes
    assert any("keeps the weights of step 6" in note for note in last.notes)
    assert _digest(last) == _digest(whole)
    assert last.history == whole.history and last.outcome.result.best == whole.outcome.result.best
