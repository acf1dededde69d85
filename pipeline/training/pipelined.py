"""Trains a pipeline of processes: the loop for `compute.pipeline_parallel`.

transformers' Trainer holds a whole model and runs forward and backward itself; a pipeline's schedule does both. So this
is a loop of its own, with the optimizer, learning rates, batches and log of the trainer; each part has its file in a
checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler

from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem
from pipeline.parallel.pipeline import Part, Pipeline
from pipeline.parallel.ranks import Ranks, any_rank
from pipeline.stage import StageContext
from pipeline.training.arguments import checkpoints_dir
from pipeline.training.batches import Batches
from pipeline.training.checkpoints import mark_whole, newest_checkpoint, step_of
from pipeline.training.collate import CausalCollator
from pipeline.training.fields import CommonTrain
from pipeline.training.loop import SessionClock, Trained

USED = frozenset({"adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs", "logging_steps"})
"""Fields of `TrainingArguments` that this loop takes from `train`, beside the documented ones."""


def refuse_unused(train: CommonTrain) -> None:
    """Refuse fields of the trainer's configuration that a pipeline would ignore.

    Raises:
        PipelineError: there are some.
    """
    unused = sorted(set(train.passthrough()) - USED)
    if unused:
        found = f"train.{unused[0]} with compute.pipeline_parallel"
        raise PipelineError(Problem(found, f"one of {', '.join(sorted(USED))}", "leave it out, or use compute.zero"))


class PipelineTraining:
    """One process's part of a model in training.

    Attributes:
        pipe: the part with its schedule.
        history: one row per logged step, as the trainer's.
    """

    def __init__(self, ctx: StageContext, model: Any, arguments: Any, batches: Batches, steps: int) -> None:
        """Cut the model and make optimizer and learning rates.

        Raises:
            PipelineError: the model is not one that is cut.
        """
        self.ctx, self.arguments, self.batches, self.steps = ctx, arguments, batches, steps
        self.ranks = Ranks.current()
        if self.ranks.count != ctx.ranks:
            found = f"{self.ranks.count} processes have joined"
            raise PipelineError(Problem(found, f"compute.pipeline_parallel {ctx.ranks}"))
        device = arguments.device
        self.pipe = Pipeline(Part(model, self.ranks).to(device), self.ranks, device)
        self.optimizer = self._optimizer()
        warmup = arguments.get_warmup_steps(steps)
        kind, more = arguments.lr_scheduler_type, dict(arguments.lr_scheduler_kwargs or {})
        self.rates = get_scheduler(kind, self.optimizer, warmup, steps, more)
        self.history: list[dict[str, float]] = []
        self._since: list[float] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        part = self.pipe.part
        decayed = set(Trainer.get_decay_parameter_names(None, part))  # by the trainer's rule
        groups = [
            {"params": [p for n, p in part.named_parameters() if n in decayed]},
            {"params": [p for n, p in part.named_parameters() if n not in decayed], "weight_decay": 0.0},
        ]
        made, options = Trainer.get_optimizer_cls_and_kwargs(self.arguments)
        options["weight_decay"] = self.arguments.weight_decay
        optimizer: torch.optim.Optimizer = made(groups, **options)
        return optimizer

    def run(self, rows: Sequence[dict[str, Any]], collate: CausalCollator) -> Trained:
        """Train to the end, or to the user's wish to stop.

        Raises:
            Interrupted: asked to stop; a checkpoint was saved.
            PipelineError: the loss is not finite.
        """
        checkpoint = newest_checkpoint(checkpoints_dir(self.ctx))
        clock = SessionClock(self.ctx.work / "seconds.json", fresh=checkpoint is None)
        begun = 0
        if checkpoint is not None:
            begun = step_of(checkpoint)
            self._load(checkpoint)
            self.ctx.note(f"resumes at step {begun} of {self.steps}")
        clock.start()
        saved_at = time.perf_counter()
        for step, group in self._groups(begun):
            self._step(step, collate([rows[row] for row in group]))
            if step == self.steps:
                break
            stopping = self.ctx.stopping()
            if stopping or any_rank(time.perf_counter() - saved_at > float(self.ctx.compute["checkpoint_every_s"])):
                self._save(step, clock)
                saved_at = time.perf_counter()
            if stopping:
                raise Interrupted(Problem(f"stopped as asked at step {step} of {self.steps}", stage=self.ctx.name))
        final = {key: value for key, value in self.history[-1].items() if key in ("loss", "grad_norm")}
        best = min(self.history, key=lambda row: row["loss"])
        tokens = self.batches.tokens(self.steps)
        return Trained(self.history, tokens, clock.total(), final, {"loss": best["loss"], "step": best["step"]})

    def _groups(self, begun: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the number and the rows of each step after ``begun``."""
        step, epoch = 0, 0
        while step < self.steps:
            self.batches.set_epoch(epoch)
            for group in self.batches.batches():
                step += 1
                if step > begun:
                    yield step, group
            epoch += 1

    def _step(self, step: int, batch: dict[str, torch.Tensor]) -> None:
        batch = {name: tensor.to(self.arguments.device) for name, tensor in batch.items()}
        passes = self.batches.batch_size // self.batches.micro_batch
        loss = self.pipe.backward(batch["input_ids"], batch["labels"], passes)
        norm = self.pipe.clip(self.arguments.max_grad_norm)
        rate = self.rates.get_last_lr()[0]
        if not math.isfinite(loss):
            remedy = "lower train.learning_rate or add train.warmup_steps; the last checkpoint is kept"
            problem = Problem(f"the loss is {loss} at step {step}", "a finite number", remedy)
            raise PipelineError(problem, exit_code=ExitCode.FAILED)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._since.append(loss)
        self.ctx.progress(step, self.steps, loss=loss, learning_rate=rate, grad_norm=norm)
        if step % int(self.arguments.logging_steps) == 0 or step == self.steps:
            mean = sum(self._since) / len(self._since)
            epoch = step / self.batches.batches_per_epoch
            row = {"loss": mean, "grad_norm": norm, "learning_rate": rate, "epoch": epoch, "step": float(step)}
            self.history.append(row)
            self._since = []

    def _file(self, folder: Path) -> Path:
        return folder / f"part-{self.ranks.index}-of-{self.ranks.count}.pt"

    def _save(self, step: int, clock: SessionClock) -> None:
        folder = checkpoints_dir(self.ctx) / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "part": self.pipe.part.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": {k: v for k, v in self.rates.state_dict().items() if k != "lr_lambdas"},
            "log": json.dumps([self.history, self._since]),
        }
        torch.save(state, self._file(folder))
        if self.ranks.is_first:
            clock.save()
        mark_whole(folder)

    def _load(self, folder: Path) -> None:
        if not self._file(folder).is_file():
            found = f"a checkpoint of another number of parts in {folder}"
            remedy = "resume with the pipeline it was made with, or remove the folder"
            raise PipelineError(Problem(found, f"compute.pipeline_parallel {self.ranks.count}", remedy))
        state = torch.load(self._file(folder), weights_only=True)
        self.pipe.part.load_state_dict(state["part"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict({**self.rates.state_dict(), **state["rates"]})
        self.history, self._since = json.loads(state["log"])
