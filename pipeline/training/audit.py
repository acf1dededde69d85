"""Verifies that a stage runs as the recipe asks: after preparation, and after the first forward and backward pass.

Libraries fall back silently if they cannot do what they were asked: accelerate from FSDP2 to plain data parallelism, or
from DeepSpeed to one process; one kernel to another. The stage then fails. What really ran goes into its manifest
(`runtime.ran.seen`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.adapter_config import Adapter
from pipeline.models.forward_probe import ForwardProbe
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sharding_state import ShardingState, bucket_of, foreign_parameters, holding
from pipeline.parallel.tensor.sharding import TPReplicas, size_of
from pipeline.stage import StageContext, model_parallel_size
from pipeline.training.arguments import device_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REPORT = "see `trueup doctor` for what is installed, or leave it out"


class Audit(TrainerCallback):  # type: ignore[misc]
    """Callback that audits a transformers Trainer when training begins, and before its first optimizer step.

    Attributes:
        ctx: the stage's context.
        trainer: the trainer.
        adapter: the recipe's `adapter:` block; None without one.
    """

    def __init__(self, ctx: StageContext, trainer: Any, adapter: Adapter | None) -> None:
        self.ctx, self.trainer, self.adapter = ctx, trainer, adapter
        self._first: ForwardProbe | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the prepared model and optimizer, and start the probe of the first forward pass."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        _raise_problems(self.ctx, list(trainer_problems(self.ctx, self.trainer)))
        check_prepared(self.ctx, model, self.trainer.optimizer, self.adapter)
        if not args.torch_compile:  # hooks would be compiled into the model
            self._first = ForwardProbe(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the first forward and backward pass."""
        if self._first is not None:
            check_first_pass(self.ctx, self._first, str(self.ctx.runtime_report["precision"]))
            self._first = None
            check_replicas(self.ctx, self.trainer.model)


def trainer_problems(ctx: StageContext, trainer: Any) -> Iterator[Problem]:
    """Yield a problem for each setting of the trainer's accelerator that differs from the recipe."""
    precision = str(ctx.runtime_report["precision"])
    mixed = str(trainer.accelerator.mixed_precision)
    if mixed != {"fp32": "no"}.get(precision, precision):
        statement = f"accelerate computes in {'fp32' if mixed == 'no' else mixed}, compute.precision is {precision}"
        yield Problem(statement, precision, "set compute.precision: fp32")
    alike = not (ctx.compute.get("zero") or ctx.compute.get("fsdp")) and model_parallel_size(ctx.compute) == 1
    if alike and ctx.ranks > 1 and not isinstance(trainer.model_wrapped, DistributedDataParallel):
        statement = f"{ctx.ranks} processes train, and nobody sums their gradients"
        yield Problem(statement, "DistributedDataParallel around the model", "set compute.zero: 1")


def check_prepared(
    ctx: StageContext, model: Any, optimizer: Any, adapter: Adapter | None, prepared: nn.Module | None = None
) -> None:
    """Check a model and its optimizer after preparation.

    Args:
        ctx: the stage's context; its `runtime_report` gets what is measured.
        model: the unwrapped model; with FSDP2, the module that FSDP2 shards in place.
        optimizer: torch's, accelerate's or DeepSpeed's.
        adapter: the recipe's `adapter:` block; None without one.
        prepared: the module that was prepared, if the model is only a part of it.

    Raises:
        PipelineError: it differs from what the recipe asks for.
    """
    prepared = model if prepared is None else prepared
    sharding = holding(prepared, optimizer)
    ctx.runtime_report["seen"] = {
        "engine": sharding.engine,
        "weights": sharding.weights,
        "optimizer": sharding.optimizer,
    }
    problems = [
        *sharding_problems(ctx, sharding),
        *bucket_problems(ctx, bucket_of(optimizer)),
        *weight_problems(prepared, optimizer, device_of(ctx).partition(":")[0]),
        *adapter_problems(model, adapter),
        *kernel_problems(ctx, model),
    ]
    _raise_problems(ctx, problems)


