"""Checkpoints of a pipeline, in the format that transformers' Trainer writes on one process.

Weights and optimizer state are consolidated and written in full; each pipeline stage loads its own part. So a run can
resume with another number of stages or replicas, with the Trainer on any number of processes, or with ZeRO, and the
other way round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.optimizer import StateDict
from transformers import Trainer, TrainerControl, TrainerState

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.pipeline.schedule import Pipeline
from pipeline.parallel.pipeline.stage_module import StageModule
from pipeline.training.checkpoint.completion import mark_complete
from pipeline.training.checkpoint.consolidated import OPTIMIZER_FILE, SCHEDULER_FILE, tensors_in
from pipeline.training.checkpoint.running_metrics import SUMS_FILE
from pipeline.training.loop import timeless

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedModel, TrainingArguments

STATE_FILE = "trainer_state.json"
WEIGHTS_FILE = "model.safetensors"
RANDOM_FILE = "random-{rank}-of-{ranks}.pt"
"""File with a process's random states, so that dropout is the same after a resume."""


@dataclass
class Log:
    """The training log, and the running sums since its last row.

    Attributes:
        history: rows in the format of the Trainer's log.
        loss: sum of the losses since the last row.
        steps: steps since the last row.
        logged: sum of all losses up to the last row.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    loss: float = 0.0
    steps: int = 0
    logged: float = 0.0

    def add(self, loss: float) -> None:
        """Add the loss of a step."""
        self.loss += loss
        self.steps += 1

    def write(self, **values: float) -> None:
        """Write a row with the mean loss since the last one."""
        self.history.append({"loss": self.loss / self.steps, **values})
        self.loss, self.steps, self.logged = 0.0, 0, self.logged + self.loss


def groups_of(model: PreTrainedModel) -> list[list[str]]:
    """Return a full model's weight names by parameter group: with and without weight decay, as the Trainer does."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    groups = [[n for n in names if n in decayed], [n for n in names if n not in decayed]]
    return [group for group in groups if group]


def optimizer_of(
    part: StageModule, groups: Sequence[Sequence[str]], arguments: TrainingArguments
) -> torch.optim.Optimizer:
    """Create the optimizer of a stage's weights with the full model's parameter groups; the second has no decay."""
    named = part.full_names()
    decays = [arguments.weight_decay, 0.0]
    own = [
        {"params": [named[name] for name in group if name in named], "weight_decay": decay}
        for group, decay in zip(groups, decays, strict=False)
    ]
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer: torch.optim.Optimizer = optimizer_class(own, **options)
    return optimizer


