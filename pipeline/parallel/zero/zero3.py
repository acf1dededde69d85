"""Models under ZeRO-3: each weight is sharded over the ranks as soon as it is initialised or loaded.

A model that does not fit in one rank's memory can be loaded this way, because only one module at a time is gathered.
Code that needs a full weight gathers it, and every rank must call the functions that gather. Depends on DeepSpeed's
parameters; knows nothing of trainers or files.

Reference: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (partitioned parameters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import JsonObject, JsonView

DeepSpeedConfig = JsonView
"""DeepSpeed's configuration of the stage that loads a sharded model."""


@contextmanager
def zero3_loading(config: DeepSpeedConfig | None) -> Iterator[None]:
    """Have `from_pretrained` shard each weight it loads; the first rank reads the files.

    Args:
        config: DeepSpeed's configuration, of which `zero_optimization`, `bf16` and `fp16` are used. None does nothing.
    """
    if config is None:
        yield
        return
    _fp32_positions(config)
    registered = integration.HfDeepSpeedConfig(
        _loading_config(config)
    )  # keeps it alive: transformers has only a weak reference
    try:
        yield
    finally:
        integration.unset_hf_deepspeed_config()  # the next model, such as a reward model, is not to be sharded
        del registered


@contextmanager
def zero3_building(config: DeepSpeedConfig | None) -> Iterator[None]:
    """Have a model built from scratch shard each weight once it is initialised; does nothing without ``config``.

    The first rank draws the same random numbers in the same order as a single process would: once when a module is
    constructed, and again when its model initialises it. (`from_config` of transformers skips the first draw under
    ZeRO-3, and so gives other weights.)
    """
    if config is None:
        yield
        return
    import deepspeed  # optional extra `deepspeed`

    original = PreTrainedModel.init_weights
    PreTrainedModel.init_weights = _init_zero3
    try:
        with _fp32_positions(config), deepspeed.zero.Init(config_dict_or_path=_loading_config(config)):
            yield
    finally:
        PreTrainedModel.init_weights = original


def _fp32_positions(config: DeepSpeedConfig) -> Any:
    """Return a context that keeps rotary positions in fp32 while DeepSpeed creates all tensors in half precision.

    Raises:
        PipelineError: the model is in half precision, and this version of transformers has no such context.
    """
    context = getattr(integration, "prevent_arange_dtype_change", None)
    if context is not None:
        return context()
    if any(config[name].get("enabled") for name in ("bf16", "fp16")):
        statement = (
            f"compute.zero is 3 in half precision, where transformers {transformers.__version__} rounds positions"
        )
        remedy = "install a newer transformers (without the extra vllm), or set compute.zero: 2, or precision: fp32"
        raise PipelineError(Problem(statement, "rotary positions in fp32", remedy))
    return nullcontext()


def _loading_config(config: DeepSpeedConfig) -> JsonObject:
    sections = {name: dict(config[name]) for name in ("zero_optimization", "bf16", "fp16")}
    return {**sections, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}


def _init_zero3(model: PreTrainedModel) -> None:
    """Do what `PreTrainedModel.init_weights` does, with one module's weights gathered at a time."""
    with torch.no_grad():
        _init_module(model, model._initialize_weights, bool(model.is_custom_code()))
    model.tie_weights(recompute_mapping=False)


def _init_module(module: nn.Module, initialise: Callable[[nn.Module, bool], None], is_custom: bool) -> None:
    """Initialise a module's children and then the module, as `PreTrainedModel.initialize_weights` does."""
    for child in module.children():
        _init_module(child, child._initialize_weights if isinstance(child, PreTrainedModel) else initialise, is_custom)
    near = [*module.parameters(recurse=False), *(p for child in module.children() for p in child.parameters(False))]
    with gathered_parameters(near, changed=True):
        if not is_partitioned(module, near) or torch.distributed.get_rank() == 0:
            initialise(module, is_custom)


def is_partitioned(model: nn.Module, parameters: Iterable[Tensor] | None = None) -> bool:
    """Return whether ZeRO-3 has sharded any of a model's parameters, or of those given."""
    return any(hasattr(p, "ds_id") for p in (model.parameters() if parameters is None else parameters))


@contextmanager
def gathered_parameters(parameters: Iterable[Tensor], *, changed: bool = False) -> Iterator[None]:
    """All-gather sharded weights inside the context; weights that are not sharded stay as they are.

    Args:
        parameters: in the same order on every rank.
        changed: whether the first rank changes the weights; its values are then broadcast when the context ends.
    """
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed  # optional extra `deepspeed`

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changed else None):
        yield


def gather_parameter(parameter: Tensor) -> Tensor:
    """Return the full weight: a gathered copy if ZeRO-3 has sharded it, else the parameter itself."""
    if not hasattr(parameter, "ds_id"):
        return parameter
    with gathered_parameters([parameter]):
        return parameter.detach().clone()


def shape_of_weight(parameter: Tensor) -> torch.Size:
    """Return the full shape of a weight that ZeRO-3 may have sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def count_parameters(model: nn.Module) -> int:
    """Return a model's number of parameters, over all ranks where they are sharded."""
    return sum(shape_of_weight(parameter).numel() for parameter in model.parameters())


@contextmanager
def forward_without_engine(model: nn.Module) -> Iterator[None]:
    """Let a model run without gradients and outside DeepSpeed's engine, whether or not it is sharded.

    A sharded module's weights are gathered while it runs, so every rank must run the same modules in the same order. A
    rank with fewer batches than the others makes up for it with `idle_passes`.
    """
    if not is_partitioned(model):
        with torch.inference_mode():
            yield
        return
    handles = []
    running: dict[nn.Module, ExitStack] = {}

    def enter(module: nn.Module, _: object) -> None:
        running[module] = stack = ExitStack()
        stack.enter_context(gathered_parameters(module.parameters(recurse=False)))

    def leave(module: nn.Module, _: object, out: object) -> None:
        running.pop(module).close()

    for module in model.modules():
        if is_partitioned(module, module.parameters(recurse=False)):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad():  # inference_mode would turn the gathered weights into inference tensors
            yield
    finally:
        for handle in handles:
            handle.remove()
        for stack in running.values():
            stack.close()


def idle_passes(model: nn.Module, passes: int) -> int:
    """Return how many extra forward passes this rank must make, because the others gather its shards in theirs.

    Every rank must call it before its passes.

    Args:
        model: a model that is not sharded needs no extra passes.
        passes: forward passes this rank makes for its own batches.
    """
    return int(Ranks.current().all_reduce_max(passes)) - passes if is_partitioned(model) else 0
