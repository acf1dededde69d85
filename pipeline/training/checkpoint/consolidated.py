"""Checkpoints that do not depend on the parallel layout: any layout writes the files of a single-process trainer.

transformers lets DeepSpeed write sharded checkpoints, which only the same ZeRO stage on the same number of processes
can read. Here weights and optimizer state are consolidated, written as a single-process trainer writes them
(`model.safetensors` or the adapter, `optimizer.pt`, `scheduler.pt`), and sharded again when they are loaded. So a run
can resume with another ZeRO stage, another number of processes, or without ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, recursively_apply
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.dtensors import distribute_like, full_tensor, set_weight
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.tensor.sharding import TensorParallelism, TPReplicas, begin_adapter, size_of
from pipeline.parallel.zero.optimizer_state import ZeroState, share_fp32_storage

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
KERNELS = ("fused", "foreach")
"""Parameter group settings that choose the optimizer's implementation and do not change its steps."""


class ConsolidatedCheckpoint:
    """Mixin for a trainer: under any sharding it writes and loads the checkpoints of a single-process trainer."""

    accelerator: Any
    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    _groups: list[list[nn.Parameter]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        before = torch.get_rng_state()
        super().__init__(*args, **kwargs)
        if size_of(self.model) > 1 and isinstance(self.model, PeftModel):
            begin_adapter(self.model, before)

    def _build_accelerator_args(self, **given: Any) -> dict[str, Any]:
        built: dict[str, Any] = super()._build_accelerator_args(**given)  # type: ignore[misc]
        if size_of(self.model) > 1:
            size = size_of(self.model)
            built["parallelism_config"] = TensorParallelism(tp_size=size, dp_shard_size=Ranks.current().count // size)
        return built

    def _gather_once_per_group(self, values: Any, use_gather_object: bool = False) -> Any:
        """Gather evaluation values as accelerate's `gather_for_metrics`, but once per tensor-parallel group.

        The ranks of a group evaluate the same rows.
        """
        values = TPReplicas(self.model).gathered(values)
        known = self.accelerator.gradient_state
        if not known.end_of_dataloader or known.remainder <= 0:
            return values
        return recursively_apply(lambda tensor: tensor[: known.remainder] if tensor.dim() else tensor, values)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer without empty parameter groups, which DeepSpeed would drop, so all engines agree."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if is_new:
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
            if size_of(self.model) > 1:
                join_groups(optimizer, self.model, set(self.get_decay_parameter_names(self.model)))  # type: ignore[attr-defined]
            self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP2 if the arguments ask for it, also on a CPU, where accelerate would fall back silently.

        With tensor parallelism, replace accelerate's `gather_for_metrics` by `_gather_once_per_group`.
        """
        plugin = self.args.fsdp_plugin_args
        if plugin is not None:
            plugin["mixed_precision_policy"] = fsdp.mixed_precision(
                "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
            )
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if plugin is not None:
            fsdp.engage(self.accelerator, FullyShardedDataParallelPlugin(**plugin))
            self.is_fsdp_enabled = True
        if size_of(self.model) > 1:
            self.gather_function = self.accelerator.gather_for_metrics = self._gather_once_per_group

    @property
    def _zero(self) -> ZeroState:
        optimizer = self.optimizer.optimizer  # DeepSpeed's, inside accelerate's
        return ZeroState(
            optimizer, int(self.accelerator.state.deepspeed_plugin.zero_stage), self._groups, Ranks.current()
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the consolidated weights; with mixed precision under DeepSpeed, the fp32 master weights."""
        lower = self.is_deepspeed_enabled and any(p.dtype != torch.float32 for p in self._groups[0])
        if self.is_fsdp_enabled:
            weights = fsdp.consolidated_weights(self.model, trained_only=isinstance(self.model, PeftModel))
        elif lower:
            weights = self._gathered_weights()
        else:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        self._save(output_dir, state_dict=weights)  # type: ignore[attr-defined]

    def _gathered_weights(self) -> dict[str, Tensor]:
        """Gather the weights to the first process, the trained ones in fp32; with an adapter only the trained ones."""
        import deepspeed  # optional extra `deepspeed`

        zero, first = self._zero, Ranks.current().is_first
        weights: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                full = zero.weight(parameter)
            elif isinstance(self.model, PeftModel):
                continue
            else:
                with deepspeed.zero.GatheredParameters([parameter], enabled=zero.stage == 3):
                    full = parameter.detach().cpu().clone()
            if first:
                weights[name] = full
        return weights

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            state = consolidated_optimizer(self._zero)
        elif self.is_fsdp_enabled:
            state = fsdp.consolidated_optimizer(self.optimizer)
        elif size_of(self.model) > 1:
            state = consolidate_optimizer(self.optimizer, keep=Ranks.current().is_first)
        else:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        if Ranks.current().is_first:
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> Any:
        """Let DeepSpeed or FSDP2 prepare the model, then load the checkpoint into the sharded state."""
        self.is_fsdp_enabled = self.args.fsdp_plugin_args is not None
        if size_of(self.model) > 1 and TPReplicas(self.model).count > 1:
            TPReplicas(self.model).average_gradients(self.model, lambda: bool(self.accelerator.sync_gradients))
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[misc]
        if self.is_deepspeed_enabled and self._zero.stage == 3:
            share_fp32_storage(self._zero.held)
        if resume_from_checkpoint is not None:
            put = self._zero.set_weight if self.is_deepspeed_enabled else set_weight
            load_weights(self.model, put, Path(resume_from_checkpoint))
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            if self.is_fsdp_enabled:
                self._load_scaler(resume_from_checkpoint)  # type: ignore[attr-defined]
        return prepared

    def load_weights_of(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint of this run; every process must call it."""
        if self.is_deepspeed_enabled:
            load_weights(self.model, self._zero.set_weight, Path(checkpoint))
        elif self.args.fsdp_plugin_args is not None:
            load_weights(self.model, set_weight, Path(checkpoint))
        else:
            self._load_from_checkpoint(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if size_of(self.model) > 1:
            load_weights(self.model, set_weight, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load a consolidated optimizer state, each process its shard, and the scheduler.

        Raises:
            PipelineError: the checkpoint has no optimizer state, which transformers would ignore, or it does not fit.
        """
        if checkpoint is not None:
            file = Path(checkpoint) / OPTIMIZER_FILE
            if not file.is_file():
                raise _unfit_checkpoint("the checkpoint has no optimizer of one process")
            # Memory-mapped: the processes of a machine share the pages, and each uses only its shard.
            consolidated = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if self.is_deepspeed_enabled:
                shard_optimizer(self._zero, consolidated)
            if self.is_fsdp_enabled:
                try:
                    fsdp.shard_optimizer(self.optimizer, consolidated)
                except ValueError as error:
                    raise _unfit_checkpoint(str(error)) from error
            if size_of(self.model) > 1:
                self.optimizer.load_state_dict(shard_dtensor_optimizer(consolidated, self.optimizer))
            if self.is_fsdp_enabled or size_of(self.model) > 1:
                scheduler = torch.load(Path(checkpoint) / SCHEDULER_FILE, map_location="cpu", weights_only=True)
                self.lr_scheduler.load_state_dict(scheduler)
                return
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]


def consolidated_optimizer(zero: ZeroState) -> dict[str, Any]:
    """Return a ZeRO optimizer's `state_dict` as it would be on one process, with full tensors, on the first rank.

    The other ranks take part in the gathers and return an empty state.
    """
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    zero.link()
    for number, parameters in enumerate(zero.groups):
        moments, rest = zero.known(number)
        start = sum(len(group["params"]) for group in groups)
        for index, parameter in enumerate(parameters, start):
            full_moments = {key: zero.moment(parameter, key) for key in moments}
            if zero.ranks.is_first and moments:
                state[index] = {**_cloned(rest), **full_moments}
        settings = {key: value for key, value in zero.held.param_groups[number].items() if key != "params"}
        groups.append({**settings, "params": list(range(start, start + len(parameters)))})
    return {"state": state, "param_groups": groups}


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with tensors of its own, because a step counter shared by weights would count for all of them."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def shard_optimizer(zero: ZeroState, consolidated: Mapping[str, Any]) -> None:
    """Load the `state_dict` of a single-process optimizer into DeepSpeed's ZeRO optimizer.

    Raises:
        PipelineError: it is another optimizer's, or it holds tensors that are not of their weight's shape.
    """
    _check_groups(consolidated, zero.groups)
    states = [
        [consolidated["state"].get(index, {}) for index in group["params"]] for group in consolidated["param_groups"]
    ]
    for number, parameters in enumerate(zero.groups):
        moments: list[str] = []
        rest: dict[str, Any] = {}
        for parameter, state in zip(parameters, states[number], strict=True):
            moments = [key for key, value in state.items() if _is_moment(value, parameter)]
            rest = {key: value for key, value in state.items() if key not in moments}
            if moments:
                break
        if any(isinstance(value, Tensor) and value.dim() for value in rest.values()):
            raise _unfit_checkpoint(f"the checkpoint's optimizer keeps {sorted(rest)} for a weight")
        if moments:
            zero.begin(number, moments, rest)
        settings = {key: value for key, value in consolidated["param_groups"][number].items() if key != "params"}
        zero.held.param_groups[number].update(settings)
    zero.link()
    for number, parameters in enumerate(zero.groups):
        for parameter, state in zip(parameters, states[number], strict=True):
            for key, value in state.items():
                if _is_moment(value, parameter):
                    zero.set_moment(parameter, key, value)


def join_groups(optimizer: Optimizer, model: PreTrainedModel | PeftModel, decaying: set[str]) -> None:
    """Merge the parameter groups that transformers makes for a tensor-parallel model into those of one process.

    transformers separates sharded from replicated weights, which a fused optimizer step cannot mix. A merged group with
    both kinds uses the plain implementation instead.
    """
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = [(name, p) for name, p in model.named_parameters() if id(p) in settings]
    groups = []
    for decays in (True, False):
        parameters = [p for name, p in named if (name in decaying) == decays]
        if parameters:
            is_mixed = len({type(p.data) for p in parameters}) > 1
            plain = dict.fromkeys(KERNELS, False) if is_mixed else {}
            groups.append({**settings[id(parameters[0])], **plain, "params": parameters})
    optimizer.param_groups[:] = groups


def consolidate_optimizer(optimizer: Optimizer, *, keep: bool) -> dict[str, Any]:
    """Return the `state_dict` of a tensor-parallel model's optimizer with full tensors; every rank must call it.

    Without ``keep`` the state is empty.
    """
    state = optimizer.state_dict()
    full_state = {
        index: {key: full_tensor(value) if isinstance(value, Tensor) else value for key, value in moments.items()}
        for index, moments in state["state"].items()
    }
    kernels = {key: optimizer.defaults[key] for key in KERNELS if key in optimizer.defaults}
    groups = [{**group, **kernels} for group in state["param_groups"]]
    return {"state": full_state if keep else {}, "param_groups": groups}


def shard_dtensor_optimizer(consolidated: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the `state_dict` of a single-process optimizer, sharded like a tensor-parallel model's weights.

    Raises:
        PipelineError: it is another optimizer's, or it holds tensors that are not of their weight's shape.
    """
    groups = [list(group["params"]) for group in optimizer.param_groups]
    _check_groups(consolidated, groups)
    indices = [index for group in consolidated["param_groups"] for index in group["params"]]
    state = {}
    for index, parameter in zip(indices, (p for group in groups for p in group), strict=True):
        moments = consolidated["state"].get(index, {})
        unfit = [k for k, v in moments.items() if isinstance(v, Tensor) and v.dim() and not _is_moment(v, parameter)]
        if unfit:
            raise _unfit_checkpoint(f"the checkpoint's optimizer keeps {sorted(unfit)} for a weight")
        state[index] = {
            k: distribute_like(v.clone(), parameter) if isinstance(v, Tensor) else v for k, v in moments.items()
        }
    own = [{key: group[key] for key in KERNELS if key in group} for group in optimizer.param_groups]
    return {
        "state": state,
        "param_groups": [{**k, **o} for k, o in zip(consolidated["param_groups"], own, strict=True)],
    }


def _check_groups(consolidated: Mapping[str, Any], groups: Sequence[Sequence[nn.Parameter]]) -> None:
    sizes = [len(group["params"]) for group in consolidated["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise _unfit_checkpoint(f"the checkpoint's optimizer has groups of {sizes} weights")


def load_weights(model: PreTrainedModel | PeftModel, put: Callable[[nn.Parameter, Tensor], None], folder: Path) -> None:
    """Load the weights, or the adapter, of a checkpoint into a sharded model.

    Args:
        model: model with sharded weights.
        put: sets a sharded parameter from a full weight.
        folder: folder of the checkpoint.

    Raises:
        PipelineError: the checkpoint lacks a weight of the model.
    """
    own = dict(model.named_parameters())
    if isinstance(model, PeftModel):
        parameters = list(own.values())  # peft would gather shards: it gets indices instead, and returns its names
        numbers = {name: torch.tensor(number) for number, name in enumerate(own)}
        named = get_peft_model_state_dict(model, state_dict=numbers)
        own = {name: parameters[int(number)] for name, number in named.items()}
    missing = set(own)
    for name, tensor in tensors_in(folder, own):
        put(own[name], tensor)
        missing.discard(name)
    if missing:
        raise _unfit_checkpoint(f"the checkpoint lacks {sorted(missing)[0]}")


def tensors_in(folder: Path, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of those weights of a checkpoint that are ``wanted``; the others are not read."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                if name in wanted:
                    yield name, tensors.get_tensor(name)


def _is_moment(value: object, parameter: nn.Parameter) -> bool:
    """Return whether a state tensor has the shape of its full weight, which ZeRO-3 may have sharded."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == shape


def _unfit_checkpoint(statement: str) -> PipelineError:
    return PipelineError(Problem(statement, "what this run can share out over its processes", "resume it as it began"))