class PipelineState:
    """Saves and loads the state of a pipeline in training: weights, optimizer, schedule, log, random states."""

    def __init__(
        self, pipe: Pipeline, optimizer: torch.optim.Optimizer, rates: LRScheduler, groups: Sequence[Sequence[str]]
    ) -> None:
        self.pipe, self.optimizer, self.rates, self.groups = pipe, optimizer, rates, groups

    def save(self, folder: Path, log: Log, arguments: TrainingArguments, step: int, epoch: float) -> None:
        """Write a checkpoint; every process must call it."""
        ranks = self.pipe.place.ranks
        folder.mkdir(parents=True, exist_ok=True)
        weights, optimizer = self.pipe.consolidated_state(), self._gathered_optimizer()
        if ranks.is_first:
            save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            torch.save(optimizer, folder / OPTIMIZER_FILE)
            torch.save(self.rates.state_dict(), folder / SCHEDULER_FILE)
            callbacks = [TrainerControl()]  # the Trainer expects this entry if it resumes from here
            state = TrainerState(epoch, step, log_history=log.history, stateful_callbacks=callbacks)
            state.compute_steps(arguments, arguments.max_steps)
            state.max_steps = arguments.max_steps
            state.train_batch_size = arguments.train_batch_size
            state.save_to_json(str(folder / STATE_FILE))
            sums = {"loss": log.loss, "logged_loss": log.logged, "last_logged": step - log.steps}
            text = json.dumps({**sums, "metrics": {}, "tokens": 0})
            (folder / SUMS_FILE.format(rank=0)).write_text(text, encoding="utf-8")
        torch.save(_random_states(), folder / RANDOM_FILE.format(rank=ranks.index, ranks=ranks.count))
        mark_complete(folder)

    def load(self, folder: Path) -> Log:
        """Load a checkpoint of this run, written by a pipeline or by the Trainer.

        Raises:
            PipelineError: it is not a checkpoint of this model.
        """
        ranks = self.pipe.place.ranks
        own, missing = self.pipe.part.full_names(), set(self.pipe.part.full_names())
        with torch.no_grad():
            for name, tensor in tensors_in(folder, own):
                own[name].copy_(tensor)
                missing.discard(name)
        if missing:
            raise _unfit_checkpoint(folder, f"without {sorted(missing)[0]}")
        self._load_optimizer(folder)
        self.rates.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
        file = folder / RANDOM_FILE.format(rank=ranks.index, ranks=ranks.count)
        if file.is_file():
            _set_random_states(torch.load(file, weights_only=True))
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        files = sorted(folder.glob(SUMS_FILE.format(rank="*")))
        sums = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not sums:
            raise _unfit_checkpoint(folder, "without running sums")
        loss = sum(one["loss"] for one in sums) / len(sums)
        steps = int(state["global_step"]) - int(sums[0]["last_logged"])
        return Log(timeless(state["log_history"]), loss, steps, sums[0]["logged_loss"])

    def _gathered_optimizer(self) -> StateDict:
        """Return the optimizer's `state_dict` as it would be on one process, on the first process."""
        ranks, part = self.pipe.place.ranks, self.pipe.part
        tensors: dict[str, Tensor] = {}
        rest: list[tuple[str, str, Any]] = []
        for name, parameter in part.counted().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name} {key}"] = value
                else:
                    rest.append((name, key, value))
        indices = {name: index for index, name in enumerate(name for group in self.groups for name in group)}
        state: dict[int, StateDict] = {}
        gathered = self.pipe.gather_to_first(tensors)
        rest = ranks.all_gather(rest)
        if ranks.is_first:
            rest += [(*label.split(" "), tensor) for label, tensor in gathered.items()]  # type: ignore[misc]
            for name, key, value in rest:
                state.setdefault(indices[name], {})[key] = value
        groups: list[StateDict] = []
        for names, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            settings = {key: value for key, value in group.items() if key != "params"}
            groups.append({**settings, "params": [indices[name] for name in names]})
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _load_optimizer(self, folder: Path) -> None:
        file = folder / OPTIMIZER_FILE
        if not file.is_file():
            raise _unfit_checkpoint(folder, "without an optimizer of one process")
        # Memory-mapped: the processes of a machine share the pages, and each uses only its part.
        consolidated = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if [len(group["params"]) for group in consolidated["param_groups"]] != [len(group) for group in self.groups]:
            raise _unfit_checkpoint(folder, "with an optimizer of other groups")
        named = self.pipe.part.full_names()
        state: dict[int, Any] = {}
        groups: list[StateDict] = []
        for names, saved_group in zip(self.groups, consolidated["param_groups"], strict=True):
            begin = sum(len(group["params"]) for group in groups)
            own = [index for name, index in zip(names, saved_group["params"], strict=True) if name in named]
            state.update(
                {
                    begin + i: consolidated["state"][index]
                    for i, index in enumerate(own)
                    if index in consolidated["state"]
                }
            )
            groups.append({**saved_group, "params": list(range(begin, begin + len(own)))})
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _unfit_checkpoint(folder: Path, defect: str) -> PipelineError:
    return PipelineError(Problem(f"a checkpoint {defect} in {folder}", "one of this model", "remove the folder"))
