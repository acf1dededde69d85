"""Models under ZeRO-3: each weight is sharded over the processes as it is made or read.

A model that no process could hold whole is loaded so: whole is one module at a time. Whoever needs a weight gathers it;
what gathers is called by every process. Knows DeepSpeed's parameters; nothing of trainers and of files.

Reference: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (partitioned parameters).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.ranks import Ranks

DeepSpeedConfig = Mapping[str, Any]
"""DeepSpeed's configuration, of the stage that loads a sharded model."""


@contextmanager
def zero3_loading(parts: DeepSpeedConfig | None) -> Iterator[None]:
    """Let `from_pretrained` share out each weight it reads; the first process reads. Without parts, do nothing.

    Args:
        parts: of DeepSpeed's configuration its `zero_optimization`, `bf16` and `fp16` are used.
    """
    if parts is None:
        yield
        return
    _positions_kept(parts)
    known = integration.HfDeepSpeedConfig(_of_loading(parts))  # transformers holds it weakly
    try:
        yield
    finally:
        integration.unset_hf_deepspeed_config()  # a model that is loaded next, a reward's, is for this process alone
        del known


@contextmanager
def zero3_building(parts: DeepSpeedConfig | None) -> Iterator[None]:
    """Let a model that is built share out each weight once it is drawn. Without parts, do nothing.

    The first process draws the numbers that one process would, in the same order: when a module is made, and again when
    its model initialises it. (`from_config` of transformers leaves the first out, so its weights are others.)
    """
    if parts is None:
        yield
        return
    import deepspeed

    before = PreTrainedModel.init_weights
    PreTrainedModel.init_weights = _init_zero3
    try:
        with _positions_kept(parts), deepspeed.zero.Init(config_dict_or_path=_of_loading(parts)):
            yield
    finally:
        PreTrainedModel.init_weights = before


def _positions_kept(parts: DeepSpeedConfig) -> Any:
    """Return what keeps rotary positions in fp32 while DeepSpeed makes everything in half precision.

    Raises:
        PipelineError: this transformers has nothing that does, and the model is in half precision.
    """
    kept = getattr(integration, "prevent_arange_dtype_change", None)
    if kept is not None:
        return kept()
    if any(parts[name].get("enabled") for name in ("bf16", "fp16")):
        statement = (
            f"compute.zero is 3 in half precision, where transformers {transformers.__version__} rounds positions"
        )
        remedy = "install a newer transformers (without the extra vllm), or set compute.zero: 2, or precision: fp32"
        raise PipelineError(Problem(statement, "rotary positions in fp32", remedy))
    return nullcontext()


def _of_loading(parts: DeepSpeedConfig) -> dict[str, Any]:
    kept = {name: dict(parts[name]) for name in ("zero_optimization", "bf16", "fp16")}
    return {**kept, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}


def _init_zero3(model: Any) -> None:
    """Do what `PreTrainedModel.init_weights` does, with one module at a time gathered on the first process."""
    with torch.no_grad():
        _init_below(model, model._initialize_weights, bool(model.is_custom_code()))
    model.tie_weights(recompute_mapping=False)


def _init_below(module: Any, initialise: Any, is_custom: bool) -> None:
    """Initialise what is below a module, and then the module itself, as `PreTrainedModel.initialize_weights` does."""
    for child in module.children():
        _init_below(child, child._initialize_weights if isinstance(child, PreTrainedModel) else initialise, is_custom)
    near = [*module.parameters(recurse=False), *(p for child in module.children() for p in child.parameters(False))]
    with gathered(near, changed=True):
        if not is_partitioned(module, near) or torch.distributed.get_rank() == 0:
            initialise(module, is_custom)


def is_partitioned(model: nn.Module, parameters: Iterable[Tensor] | None = None) -> bool:
    """Return whether some weights of a model are sharded."""
    return any(hasattr(p, "ds_id") for p in (model.parameters() if parameters is None else parameters))


@contextmanager
def gathered(parameters: Iterable[Tensor], *, changed: bool = False) -> Iterator[None]:
    """Have weights whole inside the context; those that are whole anyway stay as they are.

    Args:
        parameters: in the same order on every process.
        changed: whether the first process changes them; the others get its values afterwards.
    """
    found = [p for p in parameters if hasattr(p, "ds_id")]
    if not found:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(found, modifier_rank=0 if changed else None):
        yield


def whole(parameter: Tensor) -> Tensor:
    """Return a weight, gathered where it is sharded."""
    if not hasattr(parameter, "ds_id"):
        return parameter
    with gathered([parameter]):
        return parameter.detach().clone()


def shape_of_weight(parameter: Tensor) -> torch.Size:
    """Return the shape of a weight that may be sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def count_parameters(model: nn.Module) -> int:
    """Return the number of a model's weights, of all processes together where they are sharded."""
    return sum(shape_of_weight(parameter).numel() for parameter in model.parameters())


@contextmanager
def computing_alone(model: nn.Module) -> Iterator[None]:
    """Let a model compute without gradients and without an engine, whether it is whole or is sharded.

    In parts, a module's weights are gathered while it runs, so every process runs the same modules in the same order;
    one that has less to compute makes `idle_passes`.
    """
    if not is_partitioned(model):
        with torch.inference_mode():
            yield
        return
    handles = []
    running: dict[nn.Module, ExitStack] = {}

    def enter(module: nn.Module, _: Any) -> None:
        running[module] = stack = ExitStack()
        stack.enter_context(gathered(module.parameters(recurse=False)))

    def leave(module: nn.Module, _: Any, out: Any) -> None:
        running.pop(module).close()

    for module in model.modules():
        if is_partitioned(module, module.parameters(recurse=False)):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad():  # tensors of inference would become the weights
            yield
    finally:
        for handle in handles:
            handle.remove()
        for stack in running.values():
            stack.close()


def idle_passes(model: nn.Module, passes: int) -> int:
    """Return how many more passes a process makes for the others, who need its parts; every process asks beforehand.

    Args:
        model: whole models need none.
        passes: that this process makes of its own.
    """
    return int(Ranks.current().all_reduce_max(passes)) - passes if is_partitioned(model) else 0