def check_first_pass(ctx: StageContext, seen: ForwardProbe, precision: str) -> None:
    """Check the dtype and the activation checkpointing of the first pass, before the first optimizer step.

    Args:
        ctx: the stage's context; its `runtime_report` gets what was measured.
        seen: probe of the pass.
        precision: expected compute precision.

    Raises:
        PipelineError: the dtype or the activation checkpointing differs from what the recipe asks for.
    """
    seen.end()
    if seen.is_blind:
        return
    again = seen.again > 0
    ctx.runtime_report.setdefault("seen", {}).update(dtype=str(seen.dtype).removeprefix("torch."), recomputed=again)
    problems = []
    if seen.dtype is not None and seen.dtype != DTYPES[precision]:
        statement = f"layers compute in {str(seen.dtype).removeprefix('torch.')}, compute.precision is {precision}"
        problems.append(
            Problem(statement, str(DTYPES[precision]).removeprefix("torch."), "set compute.precision: fp32")
        )
    asked = ctx.compute.get("activation_checkpointing") is True
    if asked and seen.again < seen.passes - seen.again:
        their = agreeing(seen.passes, "its", "their")
        what = f"{counted(seen.passes, 'pass', 'passes')} of a layer kept {their} activations"
        statement = f"compute.activation_checkpointing is true, {what}"
        problems.append(Problem(statement, "every one computed again", "set compute.activation_checkpointing: false"))
    if again and not asked:
        statement = "activations are computed twice, compute.activation_checkpointing does not ask for it"
        problems.append(Problem(statement, "once", "set compute.activation_checkpointing: true"))
    _raise_problems(ctx, problems)


def check_replicas(ctx: StageContext, model: Any) -> None:
    """Check that replicas of a tensor-parallel model have the same gradients in the first optimizer step.

    Raises:
        PipelineError: the gradients differ, so the replicas would take different steps.
    """
    replicas = TPReplicas(model) if size_of(model) > 1 else None
    if replicas is not None and replicas.count > 1 and replicas.apart(model) > 0:
        statement = f"{replicas.count} groups of {size_of(model)} processes train, and their gradients differ"
        expected, remedy = "gradients averaged over the groups", f"use {size_of(model)} processes"
        _raise_problems(ctx, [Problem(statement, expected, remedy)])


def _raise_problems(ctx: StageContext, problems: list[Problem]) -> None:
    if problems:
        raise PipelineError(*(replace(problem, stage=ctx.name) for problem in problems))


def sharding_problems(ctx: StageContext, sharding: ShardingState) -> Iterator[Problem]:
    """Yield a problem if the number of ranks, or the sharding over them, differs from `compute`."""
    joined = Ranks.current().count
    if joined != ctx.ranks:
        yield Problem(
            f"{counted(joined, 'process', 'processes')} joined",
            f"{ctx.ranks}, as compute says",
            "see the logs of the others",
        )
    zero, fsdp = int(ctx.compute.get("zero") or 0), bool(ctx.compute.get("fsdp"))
    if model_parallel_size(ctx.compute) > 1 and not (zero or fsdp):
        return  # tensor and sequence parallelism have their own checks
    expected = f"ZeRO-{zero}" if zero else "FSDP2" if fsdp else "plain"
    remedy = "set compute.fsdp: true" if zero else "set compute.zero: 3" if fsdp else "leave out what shards"
    if sharding.engine != expected:
        yield Problem(f"compute asks for {expected}, and {sharding.engine} runs", "what was asked for", remedy)
    elif expected != "plain" and sharding.over != ctx.ranks:
        statement = f"{expected} has spread its state over {sharding.over} of {ctx.ranks} processes"
        yield Problem(statement, "all of them", remedy)


def bucket_problems(ctx: StageContext, bucket: int | None) -> Iterator[Problem]:
    """Yield a problem if DeepSpeed's bucket size differs from the one in the memory forecast and the manifest."""
    expected = ctx.runtime_report.get("deepspeed", {}).get("zero_optimization", {}).get("reduce_bucket_size", bucket)
    if bucket != expected:
        yield Problem(f"DeepSpeed's buckets have {bucket} elements", f"{expected}, from the model's width", REPORT)


