"""What can be known to go wrong before anything runs: bad rows, rows without a judge, contexts that are too short.

Owns the checks of a plan that need to read data or to follow a model through the chain. Imports no torch. Rows that
were read once without a problem are remembered by their digest, so a second run does not read them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Store
from pipeline.environment import installed
from pipeline.errors import PipelineError, Problem
from pipeline.forecast import fitting_problems
from pipeline.models.contract import facts_of_folder
from pipeline.models.kernels import INSTALL, NAMES, flash_kernel, has
from pipeline.parallel.division import divide, head_problem
from pipeline.plan import Plan, PlannedStage
from pipeline.records import load
from pipeline.stage import Data, Shapes, kind_of

DIVIDED = ("batch_size", "kl_batch")
"""Words of `train` that are numbers of rows all processes of a stage share evenly."""

SLICED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")
"""Optimizers whose steps were shown to be the same in slices."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


def check_plan(plan: Plan, store: Store) -> None:
    """Check everything pending.

    Raises:
        PipelineError: all problems found.
    """
    problems = [
        *_engine_problems(plan),
        *_division_problems(plan),
        *_rows_problems(plan, store),
        *_length_problems(plan),
        *_template_problems(plan),
        *_quantize_problems(plan),
        *_slicing_problems(plan),
    ]
    problems += fitting_problems(plan, store)
    if problems:
        raise PipelineError(*dict.fromkeys(problems))


def _engine_problems(plan: Plan) -> Iterator[Problem]:
    """Find stages that need a package this machine lacks; what another machine has is for it to say."""
    for stage in plan.pending:
        compute = stage.spec.compute
        here = compute.launcher == "local" and kind_of(stage.spec.kind).parallel
        if here and compute.zero and not installed("deepspeed"):
            found = f"compute.zero is {compute.zero}, DeepSpeed is not installed"
            remedy = "pip install 'trueup[deepspeed]'"
            yield Problem(found, "DeepSpeed", remedy, stage.spec.where, stage.spec.name)
        if stage.spec.kind == "ppo" and compute.activation_checkpointing is True:
            found = "compute.activation_checkpointing is true"
            remedy = "lower compute.micro_batch: PPO keeps the activations of one micro-batch only"
            yield Problem(found, "auto or false for ppo", remedy, stage.spec.where, stage.spec.name)
        if here:
            yield from _kernel_problems(stage)


def _kernel_problems(stage: PlannedStage) -> Iterator[Problem]:
    """Find what is asked for by name and not installed; whether there is a GPU, torch says when the stage runs."""
    compute, engine = stage.spec.compute, getattr(stage.spec.config, "rollout_engine", "auto")
    asked = {
        "flash": (compute.attention == "flash" and flash_kernel() is None, "compute.attention is flash"),
        "liger": (compute.liger == "on" and not has("liger_kernel"), "compute.liger is on"),
        "vllm": (engine == "vllm" and not has("vllm"), "rollout_engine is vllm"),
    }
    for extra, (is_missing, what) in asked.items():
        if is_missing:
            found = f"{what}, {NAMES[extra]} is not installed"
            yield Problem(found, NAMES[extra], INSTALL[extra], stage.spec.where, stage.spec.name)


def _division_problems(plan: Plan) -> Iterator[Problem]:
    """Find batches that do not divide over the processes of their stage."""
    for stage in plan.pending:
        compute, train = stage.spec.compute, getattr(stage.spec.config, "train", None)
        processes = compute.replicas
        if processes == 1 or not kind_of(stage.spec.kind).parallel:
            continue
        for word in DIVIDED:
            rows = getattr(train, word, None)
            if rows is None:
                continue
            try:
                divide(rows, "auto", 1, processes, word=word)
            except PipelineError as error:
                yield from (replace(one, where=stage.spec.where, stage=stage.spec.name) for one in error.problems)


def _rows_problems(plan: Plan, store: Store) -> Iterator[Problem]:
    """Read every file a pending stage needs, as the shape it needs; artifacts and hubs are read when they run."""
    seen = _Remembered(store.root / ".cache" / "checked-rows.json")
    for stage in plan.pending:
        markers: dict[str, Data] = type(stage.spec.config).markers(Data)
        for name, item in stage.data.items():
            source = plan.recipe.data[item.source_name]
            if source.path is None:
                continue
            key = seen.key(item.digest, markers[name].shape, source.model_dump(mode="json", exclude={"path"}))
            if key in seen.keys:
                continue
            try:
                load(source, markers[name].shape, seed=stage.spec.seed, name=item.source_name)
            except PipelineError as error:
                yield from (_placed(problem, plan, item.source_name, stage) for problem in error.problems)
            else:
                seen.keys.add(key)
    seen.save()


def _quantize_problems(plan: Plan) -> Iterator[Problem]:
    """Name what quantised weights need and this machine or this recipe lacks."""
    for stage in plan.pending:
        quantize = getattr(getattr(stage.spec.config, "adapter", None), "quantize", None)
        if quantize is not None and not installed("bitsandbytes"):
            yield Problem(
                f"adapter.quantize is {quantize}",
                "the package bitsandbytes",
                "pip install 'trueup[quantize]'",
                plan.recipe.where("stages", stage.spec.name, "adapter", "quantize"),
                stage.spec.name,
            )


