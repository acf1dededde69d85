"""Verifies that a stage runs as the recipe asks: after preparation, and after the first forward and backward pass.

Libraries fall back silently if they cannot do what they were asked: accelerate from FSDP2 to plain data parallelism, or
from DeepSpeed to one process; one kernel to another. The stage then fails. What really ran goes into its manifest
(`runtime.ran.seen`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.forward_probe import ForwardProbe
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.kernels import WITHOUT_MASK
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sharding_state import bucket_of, foreign_parameters, holding, sharding_problems
from pipeline.parallel.tensor.audit import replicas_problem
from pipeline.parallel.zero.config import bucket_problem, width_of
from pipeline.stage import StageContext
from pipeline.training.arguments import attention_name, device_of, liger_kernels, precision_of

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REPORT = "see `trueup doctor` for what is installed, or leave it out"


class Audit(TrainerCallback):  # type: ignore[misc]
    """Callback that audits a transformers Trainer when training begins, and before its first optimizer step.

    Attributes:
        ctx: the stage's context.
        trainer: the trainer.
        adapter: the recipe's `adapter:` block; None without one.
    """

    def __init__(self, ctx: StageContext, trainer: Trainer, adapter: Adapter | None) -> None:
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
            check_first_pass(self.ctx, self._first, precision_of(self.ctx))
            self._first = None
            check_replicas(self.ctx, self.trainer.model)


def trainer_problems(ctx: StageContext, trainer: Trainer) -> Iterator[Problem]:
    """Yield a problem for each setting of the trainer's accelerator that differs from the recipe."""
    precision = precision_of(ctx)
    mixed = str(trainer.accelerator.mixed_precision)
    if mixed != {"fp32": "no"}.get(precision, precision):
        statement = f"accelerate computes in {'fp32' if mixed == 'no' else mixed}, compute.precision is {precision}"
        yield Problem(statement, precision, "set compute.precision: fp32")
    alike = not ctx.dims.is_sharded and ctx.dims.model_parallel_size == 1
    if alike and ctx.ranks > 1 and not isinstance(trainer.model_wrapped, DistributedDataParallel):
        statement = f"DDP is missing: gradients are not averaged over the {ctx.ranks} processes"
        yield Problem(statement, "DistributedDataParallel around the model", "set compute.zero: 1")


def check_prepared(
    ctx: StageContext,
    model: PreTrainedModel | PeftModel,
    optimizer: Optimizer | ZeROOptimizer,
    adapter: Adapter | None,
    prepared: nn.Module | None = None,
) -> None:
    """Check a model and its optimizer after preparation.

    Args:
        ctx: the stage's context; what is measured goes into its report.
        model: the unwrapped model; with FSDP2, the module that FSDP2 shards in place.
        optimizer: torch's, accelerate's or DeepSpeed's.
        adapter: the recipe's `adapter:` block; None without one.
        prepared: the module that was prepared, if the model is only a part of it.

    Raises:
        PipelineError: it differs from what the recipe asks for.
    """
    prepared = model if prepared is None else prepared
    sharding = holding(prepared, optimizer)
    kernels = kernels_of(ctx, model)
    seen = {"engine": sharding.engine, "weights": sharding.weights, "optimizer": sharding.optimizer}
    ctx.report(seen=seen, **kernels._asdict())
    zero = ctx.dims.zero
    bucket = bucket_problem(zero, width_of(model), bucket_of(optimizer)) if zero else None
    problems = [
        *sharding_problems(ctx.dims, sharding, Ranks.current().count),
        *([] if bucket is None else [bucket]),
        *weight_problems(prepared, optimizer, device_of(ctx).partition(":")[0]),
        *adapter_problems(model, adapter),
        *kernel_problems(ctx, model, kernels),
    ]
    _raise_problems(ctx, problems)


