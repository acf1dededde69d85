"""Runs a trainer: resumes from the newest complete checkpoint, reports progress, saves periodically, stops when asked.

A checkpoint also holds the trainer's running sums (`running_metrics.py`), so a resumed run logs the same numbers as an
uninterrupted one, and ends with the same bits, whichever step it was interrupted at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.load.adapter_config import Adapter
from pipeline.plain_data import JsonView
from pipeline.stage import StageContext
from pipeline.training.arguments import checkpoints_dir, precision_of
from pipeline.training.audit import Audit
from pipeline.training.checkpoint.best import at_step, load_best
from pipeline.training.checkpoint.completion import newest_checkpoint, step_of
from pipeline.training.checkpoint.running_metrics import restore_metrics
from pipeline.training.data.batches import Batches
from pipeline.training.distribution import check_distribution
from pipeline.training.session import Session

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Trained:
    """What a training run measured.

    Attributes:
        history: the trainer's log, one mapping per entry, without wall-clock fields.
        tokens: tokens trained on, without padding, over all sessions.
        seconds: seconds inside the trainer, over all sessions.
        metrics: final values.
        best: lowest evaluation loss and its step; with `load_best_model_at_end` the best value of the chosen metric and
            the step whose weights are kept.
        keeps_best: whether the weights are those of `best`.
        scoring_seconds: seconds the stage spent scoring beside training.
    """

    history: list[dict[str, float]]
    tokens: int
    seconds: float
    metrics: dict[str, float]
    best: dict[str, float]
    keeps_best: bool = False
    scoring_seconds: float = 0.0


class CountsTokens(Protocol):
    """Counts the tokens that a number of optimizer steps trained on."""

    def tokens(self, steps: int) -> int:
        """Return the tokens of the first ``steps`` steps."""
        ...


def run_trainer(
    ctx: StageContext, trainer: Trainer, batches: CountsTokens, steps: int, adapter: Adapter | None = None
) -> Trained:
    """Train to the end, or until the user asks to stop.

    Args:
        ctx: the stage's context.
        trainer: trainer of transformers or trl, from `composed`.
        batches: counts tokens.
        steps: optimizer steps in all.
        adapter: the recipe's `adapter:` block; None without one.

    Raises:
        Interrupted: the user asked to stop; a checkpoint was saved.
        PipelineError: the loss is not finite, or the run differs from what the recipe asks for.
    """
    check_distribution(ctx, trainer, precision_of(ctx))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not hasattr(
            parameter, "ds_id"
        ):  # trl casts trained weights on a quantised base to bfloat16, which would round the updates
            parameter.data = parameter.data.float()
    checkpoint = newest_checkpoint(checkpoints_dir(ctx))
    session = Session(ctx, steps, resumed_at=step_of(checkpoint) if checkpoint else None)
    for silent in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(silent)
    trainer.add_callback(Watcher(session, begin=lambda: restore_metrics(trainer, checkpoint)))
    trainer.add_callback(Audit(ctx, trainer, adapter))
    session.start()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = session.clock.total()
    if trainer.state.global_step < steps:
        raise session.stopped(trainer.state.global_step)
    trained = measured(timeless(trainer.state.log_history), batches.tokens(steps), seconds)
    best = load_best(trainer)
    return _with_best(ctx, trained, best) if best else trained


def _with_best(ctx: StageContext, trained: Trained, best: dict[str, float]) -> Trained:
    """Note that the weights are those of the best evaluation; return the run with the metrics of that step."""
    metric = next(iter(best))
    ctx.note(f"keeps the weights of step {best['step']}, where {metric} was best: {best[metric]:.4g}")
    metrics = {**trained.metrics, **at_step(trained.history, best["step"]), "kept_step": best["step"]}
    return replace(trained, metrics=metrics, best=best, keeps_best=True)


def measured(history: list[dict[str, float]], tokens: int, seconds: float) -> Trained:
    """Return the measurements of a run with this log."""
    return Trained(history, tokens, seconds, _final(history), _best(history))


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Callback that reports progress, saves periodically, and stops when asked or when the loss is not finite.

    ``begin`` is called when the trainer has reset its state and is about to take its first step.
    """

    def __init__(self, session: Session, begin: Callable[[], None]) -> None:
        self.ctx, self.session, self.begin = session.ctx, session, begin
        self.shown_at = 0.0
        self.latest: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call ``begin``, which restores the running sums of a checkpoint."""
        self.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report progress (at most ten times a second), and decide whether to save or stop after this step."""
        now = time.perf_counter()
        if now - self.shown_at > 0.1 or state.global_step >= state.max_steps:
            self.shown_at = now
            self.ctx.progress(state.global_step, state.max_steps, **self.latest)
        if state.global_step >= state.max_steps:
            control.should_log = True  # so that the final loss is always logged and checked
            control.should_evaluate |= args.load_best_model_at_end  # the last weights may be the best
        due = self.session.after(state.global_step)
        control.should_save |= due.save
        control.should_training_stop |= due.stop

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store the latest metrics for the progress report; raise an error if the loss is not finite."""
        shown = {"loss", "learning_rate", "grad_norm", "eval_loss", "accuracy", "margin", "mean_token_accuracy"}
        shown |= {
            "reward",
            "kl",
            "eval_reward",
            "rewards/accuracies",
            "rewards/margins",
            "eval_accuracy",
            "eval_rewards/accuracies",
        }
        for key, value in (logs or {}).items():
            if key in shown and isinstance(value, int | float):
                self.latest[key] = float(value)
        loss = (logs or {}).get("loss")
        if loss is not None:
            self.session.check_loss(loss, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the time of the last checkpoint."""
        self.session.saved()


def timeless(log: Iterable[JsonView]) -> list[dict[str, float]]:
    """Drop log fields that depend on the clock or on the session, so that a resumed run has the same history."""
    dropped = ("runtime", "per_second", "step_time", "num_tokens", "total_flos", "train_loss")
    known = ({key: value for key, value in row.items() if value is not None} for row in log)  # None: nothing to average
    timeless_rows = (
        {key: value for key, value in row.items() if not any(part in key for part in dropped)} for row in known
    )
    return [row for row in timeless_rows if len(row) > 1]


def _final(history: list[dict[str, float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for row in history:
        metrics.update({key: value for key, value in row.items() if key not in ("step", "epoch", "learning_rate")})
    return metrics


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    rows = [row for row in history if "eval_loss" in row] or [row for row in history if "loss" in row]
    if not rows:
        return {}
    key = "eval_loss" if "eval_loss" in rows[0] else "loss"
    best = min(rows, key=lambda row: row[key])
    return {key: best[key], "step": best["step"]}


def steps_of(batches: Batches, epochs: float, max_steps: int | None) -> int:
    """Return the optimizer steps of a run.

    Raises:
        PipelineError: there are fewer rows than one batch.
    """
    if batches.batches_per_epoch == 0:
        raise PipelineError(
            Problem(
                f"{counted(len(batches.lengths), 'row')} to train on",
                f"at least one batch of {batches.batch_size}",
                "lower train.batch_size or bring more rows",
            )
        )
    return max_steps if max_steps is not None else max(1, round(epochs * batches.batches_per_epoch))