def weight_problems(model: nn.Module, optimizer: Any, device: str) -> Iterator[Problem]:
    """Yield a problem if trained weights are on another device, or the optimizer updates tensors of another model."""
    elsewhere = {p.device.type for p in model.parameters() if p.requires_grad} - {device}
    if elsewhere:
        yield Problem(f"weights are on {', '.join(sorted(elsewhere))}", device, "set compute.device")
    lost = foreign_parameters(model, optimizer)
    if lost:
        are = agreeing(lost, "is no weight", "are no weights")
        yield Problem(f"the optimizer steps {counted(lost, 'tensor')} that {are} of the model", "its weights", REPORT)


def adapter_problems(model: Any, adapter: Adapter | None) -> Iterator[Problem]:
    """Yield a problem for a missing, disabled or unexpected adapter, one of another rank, and a wrong base model.

    The base must be frozen, and quantised if the recipe asks for it.
    """
    if adapter is None:
        frozen = sum(not parameter.requires_grad for parameter in model.parameters())
        if isinstance(model, PeftModel) or frozen:
            statement = (
                "an adapter trains"
                if isinstance(model, PeftModel)
                else f"{counted(frozen, 'weight')} {agreeing(frozen, 'is', 'are')} frozen"
            )
            yield Problem(f"{statement}, the recipe asks for none", "all weights trained", "add `adapter:`")
        return
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    if not isinstance(model, PeftModel) or not layers:
        yield Problem(f"no layer carries the adapter of rank {adapter.r}", "a LoRA adapter", "see adapter.targets")
        return
    active = model.active_adapter
    ranks = {layer.r[active] for layer in layers if active in layer.r}
    if ranks != {adapter.r}:
        yield Problem(f"the adapter has rank {sorted(ranks)}", f"{adapter.r}, as adapter.r says", REPORT)
    if any(layer.disable_adapters or layer.merged for layer in layers):
        yield Problem("the adapter is switched off or folded in", "an adapter that trains", REPORT)
    base = [name for name, p in model.named_parameters() if p.requires_grad and ".base_layer." in name]
    if base:
        yield Problem(f"{base[0]} is trained beneath the adapter", "frozen weights there", REPORT)
    if adapter.quantize is not None:
        yield from _quantise_problems(layers, adapter.quantize)


def _quantise_problems(layers: list[Any], asked: str) -> Iterator[Problem]:
    wanted = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[asked]
    other_class = [layer for layer in layers if wanted not in {one.__name__ for one in type(layer.base_layer).__mro__}]
    unquantised = [layer for layer in layers if layer.base_layer.weight.dtype not in (torch.uint8, torch.int8)]
    if other_class or unquantised:
        count = max(len(other_class), len(unquantised))
        are = agreeing(count, "is", "are")
        statement = f"adapter.quantize is {asked}, {count} of {counted(len(layers), 'layer')} {are} not quantised"
        yield Problem(statement, f"all in {asked}", "leave adapter.quantize out, or pip install 'trueup[quantize]'")


def kernel_problems(ctx: StageContext, model: Any) -> Iterator[Problem]:
    """Yield a problem for each kernel that the recipe asks for and that does not run; report the ones that do."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    runs = str(plain.config.get_text_config()._attn_implementation)
    asked, told = str(ctx.compute.get("attention", "auto")), str(ctx.runtime_report.get("attention", runs))
    if asked != "auto" and runs != told:
        statement = f"compute.attention is {asked}, and the model runs {runs}"
        yield Problem(statement, told, "set compute.attention: auto")
    ctx.runtime_report["attention"] = runs
    if ctx.runtime_report.get("liger") and not has_liger(plain):
        if ctx.compute.get("liger") == "on":
            statement = f"compute.liger is on, and no part of the {plain.config.model_type} model runs its kernels"
            yield Problem(statement, "a model Liger knows", "set compute.liger: off")
        ctx.runtime_report["liger"] = False


def has_liger(model: nn.Module) -> bool:
    """Return whether any module of a model runs one of Liger's forward functions."""
    return any(str(getattr(part.forward, "__module__", "")).startswith("liger_kernel") for part in model.modules())
