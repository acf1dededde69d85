"""The fields of `train:` that all training stages share; other keys are fields of the trainer's config. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from pipeline.errors import PipelineError, Problem, agreeing, counted, listed, nearest
from pipeline.trainer_fields import TrainFields
from pipeline.trainer_fields.metrics import direction_problems, metric_problem
from pipeline.trainer_fields.needs import need_problems
from pipeline.trainer_fields.table import table
from pipeline.trainer_fields.trackers import tracker_problems
from pipeline.trainer_fields.values import words_of

MOST_ROWS = 2**31 - 1
"""Largest batch size."""


class CommonTrain(TrainFields):
    """Fields of `train:` that all training stages share.

    Attributes:
        batch_size: rows per optimizer step over all processes; `compute` decides its split into micro-batches.
        epochs: passes over the rows; ignored when `max_steps` is given.
        max_steps: optimizer steps.
        learning_rate: peak learning rate.
        max_length: longest row in tokens; default is the model's context.
        lr_scheduler_type: learning rate schedule, any of transformers.
        warmup_steps: optimizer steps of warm-up; below 1 a fraction of all steps.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: gradient norm to clip to; 0 does not clip.
        optim: optimizer, any of transformers.
    """

    trainer: ClassVar[str] = "TrainingArguments"

    batch_size: int = Field(default=32, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=2e-5, gt=0)
    max_length: int | None = Field(default=None, gt=1)
    lr_scheduler_type: str = "linear"
    warmup_steps: float = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    optim: str = "adamw_torch_fused"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, unknown fields and values, and fields that would be ignored."""
        problems = [*self._word_problems(), *need_problems(dict(self), self._asked)]
        problem = metric_problem(self.trainer, self.passthrough().get("metric_for_best_model"))
        problems += [problem] if problem is not None else direction_problems(self.trainer, dict(self))
        problems += tracker_problems(self.passthrough().get("report_to"))
        if self.batch_size > MOST_ROWS:
            problems.append(Problem(f"train.batch_size is {self.batch_size:,}", f"must be at most {MOST_ROWS:,}"))
        if self.max_steps is not None and self.warmup_steps >= 1 and self.warmup_steps > self.max_steps:
            statement = f"train.warmup_steps is {self.warmup_steps:g}"
            problems.append(Problem(statement, f"must not exceed train.max_steps ({self.max_steps})"))
        return problems

    @property
    def _asked(self) -> frozenset[str]:
        """Names of the fields that the recipe sets."""
        return frozenset(self.model_fields_set)

    def _word_problems(self) -> list[Problem]:
        """Return a problem for each field whose value is not in the trainer's list of values."""
        fields = table()[self.trainer]
        given = {field: str(getattr(self, field)) for field in ("lr_scheduler_type", "optim")}
        return [
            unknown_word(field, word, words_of(field, fields[field]))
            for field, word in given.items()
            if word not in words_of(field, fields[field])
        ]


def unknown_word(field: str, word: str, known: Iterable[str]) -> Problem:
    """Return the problem of a value that a field of `train` does not accept."""
    words = list(known)
    return Problem(f"train.{field} is {word}", f"one of {listed(words)}", nearest(word, words))


def nothing_fits(what: str, max_length: int) -> PipelineError:
    """Return the error of a stage that has no row of at most ``max_length`` tokens; ``what`` names one row."""
    return PipelineError(
        Problem(f"no {what} fits", f"{what}s of at most {max_length} tokens", "raise train.max_length")
    )


def margin_problem(train: int, margins: int) -> Problem | None:
    """Return the problem of pairs without the margin that `use_margin` needs in the loss; None if all have one.

    Args:
        train: number of training pairs.
        margins: number of them that have a margin.
    """
    if margins == train:
        return None
    have = agreeing(margins, "has", "have")
    statement = f"{margins:,} of {counted(train, 'pair')} {have} a margin, and train.use_margin is true"
    return Problem(statement, "a margin in every row", "set train.use_margin: false")
