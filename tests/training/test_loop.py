"""Checkpoints, clocks and the loss curve of a training run."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import ExitCode, PipelineError
from pipeline.stage import Event
from pipeline.training.checkpoint.running_metrics import metrics_of, restore_metrics
from pipeline.training.data.batches import Batches
from pipeline.training.loop import Watcher, _best, _final, steps_of, timeless
from pipeline.training.session import Session, SessionClock


def test_seconds_of_all_sessions_add_up_and_a_fresh_start_forgets(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    file.write_text(json.dumps({"seconds": 100.0}))
    began = time.perf_counter()
    again = SessionClock(file, fresh=False)
    again.start()
    assert 100 <= again.total() <= 100 + time.perf_counter() - began
    again.save()
    assert 100 <= json.loads(file.read_text())["seconds"] <= 100 + time.perf_counter() - began
    fresh = SessionClock(file, fresh=True)
    fresh.start()
    assert fresh.total() <= time.perf_counter() - began


class Watched:
    """A watcher with the trainer's side of it: real arguments, state and control."""

    def __init__(self, make_context: Any, tmp_path: Path, *, every_s: float, stopping: bool = False) -> None:
        self.events: list[Event] = []
        ctx = make_context(self.events)
        object.__setattr__(ctx, "stopping", lambda: stopping)
        object.__setattr__(ctx, "compute", replace(ctx.compute, checkpoint_every_s=every_s))
        self.watcher = Watcher(Session(ctx, 20, resumed_at=None), begin=lambda: None)
        self.args = TrainingArguments(output_dir=str(tmp_path), logging_steps=5, use_cpu=True)

    def step_ends(self, step: int, of: int = 20) -> TrainerControl:
        control = TrainerControl()
        self.watcher.on_step_end(self.args, TrainerState(global_step=step, max_steps=of), control)
        return control


def test_saves_by_the_clock_at_any_step_but_the_last(make_context: Any, tmp_path: Path) -> None:
    due = Watched(make_context, tmp_path, every_s=0.0)
    assert due.step_ends(3).should_save  # not a step that is logged
    assert not due.step_ends(20).should_save  # the artifact comes next
    assert not Watched(make_context, tmp_path, every_s=1e9).step_ends(3).should_save


def test_asked_to_stop_saves_and_stops_at_the_end_of_the_step(make_context: Any, tmp_path: Path) -> None:
    asked = Watched(make_context, tmp_path, every_s=1e9, stopping=True)
    control = asked.step_ends(3)
    assert control.should_save and control.should_training_stop
    control = asked.step_ends(20)
    assert control.should_log  # whatever `logging_steps` says, the final loss is known and checked
    assert not control.should_save and not control.should_training_stop  # done: stopping would lose a finished stage


def test_progress_is_told_with_the_latest_metrics(make_context: Any, tmp_path: Path) -> None:
    watched = Watched(make_context, tmp_path, every_s=1e9)
    logs = {"loss": 0.5, "grad_norm": 2.0, "epoch": 1.0, "total_flos": 9.0}
    watched.watcher.on_log(watched.args, TrainerState(), TrainerControl(), logs)
    watched.step_ends(20)
    assert watched.events[-1] == Event("progress", step=20, total=20, metrics={"loss": 0.5, "grad_norm": 2.0})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_lost_loss_ends_the_stage(make_context: Any, tmp_path: Path, loss: float) -> None:
    watched = Watched(make_context, tmp_path, every_s=1e9)
    with pytest.raises(PipelineError, match=f"the loss is {loss} at step 7; expected a finite number. Lower") as error:
        watched.watcher.on_log(watched.args, TrainerState(global_step=7), TrainerControl(), {"loss": loss})
    assert error.value.exit_code == ExitCode.FAILED  # the recipe is well-formed: not a matter of bad input


def test_what_the_clock_decides_stays_out_of_the_curve() -> None:
    row = {
        "loss": 1.0,
        "step": 3,
        "train_runtime": 2.0,
        "eval_samples_per_second": 9.0,
        "num_tokens": 5,
        "total_flos": 1,
    }
    assert timeless([row, {"step": 4}]) == [{"loss": 1.0, "step": 3}]


def test_final_and_best_figures_of_a_curve() -> None:
    history = [
        {"loss": 3.0, "step": 1, "learning_rate": 0.1},
        {"eval_loss": 2.0, "step": 1},
        {"loss": 1.0, "step": 2, "learning_rate": 0.05},
        {"eval_loss": 2.5, "step": 2, "epoch": 1.0},
    ]
    assert _final(history) == {"loss": 1.0, "eval_loss": 2.5}
    assert _best(history) == {"eval_loss": 2.0, "step": 1}
    assert _best([row for row in history if "loss" in row]) == {"loss": 1.0, "step": 2}
    assert _best([]) == {}


def test_steps_of_a_run_by_hand() -> None:
    batches = Batches([1] * 35, 10, 5, seed=0)  # three steps an epoch
    assert steps_of(batches, 1.0, None) == 3
    assert steps_of(batches, 2.5, None) == 8  # 7.5, to the even neighbour
    assert steps_of(batches, 0.1, None) == 1
    assert steps_of(batches, 1.0, 50) == 50
    with pytest.raises(
        PipelineError, match=r"4 rows to train on; expected at least one batch of 10. Lower train.batch_size"
    ):
        steps_of(Batches([1] * 4, 10, 5, seed=0), 1.0, None)


def test_running_sums_survive_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    import torch

    def trainer(loss: float) -> Any:
        return SimpleNamespace(
            _tr_loss=torch.tensor(loss),
            _total_loss_scalar=0.0,
            _globalstep_last_logged=9,
            _metrics={"train": {}, "eval": {}},
            _total_train_tokens=0,
        )

    before = trainer(0.1)
    before._total_loss_scalar, before._globalstep_last_logged, before._total_train_tokens = 1 / 3, 4, 77
    before._metrics["train"] = {"accuracy": [0.1, 0.25]}
    (tmp_path / "running_sums-0.json").write_text(json.dumps(metrics_of(before)))
    after = trainer(0.0)
    restore_metrics(after, tmp_path)
    assert vars(after) == vars(before)
    untouched = trainer(0.0)
    restore_metrics(untouched, None)
    assert vars(untouched) == vars(trainer(0.0))
