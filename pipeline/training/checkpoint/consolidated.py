"""Consolidates sharded weights and optimizer states into those of one process, and shards them again.

One function for each direction and each way of sharding: ZeRO, FSDP2 and tensor parallelism. `checkpoints.py` decides
which one a trainer needs, and owns the files.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.dtensors import distribute_like, full_tensor
from pipeline.parallel.zero.optimizer_state import ZeroState

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
KERNELS = ("fused", "foreach")
"""Parameter group settings that choose the optimizer's implementation and do not change its steps."""


def gathered_weights(model: PreTrainedModel | PeftModel, zero: ZeroState) -> dict[str, Tensor]:
    """Gather the weights to the first process, the trained ones in fp32; with an adapter only the trained ones."""
    import deepspeed  # optional extra `deepspeed`

    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            full = zero.weight(parameter)
        elif isinstance(model, PeftModel):
            continue
        else:
            with deepspeed.zero.GatheredParameters([parameter], enabled=zero.stage == 3):
                full = parameter.detach().cpu().clone()
        if zero.ranks.is_first:
            weights[name] = full
    return weights


def consolidated_optimizer(zero: ZeroState) -> StateDict:
    """Return a ZeRO optimizer's `state_dict` as it would be on one process, with full tensors, on the first rank.

    The other ranks take part in the gathers and return an empty state.
    """
    state: dict[int, StateDict] = {}
    groups: list[StateDict] = []
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


def _cloned(state: StateDict) -> StateDict:
    """Return a state with tensors of its own, because a step counter shared by weights would count for all of them."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def shard_optimizer(zero: ZeroState, consolidated: StateDict) -> None:
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
        rest: StateDict = {}
        for parameter, state in zip(parameters, states[number], strict=True):
            moments = [key for key, value in state.items() if _is_moment(value, parameter)]
            rest = {key: value for key, value in state.items() if key not in moments}
            if moments:
                break
        if any(isinstance(value, Tensor) and value.dim() for value in rest.values()):
            raise unfit_checkpoint(f"the checkpoint's optimizer keeps {sorted(rest)} for a weight")
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


def consolidate_optimizer(optimizer: Optimizer, *, keep: bool) -> StateDict:
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


def shard_dtensor_optimizer(consolidated: StateDict, optimizer: Optimizer) -> StateDict:
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
            raise unfit_checkpoint(f"the checkpoint's optimizer keeps {sorted(unfit)} for a weight")
        state[index] = {
            k: distribute_like(v.clone(), parameter) if isinstance(v, Tensor) else v for k, v in moments.items()
        }
    own = [{key: group[key] for key in KERNELS if key in group} for group in optimizer.param_groups]
    return {
        "state": state,
        "param_groups": [{**k, **o} for k, o in zip(consolidated["param_groups"], own, strict=True)],
    }


def _check_groups(consolidated: StateDict, groups: Sequence[Sequence[nn.Parameter]]) -> None:
    sizes = [len(group["params"]) for group in consolidated["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise unfit_checkpoint(f"the checkpoint's optimizer has groups of {sizes} weights")


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
        raise unfit_checkpoint(f"the checkpoint lacks {sorted(missing)[0]}")


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


def unfit_checkpoint(statement: str) -> PipelineError:
    """Return the error of a checkpoint that cannot be sharded over the run's processes."""
    return PipelineError(Problem(statement, "what this run can share out over its processes", "resume it as it began"))