def _slicing_problems(plan: Plan) -> Iterator[Problem]:
    """Find models and adapters that tensor parallelism cannot slice; what only a hub knows is said when it runs."""
    for stage in plan.pending:
        size = stage.spec.compute.tensor_parallel if kind_of(stage.spec.kind).parallel else 1
        if size == 1:
            continue
        fields = _model_fields(stage, {one.spec.name: one for one in plan.stages}) or {}
        heads = int(fields.get("num_attention_heads") or 0)
        problem = head_problem(heads, int(fields.get("num_key_value_heads") or heads), size) if heads else None
        if problem is not None:
            yield replace(problem, where=stage.spec.where, stage=stage.spec.name)
        optim = getattr(getattr(stage.spec.config, "train", None), "optim", SLICED_OPTIMIZERS[0])
        if optim not in SLICED_OPTIMIZERS:
            found = f"train.optim is {optim} with compute.tensor_parallel {size}"
            expected = f"one that steps each number by itself: {', '.join(SLICED_OPTIMIZERS)}"
            yield Problem(found, expected, "", plan.recipe.where("stages", stage.spec.name), stage.spec.name)
        adapter = getattr(stage.spec.config, "adapter", None)
        for word in ("quantize", "dropout"):
            if getattr(adapter, word, None):
                found = f"adapter.{word} is {getattr(adapter, word)} with compute.tensor_parallel {size}"
                remedy = f"remove adapter.{word}, or set compute.tensor_parallel: 1"
                where = plan.recipe.where("stages", stage.spec.name, "adapter", word)
                yield Problem(found, "none: slices would not be those of one process", remedy, where, stage.spec.name)


def _placed(problem: Problem, plan: Plan, source_name: str, stage: PlannedStage) -> Problem:
    where = problem.where or plan.recipe.where("data", source_name)
    return Problem(problem.found, problem.expected, problem.remedy, where, problem.stage or stage.spec.name)


def _length_problems(plan: Plan) -> Iterator[Problem]:
    """Compare `train.max_length` with the context of the model the stage's chain starts from."""
    stages = {stage.spec.name: stage for stage in plan.stages}
    for stage in plan.pending:
        train = getattr(stage.spec.config, "train", None)
        asked = getattr(train, "max_length", None)
        context = _context(stage, stages)
        if asked is not None and context is not None and asked > context:
            yield Problem(
                f"train.max_length is {asked}",
                f"at most the model's context of {context} tokens",
                "lower it, or give the model a longer context",
                plan.recipe.where("stages", stage.spec.name, "train", "max_length"),
                stage.spec.name,
            )


def _context(stage: PlannedStage, stages: dict[str, PlannedStage]) -> int | None:
    """Return the context of the model a stage trains, as its recipe or its folder says; None when only a hub knows."""
    fields = _model_fields(stage, stages) or {}
    return next((int(fields[key]) for key in CONTEXT_KEYS if fields.get(key)), None)


def _model_fields(stage: PlannedStage, stages: dict[str, PlannedStage]) -> dict[str, Any] | None:
    """Return the configuration of the model a stage trains, as far as its recipe or its folder says it."""
    spec: Any = getattr(stage.spec.config, "model", None)
    if isinstance(spec, dict):
        return spec
    for items in (stage.inputs.get("model"), stage.inputs.get("init")):
        if not items:
            continue
        if items[0].ref in stages:
            return _model_fields(stages[items[0].ref], stages)
        file = items[0].artifact / "config.json" if items[0].artifact is not None else None
        if file is None or not file.is_file():
            return None
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
    return None


def _template_problems(plan: Plan) -> Iterator[Problem]:
    """Ask for a chat template where a stage reads conversations with a model that is already there."""
    for stage in plan.pending:
        if all(marker.shape == "text" for marker in type(stage.spec.config).markers(Data).values()):
            continue
        if getattr(stage.spec.config, "chat_template", None):
            continue
        for items in stage.inputs.values():
            for item in items:
                known = facts_of_folder(item.artifact, item.name) if item.artifact is not None else None
                if known is not None and not known.template:
                    yield Problem(
                        f"`{item.ref}` has no chat template",
                        "one, to render conversations",
                        "put a chat_template.jinja into its folder",
                        plan.recipe.where("stages", stage.spec.name, item.field),
                        stage.spec.name,
                    )


class _Remembered:
    """Digests of rows that were read without a problem."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: set[str] = set()
        try:
            self.keys.update(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            self.keys = set()
        self._before = len(self.keys)

    @staticmethod
    def key(digest: str, shape: Shapes, options: dict[str, Any]) -> str:
        """Return what identifies rows read in one way."""
        text = json.dumps([digest, shape, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self) -> None:
        """Write the file, if anything was added; a lost write only costs time."""
        if len(self.keys) == self._before:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(sorted(self.keys)), encoding="utf-8")
        part.replace(self.file)
