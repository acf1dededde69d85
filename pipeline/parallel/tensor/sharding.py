"""Tensor parallelism: each rank holds a shard of every large matrix, and all ranks work on the same rows.

transformers' plan of an architecture (`base_model_tp_plan`) says which matrices are sharded by columns and which by
rows; the weights then are DTensors on a device mesh. This module checks and shards a model. Norms and other small
weights are replicated on every rank. With more ranks than shards, each group of consecutive ranks holds one replica of
the model, and the groups share the rows of a batch; ranks that hold the same shards average their gradients.

Reference: Shoeybi et al. 2019, arXiv:1909.08053 (columns, then rows: one sum per block and direction).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import recursively_apply
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import DistributedConfig

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.dtensors import set_weight
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.tensor.checks import head_problem

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedConfig, PreTrainedModel

SHARED_NORM = "replicated_with_grad_allreduce"
"""transformers' plan entry for a replicated weight applied to this rank's heads only: its gradients are summed."""


class DeferredWeights(Protocol):
    """Materialises weights of a model that was built on the meta device, as `Deferred` of `models` does."""

    def made(self, parameter: Tensor, /) -> Tensor:
        """Return a full weight on the CPU."""
        ...


@dataclass
class TPConfig(DistributedConfig):  # type: ignore[misc]
    """transformers' `DistributedConfig` for tensor parallelism with replicas, without FSDP2 between the replicas.

    transformers builds the mesh from `dp_replicate_size`, and would shard weights over replicas (FSDP2) where `dp_size`
    is above 1. It does not support plain replicas of a tensor-parallel model, so `TPReplicas` averages their gradients.
    """

    @property
    def dp_size(self) -> int:
        """Return 1: weights are not sharded over replicas."""
        return 1


class TensorParallelism(ParallelismConfig):  # type: ignore[misc]
    """accelerate's `ParallelismConfig` for tensor parallelism, also on a CPU, where gloo has the needed collectives.

    accelerate 1.15 insists on GPUs. Only that check keeps its data loaders from giving all ranks of a group the same
    rows on a CPU.
    """

    def _validate_accelerator(self, accelerator: Accelerator) -> None:
        if str(accelerator.distributed_type).endswith("MULTI_CPU") and self.total_size == accelerator.num_processes:
            return
        super()._validate_accelerator(accelerator)


def tp_config(config: PreTrainedConfig, size: int) -> DistributedConfig:
    """Return the configuration with which transformers shards a model over ``size`` ranks.

    Raises:
        PipelineError: the architecture has no plan, its heads do not divide, it uses dropout, or the machine has a GPU
            that the recipe does not use.
    """
    if torch.accelerator.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        statement = "compute.tensor_parallel with compute.device: cpu on a machine with a GPU"
        raise PipelineError(Problem(statement, "the GPU, which transformers takes", "set compute.device: auto"))
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        statement = f"compute.tensor_parallel with a {config.model_type} model"
        expected = "an architecture with a tensor parallel plan in transformers, such as llama or qwen3"
        raise PipelineError(Problem(statement, expected, "use compute.zero: 3 instead"))
    heads = int(getattr(text, "num_attention_heads", size))
    problem = head_problem(heads, int(getattr(text, "num_key_value_heads", None) or heads), size)
    if problem is not None:
        raise PipelineError(problem)
    dropout_fields = [key for key, value in text.to_dict().items() if key.endswith(("dropout", "_pdrop")) and value]
    if dropout_fields:
        statement = f"compute.tensor_parallel with a model whose {dropout_fields[0]} is not 0"
        raise PipelineError(Problem(statement, "0: processes would drop others than one does", "use compute.zero: 3"))
    return TPConfig(tp_size=size, dp_replicate_size=Ranks.current().count // size)


def shard_model(model: PreTrainedModel, size: int, deferred: DeferredWeights | None = None) -> PreTrainedModel:
    """Shard a model that every rank has built identically; each rank keeps its own shards.

    Args:
        model: with full weights, or with weights on the meta device.
        size: ranks per group.
        deferred: materialises weights that are on the meta device, one full matrix at a time.

    Raises:
        PipelineError: see `tp_config`.
    """
    config, _, mesh = type(model).prepare_distribute_model(tp_config(model.config, size))
    _untie(model)
    full_parameters = dict(model.named_parameters())
    model = type(model).maybe_distribute_model(model, config, mesh)
    device = mesh.get_mesh("tp").device_type  # shards are on it; replicated weights are still on the CPU
    for path, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = full_parameters[f"{path}.{name}".lstrip(".")]
            materialised = deferred.made(full) if deferred is not None and full.is_meta else None
            if isinstance(parameter, DTensor):
                own = nn.Parameter(_own_shard(parameter, materialised), requires_grad=parameter.requires_grad)
                setattr(module, name, own)
            else:
                replica = (parameter.detach() if materialised is None else materialised).to(device)
                setattr(module, name, nn.Parameter(replica, requires_grad=parameter.requires_grad))
    model.tie_weights()
    return finish_sharding(model)


def _own_shard(parameter: DTensor, full: Tensor | None) -> DTensor:
    """Return a DTensor whose local shard has memory of its own; a shard by rows would be a view of the full matrix.

    Args:
        parameter: sharded weight.
        full: materialised weight to shard like ``parameter``; None takes the values of ``parameter``.
    """
    mesh, placements = parameter.device_mesh, parameter.placements
    sharded = parameter if full is None else distribute_tensor(full, mesh, placements, src_data_rank=None)
    local, shape, stride = sharded.to_local().clone(), parameter.shape, parameter.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _untie(model: nn.Module) -> None:
    """Give each module of a tied weight a parameter of its own with the same values, because the plan lists each."""
    seen = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad))
            seen.add(id(parameter))


def finish_sharding(model: PreTrainedModel) -> PreTrainedModel:
    """All-reduce the gradients of norms within attention heads once per backward pass.

    transformers 5.23 all-reduces the accumulated gradient, so every micro-batch counts the earlier ones again.
    """
    plan, _, _ = model._resolve_parallel_plans(model.config.distributed_config)
    group = model._mesh_manager.get_mesh("tp").get_group()

    def summed(gradient: Tensor) -> Tensor:
        contiguous = gradient.contiguous()
        dist.all_reduce(contiguous, group=group)
        return contiguous

    for name, style in plan.items():
        if style == SHARED_NORM and not name.endswith((".weight", ".bias")):
            module = model.get_submodule(name)
            module.__dict__.pop("forward")  # drops transformers' wrapper, which holds the all-reduce
            for parameter in module.parameters(recurse=False):
                parameter.register_hook(summed)
    return model


def begin_adapter(model: PeftModel, drawn_from: Tensor) -> None:
    """Initialise a new LoRA adapter on a sharded model with the weights it would have on one process.

    peft 0.21 draws each shard independently on each rank, from a wrong range, because it takes the shard's width for
    the full one. This repeats, layer by layer, what peft draws for a model that is not sharded.

    Args:
        model: sharded, with the adapter attached.
        drawn_from: state of torch's random generator before the adapter was attached.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(drawn_from)
        for layer in model.modules():
            if not isinstance(layer, LoraLayer):
                continue
            base, own_a, own_b = (
                layer.get_base_layer(),
                *(part[model.active_adapter] for part in (layer.lora_A, layer.lora_B)),
            )
            a = nn.Linear(base.in_features, own_a.out_features, bias=False)
            nn.Linear(own_b.in_features, base.out_features, bias=False)
            nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
            set_weight(own_a.weight, a.weight)
            own_a.in_features, own_b.out_features = base.in_features, base.out_features