def check_first_pass(ctx: StageContext, seen: ForwardProbe, precision: str) -> None:
    """Check the dtype and the activation checkpointing of the first pass, before the first optimizer step.

    Args:
        ctx: the stage's context; what was measured goes into its report.
        seen: probe of the pass.
        precision: expected compute precision.

    Raises:
        PipelineError: the dtype or the activation checkpointing differs from what the recipe asks for.
    """
    seen.end()
    if seen.is_blind:
        return
    again = seen.again > 0
    ctx.report(seen={"dtype": str(seen.dtype).removeprefix("torch."), "recomputed": again})
    problems = []
    if seen.dtype is not None and seen.dtype != DTYPES[precision]:
        statement = f"layers compute in {str(seen.dtype).removeprefix('torch.')}, compute.precision is {precision}"
        problems.append(
            Problem(statement, str(DTYPES[precision]).removeprefix("torch."), "set compute.precision: fp32")
        )
    asked = ctx.compute.recomputes
    if asked and seen.again < seen.passes - seen.again:
        their = agreeing(seen.passes, "its", "their")
        what = f"{counted(seen.passes, 'pass', 'passes')} of a layer kept {their} activations"
        statement = f"compute.activation_checkpointing is true, {what}"
        problems.append(Problem(statement, "every one computed again", "set compute.activation_checkpointing: false"))
    if again and not asked:
        statement = "activations are computed twice, compute.activation_checkpointing does not ask for it"
        problems.append(Problem(statement, "once", "set compute.activation_checkpointing: true"))
    _raise_problems(ctx, problems)


def check_replicas(ctx: StageContext, model: PreTrainedModel | PeftModel) -> None:
    """Check that replicas of a tensor-parallel model have the same gradients in the first optimizer step.

    Raises:
        PipelineError: the gradients differ, so the replicas would take different steps.
    """
    problem = replicas_problem(model)
    _raise_problems(ctx, [] if problem is None else [problem])


def _raise_problems(ctx: StageContext, problems: list[Problem]) -> None:
    if problems:
        raise PipelineError(*(replace(problem, stage=ctx.name) for problem in problems))


def weight_problems(model: nn.Module, optimizer: Optimizer | ZeROOptimizer, device: str) -> Iterator[Problem]:
    """Yield a problem if trained weights are on another device, or the optimizer updates tensors of another model."""
    elsewhere = {p.device.type for p in model.parameters() if p.requires_grad} - {device}
    if elsewhere:
        yield Problem(f"weights are on {', '.join(sorted(elsewhere))}", device, "set compute.device")
    lost = foreign_parameters(model, optimizer)
    if lost:
        are = agreeing(lost, "is no weight", "are no weights")
        yield Problem(f"the optimizer steps {counted(lost, 'tensor')} that {are} of the model", "its weights", REPORT)


def adapter_problems(model: PreTrainedModel | PeftModel, adapter: Adapter | None) -> Iterator[Problem]:
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


class Kernels(NamedTuple):
    """The kernels that a prepared model runs; the field names are those of the manifest.

    Attributes:
        attention: `transformers`' name of the attention implementation.
        liger: whether Liger's fused kernels run.
    """

    attention: str
    liger: bool


def kernels_of(ctx: StageContext, model: PreTrainedModel | PeftModel) -> Kernels:
    """Return the kernels that a model runs; Liger's count if the stage asks for them and any module has them."""
    plain = _without_adapter(model)
    attention = str(plain.config.get_text_config()._attn_implementation)
    return Kernels(attention, liger_kernels(ctx) and has_liger(plain))


def kernel_problems(ctx: StageContext, model: PreTrainedModel | PeftModel, runs: Kernels) -> Iterator[Problem]:
    """Yield a problem for each kernel that the recipe asks for by name and that does not run."""
    asked = ctx.compute.attention
    if asked != "auto":
        wanted = attention_name(ctx)
        if runs.attention not in ({wanted, WITHOUT_MASK} if wanted == "sdpa" else {wanted}):
            statement = f"compute.attention is {asked}, and the model runs {runs.attention}"
            yield Problem(statement, wanted, "set compute.attention: auto")
    if ctx.compute.liger == "on" and not runs.liger and ctx.dims.tensor_parallel == 1:
        kind = _without_adapter(model).config.model_type
        statement = f"compute.liger is on, and no part of the {kind} model runs its kernels"
        yield Problem(statement, "a model Liger knows", "set compute.liger: off")


def _without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def has_liger(model: nn.Module) -> bool:
    """Return whether any module of a model runs one of Liger's forward functions."""
    return any(str(getattr(part.forward, "__module__", "")).startswith("liger_kernel") for part in model.modules())
