"""The training loop for pipeline parallelism (`compute.pipeline_parallel`).

transformers' Trainer holds a full model and runs forward and backward itself, which a pipeline's schedule does here. So
this is a separate loop, with the same optimizer, learning rates, batches, log and checkpoints as the Trainer. A run can
resume with either of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import get_scheduler

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.labels import IGNORE
from pipeline.models.forward_probe import ForwardProbe
from pipeline.models.load.deferred import Deferred
from pipeline.parallel.consolidation import model_from_state
from pipeline.parallel.pipeline.schedule import Pipeline, PipelineRank
from pipeline.parallel.pipeline.stage_module import StageModule
from pipeline.parallel.ranks import Ranks
from pipeline.stage import StageContext
from pipeline.training.arguments import attention_name, checkpoints_dir, precision_of
from pipeline.training.audit import check_first_pass, check_prepared
from pipeline.training.checkpoint.completion import newest_checkpoint, step_of
from pipeline.training.checkpoint.pipelined_state import Log, PipelineState, groups_of, optimizer_of
from pipeline.training.data.batches import Batches
from pipeline.training.data.encoding import EncodedRow
from pipeline.training.data.sources import EncodedData
from pipeline.training.loop import Trained, measured
from pipeline.training.session import Session
from pipeline.training.setup import OpenedModel, Schedule

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainingArguments

Collate = Callable[[Sequence[EncodedRow]], dict[str, Tensor]]
Rows = Sequence[EncodedRow]

WIDTH = 64
"""Batches are padded to a multiple of this many tokens, but not beyond the longest row."""


class PipelineTraining:
    """Trains one rank's pipeline stage.

    Attributes:
        pipe: the pipeline stage with its schedule.
        log: log in the format of the Trainer's.
        session: when it saves and stops.
    """

    session: Session

    def __init__(
        self,
        ctx: StageContext,
        model: PreTrainedModel,
        deferred: Deferred | None,
        arguments: TrainingArguments,
        batches: Batches,
        steps: int,
    ) -> None:
        """Split the model into pipeline stages; create the optimizer and the learning rate schedule.

        Args:
            ctx: the stage's context.
            model: with full weights, or with weights on the meta device.
            deferred: materialises the weights of a meta model; None if the model has its weights.
            arguments: `TrainingArguments`.
            batches: batch sampler.
            steps: optimizer steps.

        Raises:
            PipelineError: the model cannot be split, the precision is fp16, or not all processes have joined.
        """
        self.ctx, self.arguments, self.batches, self.steps = ctx, arguments, batches, steps
        ranks = Ranks.current()
        if ranks.count != ctx.ranks:
            raise PipelineError(
                Problem(
                    f"{counted(ranks.count, 'process', 'processes')} {agreeing(ranks.count, 'has', 'have')} joined",
                    f"{ctx.ranks}, as compute says",
                )
            )
        if arguments.fp16:
            expected = "bf16 or fp32: the scale of an fp16 loss is not shared between parts"
            raise PipelineError(Problem("fp16 with compute.pipeline_parallel", expected, "set compute.precision: fp32"))
        place = PipelineRank(ranks, ctx.dims.pipeline_parallel)
        groups = groups_of(model)
        autocast = torch.bfloat16 if arguments.bf16 else None
        recompute = bool(arguments.activation_checkpointing)
        stage_module = StageModule(model, place.stage, place.stages, autocast=autocast, recompute=recompute)
        if deferred is not None:
            deferred.fill(stage_module)
        self._first: ForwardProbe | None = None
        self.pipe = Pipeline(stage_module.to(arguments.device), place, arguments.device, self._start_probe)
        self.optimizer = optimizer_of(stage_module, groups, arguments)
        check_prepared(ctx, model, self.optimizer, None, stage_module)
        warmup = arguments.get_warmup_steps(steps)
        kind, options = arguments.lr_scheduler_type, dict(arguments.lr_scheduler_kwargs or {})
        self.rates = get_scheduler(kind, self.optimizer, warmup, steps, options)
        self.log = Log()
        self.state = PipelineState(self.pipe, self.optimizer, self.rates, groups)

    def run(self, rows: Rows, held_out: Rows, collate: Collate) -> Trained:
        """Train to the end, or until the user asks to stop.

        Raises:
            Interrupted: the user asked to stop; a checkpoint was saved.
            PipelineError: the loss is not finite.
        """
        checkpoint = newest_checkpoint(checkpoints_dir(self.ctx))
        begun = step_of(checkpoint) if checkpoint else None
        session = self.session = Session(self.ctx, self.steps, resumed_at=begun)
        if checkpoint is not None:
            self.log = self.state.load(checkpoint)
        session.start()
        self.pipe.part.train()
        for step, group in self._groups(begun or 0):
            self._step(step, collate([rows[row] for row in group]))
            if held_out and (step % int(self.arguments.eval_steps) == 0 or step == self.steps):
                self._evaluate(step, held_out, collate)
            due = session.after(step)
            if due.save:
                self._save(step)
            if due.stop:
                raise session.stopped(step)
            if step == self.steps:
                break
        return measured(self.log.history, self.batches.tokens(self.steps), session.clock.total())

    def _groups(self, begun: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the number and the row indices of each optimizer step after step ``begun``."""
        step, epoch = 0, 0
        while step < self.steps:
            self.batches.set_epoch(epoch)
            for group in self.batches.batches():
                step += 1
                if step > begun:
                    yield step, group
            epoch += 1

    def _step(self, step: int, batch: dict[str, Tensor]) -> None:
        place = self.pipe.place
        tokens = float(batch["labels"][:, 1:].ne(IGNORE).sum())
        rows_per_replica = self.batches.batch_size // place.replicas
        replica_batch = self._on_device(
            batch, slice(place.replica * rows_per_replica, (place.replica + 1) * rows_per_replica)
        )
        loss = self.pipe.backward(passes=rows_per_replica // self.batches.micro_batch, tokens=tokens, **replica_batch)
        if self._first is not None:
            check_first_pass(self.ctx, self._first, precision_of(self.ctx))
            self._first = None
        norm = self.pipe.clip(self.arguments.max_grad_norm)
        rate = self.rates.get_last_lr()[0]
        self.session.check_loss(loss, step)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.log.add(loss)
        self.ctx.progress(step, self.steps, loss=loss, learning_rate=rate, grad_norm=norm)
        if step % int(self.arguments.logging_steps) == 0 or step == self.steps:
            self.log.write(grad_norm=norm, learning_rate=rate, epoch=self._epoch(step), step=step)

    def _start_probe(self) -> None:
        self._first = ForwardProbe(self.pipe.part)

    def _evaluate(self, step: int, held_out: Rows, collate: Collate) -> None:
        """Log the loss of held-out rows: the mean of micro-batch losses weighted by rows, as the Trainer does."""
        place, micro = self.pipe.place, self.batches.micro_batch
        at_once = micro * place.stages
        total = 0.0
        self.pipe.part.eval()
        for start in range(place.replica * at_once, len(held_out), place.replicas * at_once):
            rows = list(held_out[start : start + at_once])
            rows += [{"input_ids": rows[0]["input_ids"][:1], "labels": [IGNORE]}] * (at_once - len(rows))
            total += self.pipe.evaluate(passes=place.stages, **self._on_device(collate(rows), slice(None)))
        self.pipe.part.train()
        loss = place.ranks.all_reduce_sum(total)[0] / len(held_out)
        self.log.history.append({"eval_loss": loss, "epoch": self._epoch(step), "step": step})
        self.ctx.progress(step, self.steps, eval_loss=loss)

    def _on_device(self, batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """Return rows of a batch as arguments of the pipeline, without the mask, which right padding does not need.

        They are padded to a multiple of `WIDTH` tokens, because the stages must set up buffers for every new shape.
        """
        width = batch["input_ids"].shape[1]
        padding = min(-(-width // WIDTH) * WIDTH, max(self.batches.lengths)) - width
        names = {"input_ids": ("ids", 0), "labels": ("labels", IGNORE), "position_ids": ("position_ids", 0)}
        tensors = {key: value[rows].to(self.arguments.device) for key, value in batch.items() if key in names}
        return {names[key][0]: pad(value, (0, max(padding, 0)), value=names[key][1]) for key, value in tensors.items()}

    def _epoch(self, step: int) -> float:
        return step / self.batches.batches_per_epoch

    def _save(self, step: int) -> None:
        folder = checkpoints_dir(self.ctx) / f"checkpoint-{step}"
        self.state.save(folder, self.log, self.arguments, step, self._epoch(step))
        self.session.saved()


def train_through_pipeline(
    ctx: StageContext,
    opened: OpenedModel,
    arguments: TrainingArguments,
    schedule: Schedule,
    data: EncodedData,
    collate: Collate,
) -> tuple[Trained, PreTrainedModel | PeftModel | None]:
    """Train a model with pipeline parallelism; return the run, and on the first process the consolidated model.

    The model is split, and no longer complete afterwards.

    Args:
        ctx: the stage's context.
        opened: the model.
        arguments: `TrainingArguments`.
        schedule: how the rows become optimizer steps.
        data: rows to train and to evaluate on.
        collate: makes a batch of rows.

    Raises:
        Interrupted: the user asked to stop; a checkpoint was saved.
        PipelineError: the model or the recipe does not fit a pipeline, or the loss is not finite.
    """
    if data.train and "seq_lengths" in data.train[0] and "flash" in attention_name(ctx):
        statement = "train.mode packed with FlashAttention and compute.pipeline_parallel"
        raise PipelineError(Problem(statement, "rows of one conversation, or masks", "set compute.attention: sdpa"))
    training = PipelineTraining(ctx, opened.model, opened.deferred, arguments, schedule.batches, schedule.steps)
    trained = training.run(data.train, data.held_out, collate)
    state = training.pipe.consolidated_state()
    return trained, model_from_state(opened.model, state) if ctx.is_first else None