class TPReplicas:
    """The ranks of other groups that hold the same shards as this rank: data-parallel replicas that share a batch."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        self._group = plain._mesh_manager.get_mesh("dp_replicate").get_group()
        self.count = dist.get_world_size(self._group)

    def average_gradients(self, model: nn.Module, is_last: Callable[[], bool]) -> None:
        """Register hooks that average gradients over the replicas in the last backward pass of an optimizer step.

        Args:
            model: its trained parameters get the hooks; transformers does the same for adapters with its FSDP2.
            is_last: returns whether an optimizer step follows the current backward pass.
        """

        def average(parameter: Tensor) -> None:
            if is_last() and parameter.grad is not None:
                gradient = parameter.grad
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                summed = local.contiguous()
                dist.all_reduce(summed, group=self._group)
                local.copy_(summed.div_(self.count))

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]

    def all_gather(self, values: Any) -> Any:
        """All-gather each tensor of a nested structure over the replicas, concatenated; shapes must be equal."""

        def gather(tensor: Tensor) -> Tensor:
            own = tensor.reshape(1) if not tensor.dim() else tensor.contiguous()
            shards = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(shards, own, group=self._group)
            return torch.cat(shards)

        return recursively_apply(gather, values) if self.count > 1 else values

    @torch.no_grad()
    def apart(self, model: nn.Module) -> float:
        """Return the largest difference between the replicas' gradient sums per parameter: 0 once averaged."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        sums = torch.stack([(g.to_local() if isinstance(g, DTensor) else g).double().sum() for g in gradients])
        extremes = torch.stack([sums, -sums])
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        return float((extremes[0] + extremes[1]).max())


def size_of(model: PreTrainedModel | PeftModel) -> int:
    """Return the tensor-parallel size of a model, or of a peft model's base; 1 if it is not sharded."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return int(getattr(plain, "tp_size", None) or 1)


def share_of_parameters(model: nn.Module) -> float:
    """Return the fraction of a model's parameters that this rank holds."""
    parameters = list(model.parameters())
    local = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return local / max(1, sum(p.numel() for p in parameters))
