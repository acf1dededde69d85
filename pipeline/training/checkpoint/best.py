"""Implements `train.load_best_model_at_end`: keeps the checkpoint of the best evaluation, and loads it at the end.

After a new best evaluation a checkpoint is written at once, and kept until a better one is complete. transformers would
write one only if `save_strategy` falls on the same step, and load an older one otherwise. A resumed run reads the best
evaluation so far from its checkpoint, so it ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ExitCode, PipelineError, Problem

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def is_new_best(trainer: Trainer, metrics: Mapping[str, float]) -> bool:
    """Return whether an evaluation is the best so far; if so, remember it and ask for a checkpoint.

    Raises:
        PipelineError: the evaluation did not measure the metric that decides.
    """
    name, best = metric_of(trainer.args), trainer.state.best_metric
    if name not in metrics:
        statement = f"the evaluation measured no {name}, by which the best is to be found"
        known = ", ".join(sorted(key.removeprefix("eval_") for key in metrics if key.startswith("eval_")))
        raise PipelineError(Problem(statement, f"train.metric_for_best_model of {known}", "set it to one of them"))
    value = metrics[name]
    sign = 1 if trainer.args.greater_is_better else -1
    is_better = math.isfinite(value) and (best is None or sign * value > sign * best)
    if is_better:
        trainer.state.best_metric, trainer.state.best_global_step = value, trainer.state.global_step
        if trainer.state.global_step < trainer.state.max_steps:  # after the last step the weights are in memory
            trainer.control.should_save = True
    return is_better


def metric_of(arguments: TrainingArguments) -> str:
    """Return the log's name of the metric that decides which evaluation is best."""
    name = str(arguments.metric_for_best_model or "loss")
    return name if name.startswith("eval_") else f"eval_{name}"


def best_checkpoint(trainer: Trainer) -> Path | None:
    """Return the folder of the best evaluation's checkpoint; None if none is asked for, or there was no evaluation."""
    if not trainer.args.load_best_model_at_end or not trainer.state.best_global_step:
        return None
    return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.best_global_step}"


def load_best(trainer: Trainer) -> dict[str, float]:
    """Load the weights of the best evaluation on every process; return its metric and step.

    Returns:
        For example ``{"eval_loss": 0.803, "step": 8}``; empty without `load_best_model_at_end`.

    Raises:
        PipelineError: no evaluation gave a finite value.
    """
    if not trainer.args.load_best_model_at_end:
        return {}
    best, metric = best_checkpoint(trainer), metric_of(trainer.args)
    if best is None:
        statement = f"train.load_best_model_at_end is true, and no evaluation gave a finite {metric}"
        remedy = "lower train.learning_rate, or set train.eval_steps below the steps of the run"
        raise PipelineError(Problem(statement, "at least one", remedy), exit_code=ExitCode.FAILED)
    step = int(trainer.state.best_global_step)
    if step < trainer.state.global_step:
        trainer.parts.checkpoints.load_weights(trainer, best)
    return {metric: float(trainer.state.best_metric), "step": step}


def at_step(history: list[dict[str, float]], step: float) -> Mapping[str, float]:
    """Return the evaluation metrics that were logged at a step."""
    rows = [row for row in history if row.get("step") == step]
    return {key: value for row in rows for key, value in row.items() if key.startswith("eval_")}
