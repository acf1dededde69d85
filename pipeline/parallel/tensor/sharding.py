"""Tensor parallelism: each process holds a shard of every large matrix, and all work on the same rows.

transformers' own plan of an architecture (`base_model_tp_plan`) says which matrices are cut by columns and which by
rows; its weights then are DTensors on a mesh of processes. Here a model is cut, checked, and put together again. The
norms and other small weights are whole in every process. With more processes than shards, groups of neighbours hold one
model each and share the rows of a batch; processes that hold the same shards average their gradients.

Reference: Shoeybi et al. 2019, arXiv:1909.08053 (columns, then rows: one sum per block and direction).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from pipeline.parallel.batch_split import head_problem
from pipeline.parallel.dtensors import set_weight
from pipeline.parallel.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.models.deferred import Deferred

SHARED_NORM = "replicated_with_grad_allreduce"
"""transformers' style of a whole weight that sees only this process's heads: its gradients are summed."""


@dataclass
class TPConfig(DistributedConfig):  # type: ignore[misc]
    """transformers' words for shards in several groups of processes, without its FSDP2 between the groups.

    transformers makes the mesh from `dp_replicate_size`, and shards weights where `dp_size` is above 1. Whole replicas
    of a sharded model it does not have: their gradients are averaged here (`TPReplicas`).
    """

    @property
    def dp_size(self) -> int:
        """Return 1: nothing is sharded between groups."""
        return 1


class TensorParallelism(ParallelismConfig):  # type: ignore[misc]
    """accelerate's word for tensor parallelism, also between processes on a CPU: gloo has all it takes.

    accelerate 1.15 asks for GPUs, and that alone keeps its data loaders from giving a group the same rows there.
    """

    def _validate_accelerator(self, accelerator: Any) -> None:
        if str(accelerator.distributed_type).endswith("MULTI_CPU") and self.total_size == accelerator.num_processes:
            return
        super()._validate_accelerator(accelerator)


def tp_config(config: Any, size: int) -> DistributedConfig:
    """Return what has transformers cut a model of this configuration for ``size`` processes.

    Raises:
        PipelineError: its architecture has no plan, its heads do not divide, it drops numbers, or a GPU is left unused.
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
    random = [key for key, value in text.to_dict().items() if key.endswith(("dropout", "_pdrop")) and value]
    if random:
        statement = f"compute.tensor_parallel with a model whose {random[0]} is not 0"
        raise PipelineError(Problem(statement, "0: processes would drop others than one does", "use compute.zero: 3"))
    return TPConfig(tp_size=size, dp_replicate_size=Ranks.current().count // size)


def shard_model(model: Any, size: int, later: Deferred | None = None) -> Any:
    """Keep this process's shards of a model that every process has built, and alike.

    Args:
        model: whole, or without memory for its weights.
        size: processes of a group.
        later: gives the weights of one without memory, one whole matrix after another.

    Raises:
        PipelineError: see `tp_config`.
    """
    config, _, mesh = type(model).prepare_distribute_model(tp_config(model.config, size))
    _untie(model)
    whole = dict(model.named_parameters())
    model = type(model).maybe_distribute_model(model, config, mesh)
    device = mesh.get_mesh("tp").device_type  # shards are there; what is whole was built on the CPU
    for path, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)
        for name, parameter in list(module.named_parameters(recurse=False)):
            given = whole[f"{path}.{name}".lstrip(".")]
            made = later.made(given) if later is not None and given.is_meta else None
            if isinstance(parameter, DTensor):
                own = nn.Parameter(_own_shard(parameter, made), requires_grad=parameter.requires_grad)
                setattr(module, name, own)
            else:
                kept = (parameter.detach() if made is None else made).to(device)
                setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
    model.tie_weights()
    return finish_sharding(model)


def _own_shard(parameter: DTensor, made: Tensor | None) -> DTensor:
    """Return a sharded weight, or ``made`` cut as it is, in memory of its own: a shard of rows is a view."""
    mesh, placements = parameter.device_mesh, parameter.placements
    cut = parameter if made is None else distribute_tensor(made, mesh, placements, src_data_rank=None)
    local, shape, stride = cut.to_local().clone(), parameter.shape, parameter.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _untie(model: nn.Module) -> None:
    """Give each place of a shared weight a parameter of its own, of the same numbers: the plan names every place."""
    seen = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad))
            seen.add(id(parameter))


def finish_sharding(model: Any) -> Any:
    """Have gradients of norms within a head summed once for each backward pass.

    transformers 5.23 sums what has been accumulated so far, again with every micro-batch.
    """
    plan, _, _ = model._resolve_parallel_plans(model.config.distributed_config)
    group = model._mesh_manager.get_mesh("tp").get_group()

    def summed(gradient: Tensor) -> Tensor:
        whole = gradient.contiguous()
        dist.all_reduce(whole, group=group)
        return whole

    for name, style in plan.items():
        if style == SHARED_NORM and not name.endswith((".weight", ".bias")):
            module = model.get_submodule(name)
            module.__dict__.pop("forward")  # back to the class's own
            for parameter in module.parameters(recurse=False):
                parameter.register_hook(summed)
    return model


def begin_adapter(model: PeftModel, drawn_from: Tensor) -> None:
    """Give a fresh LoRA adapter on a sharded model the weights it begins with on one process.

    peft 0.21 draws shards by themselves, from another range and for each process, and takes a shard's width for the
    whole one. Layer by layer these are peft's draws for a whole model.

    Args:
        model: with the adapter, in shards.
        drawn_from: state of torch's random numbers before the adapter was put on.
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
    """The processes that hold the same shards as this one, in other groups: what they learn from is one batch."""

    def __init__(self, model: Any) -> None:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        self._group = plain._mesh_manager.get_mesh("dp_replicate").get_group()
        self.count = dist.get_world_size(self._group)

    def average_gradients(self, model: nn.Module, is_last: Callable[[], bool]) -> None:
        """Have gradients averaged over the copies when the last backward pass of a step has made them.

        Args:
            model: whose trained weights' gradients; transformers does the same for adapters beside its FSDP2.
            is_last: says of the backward pass that goes on whether an optimizer step follows it.
        """

        def average(parameter: Tensor) -> None:
            if is_last() and parameter.grad is not None:
                gradient = parameter.grad
                own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                summed = own.contiguous()
                dist.all_reduce(summed, group=self._group)
                own.copy_(summed.div_(self.count))

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]

    def gathered(self, values: Any) -> Any:
        """Return tensors of all copies, one after another, of those in a structure; all have the same shapes."""

        def gather(tensor: Tensor) -> Tensor:
            own = tensor.reshape(1) if not tensor.dim() else tensor.contiguous()
            parts = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(parts, own, group=self._group)
            return torch.cat(parts)

        return recursively_apply(gather, values) if self.count > 1 else values

    @torch.no_grad()
    def apart(self, model: nn.Module) -> float:
        """Return how far apart the copies' sums of gradients are: 0 once they are averaged."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        sums = torch.stack([(g.to_local() if isinstance(g, DTensor) else g).double().sum() for g in gradients])
        both = torch.stack([sums, -sums])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
        return float((both[0] + both[1]).max())


def size_of(model: Any) -> int:
    """Return how many processes hold shards of a model, a peft model's base included."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return int(getattr(plain, "tp_size", None) or 1)


def share_of_parameters(model: nn.Module) -> float:
    """Return the share of a model's numbers that this process holds."""
    parameters = list(model.parameters())
    mine = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return mine / max(1, sum(p.numel() for p in parameters))
