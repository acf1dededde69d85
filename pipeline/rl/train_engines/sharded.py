"""Train engines that shard their state over ranks: DeepSpeed's ZeRO stages 1 to 3, and torch's FSDP2.

One engine wraps policy, value function and reference (`Policy.module`), and every model call goes through it, so that
it can gather weights. Forward and backward passes are collective: every rank must run the same number of micro-batches.

References: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from peft import PeftModel
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.errors import PipelineError, Problem
from pipeline.parallel import dtensors
from pipeline.parallel.consolidation import model_from_state
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.zero.optimizer_state import ZeroState, share_fp32_storage
from pipeline.plain_data import JsonObject
from pipeline.rl.policy.adapters import is_of
from pipeline.rl.policy.policy import Policy
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.train_engines.engines import MOMENTS, check_names, parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ZeroEngine:
    """ZeRO: DeepSpeed shards optimizer state (stage 1), gradients (stage 2) and weights (stage 3).

    Gradients are clipped here, because DeepSpeed supports only one norm over all parameters.

    Attributes:
        engine: DeepSpeed's engine around `Policy.module`.
        stage: ZeRO stage.
    """

    is_collective = True
    can_reuse_forward = False
    scaler = GradScaler(enabled=False)
    """Disabled, because fp16 is not supported with sharding."""

    def __init__(self, policy: Policy, settings: PPOSettings, ranks: Ranks, config: JsonObject) -> None:
        """Shard a policy with DeepSpeed.

        Args:
            policy: policy, built on every rank.
            settings: settings of the algorithm.
            ranks: all ranks of the run.
            config: DeepSpeed's configuration (`pipeline/parallel/zero/config.py`).

        Raises:
            PipelineError: accelerate runs DeepSpeed on another number of processes.
        """
        self.policy, self.ranks = policy, ranks
        self.stage = int(config["zero_optimization"]["stage"])
        once = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "train_batch_size": ranks.count}
        plugin = DeepSpeedPlugin(hf_ds_config={**config, **once, "gradient_clipping": 0.0})
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        self.accelerator = Accelerator(deepspeed_plugin=plugin)
        groups = parameter_groups(policy, settings)
        adam = torch.optim.AdamW(groups, eps=settings.adam_epsilon, weight_decay=settings.weight_decay)
        self.engine, prepared = self.accelerator.prepare(policy.module, adam)
        self.optimizer = prepared.optimizer
        if self.stage == 3:
            share_fp32_storage(self.optimizer)
        policy.through(self.engine)
        trained = (policy.policy_parameters, policy.value_parameters)
        self.state = ZeroState(self.optimizer, self.stage, trained, ranks)
        unset_hf_deepspeed_config()  # models built from now on are not to be sharded
        if self.accelerator.num_processes != ranks.count:
            statement = f"accelerate runs DeepSpeed on {self.accelerator.num_processes} processes"
            raise PipelineError(Problem(statement, f"all {ranks.count}"))

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """Yield the model to sample from; with ZeRO-3 the weights are gathered once instead of for every token."""
        if self.stage < 3:
            with self.policy.sampling() as model:
                yield model
            return
        import deepspeed  # optional extra `deepspeed`
        from trl.models.utils import add_hooks, remove_hooks  # it imports DeepSpeed

        with deepspeed.zero.GatheredParameters(list(self.policy.module.parameters())):
            remove_hooks(self.engine)
            try:
                with self.policy.sampling() as model:
                    yield model
            finally:
                add_hooks(self.engine)

    def consolidated_model(self) -> PreTrainedModel | PeftModel | None:
        """Return the policy's model with full weights on the first rank; None on the others."""
        if self.stage < 3:
            return self.policy.model if self.ranks.is_first else None
        state = self.accelerator.get_state_dict(self.engine)
        if not self.ranks.is_first:
            return None
        return model_from_state(self.policy.model, _policy_state(self.policy.model, state))

    def clear(self) -> None:
        """Do nothing: DeepSpeed holds no gradients between two optimizer steps."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of a loss; it is scaled by the world size, because DeepSpeed averages over ranks."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self.ranks.count)

    def _gradients(self, group: int) -> list[Tensor]:
        """Return this rank's shards of the summed gradients of a parameter group."""
        zero = self.optimizer
        if self.stage == 3:
            sub_groups = [i for i, owner in zero.sub_group_to_group_id.items() if owner == group]
            if zero.offload_optimizer:
                return [zero.fp32_partitioned_groups_flat[i].grad for i in sub_groups]
            named = [zip(zero.fp16_groups[i], zero.averaged_gradients[i], strict=True) for i in sub_groups]
            return [
                self._without_padding(parameter, gradient) for sub_group in named for parameter, gradient in sub_group
            ]
        if zero.cpu_offload:
            return [zero.single_partition_of_fp32_groups[group].grad]
        return list(zero.averaged_gradients[group] or [])

    def _without_padding(self, parameter: Any, gradient: Tensor) -> Tensor:
        """Zero the padding at the end of a gradient shard, which DeepSpeed leaves uninitialised; return the shard."""
        first = self.ranks.index * gradient.numel()
        gradient.view(-1)[max(0, parameter.ds_numel - first) :].zero_()
        return gradient

    def norms(self) -> tuple[float, float]:
        """Return the gradient norms of policy and value function over all ranks."""
        squares = [sum(float(shard.double().square().sum()) for shard in self._gradients(group)) for group in (0, 1)]
        policy, value = (total**0.5 for total in self.ranks.all_reduce_sum(*squares))
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the gradients of both groups and take an optimizer step; without ``policy`` its group is held still."""
        for group, factor in enumerate((factors[0] if policy else 0.0, factors[1])):
            if factor != 1:
                for part in self._gradients(group):
                    part.mul_(factor)
        rate, decay = self._hold_policy(policy=policy)
        self.engine.step()
        if not policy:
            self.optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
            for flat in self.state.flat(0):  # its moments stayed 0; its step count starts with its first update
                self.optimizer.optimizer.state[flat]["step"].zero_()

    def _hold_policy(self, *, policy: bool) -> tuple[float, float]:
        """Return the policy's learning rate and weight decay; without ``policy`` set both to 0 for this step."""
        group = self.optimizer.param_groups[0]
        before = (group["lr"], group["weight_decay"])
        if not policy:
            group.update(lr=0.0, weight_decay=0.0)
        return before

    def discard(self) -> None:
        """Skip the step: DeepSpeed skips one whose gradients are not finite, and clears them."""
        for group in (0, 1):
            for part in self._gradients(group):
                part.fill_(float("nan"))
        self.engine.step()

    def weights(self) -> dict[str, Tensor]:
        """Gather the full trained weights, in fp32."""
        return {name: self.state.weight(parameter) for name, parameter in self.policy.trained().items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load full weights into the shards."""
        own = self.policy.trained()
        check_names(own, tensors)
        for name, parameter in own.items():
            self.state.set_weight(parameter, tensors[name])

    def _names(self) -> Iterator[tuple[int, nn.Parameter, str]]:
        """Yield group, parameter and name of each trained weight."""
        names = {id(parameter): name for name, parameter in self.policy.trained().items()}
        for group, parameters in enumerate(self.state.groups):
            for parameter in parameters:
                yield group, parameter, names[id(parameter)]

    def moments(self) -> dict[str, Tensor]:
        """Gather Adam's full moments."""
        self.state.link()
        moments: dict[str, Tensor] = {}
        for group, parameter, name in self._names():
            keys, rest = self.state.known(group)
            if "step" in rest:
                moments |= {f"{key}/{name}": self.state.moment(parameter, key) for key in keys}
                moments[f"step/{name}"] = torch.tensor(float(rest["step"]))
        return moments

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Load Adam's full moments into the shards."""
        steps: dict[int, Tensor] = {}
        for group, _, name in self._names():
            if f"step/{name}" in tensors:
                steps.setdefault(group, tensors[f"step/{name}"].clone().float())
        for group, step in steps.items():
            self.state.begin(group, MOMENTS, {"step": step})
        self.state.link()
        for _, parameter, name in self._names():
            for key in MOMENTS:
                if f"{key}/{name}" in tensors:
                    self.state.set_moment(parameter, key, tensors[f"{key}/{name}"])


class FsdpEngine:
    """FSDP2: torch shards weights, gradients and optimizer state, layer by layer."""

    is_collective = True
    can_reuse_forward = False
    scaler = GradScaler(enabled=False)
    """Disabled, because fp16 is not supported with sharding."""

    def __init__(self, policy: Policy, settings: PPOSettings, ranks: Ranks) -> None:
        self.policy, self.ranks = policy, ranks
        mesh = init_device_mesh(policy.device.type, (ranks.count,))
        for block in policy.blocks():
            fully_shard(block, mesh=mesh)
        self.engine = fully_shard(policy.module, mesh=mesh)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings), eps=settings.adam_epsilon, weight_decay=settings.weight_decay
        )
        policy.through(self.engine)
        policy.run(lambda: None)  # initialises FSDP's root before sampling calls one of its modules directly

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """Yield the model to sample from; the weights are gathered once instead of for every token."""
        with fsdp.unsharded(self.policy.module), self.policy.sampling() as model:
            yield model

    def _resharded(self) -> dict[str, nn.Parameter]:
        """Reshard gathered weights, and return the trained parameters, as DTensors, by name."""
        fsdp.reshard(self.policy.module)
        return self.policy.trained()

    def consolidated_model(self) -> PreTrainedModel | PeftModel | None:
        """Return the policy's model with full weights on the first rank; None on the others."""
        self._resharded()
        state = {name: dtensors.full_tensor(parameter) for name, parameter in self.policy.module.state_dict().items()}
        if not self.ranks.is_first:
            return None
        return model_from_state(self.policy.model, _policy_state(self.policy.model, state))

    def clear(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of a loss; it is scaled by the world size, because FSDP averages over ranks."""
        (loss * self.ranks.count).backward()  # type: ignore[no-untyped-call]

    def _gradient_shards(self, group: int) -> list[Tensor]:
        """Return this rank's shards of the gradients of a parameter group."""
        shards = []
        for parameter in self.optimizer.param_groups[group]["params"]:
            if parameter.grad is not None:
                shards.append(parameter.grad.to_local())
        return shards

    def norms(self) -> tuple[float, float]:
        """Return the gradient norms of policy and value function over all ranks."""
        squares = [sum(float(s.double().square().sum()) for s in self._gradient_shards(group)) for group in (0, 1)]
        policy, value = (total**0.5 for total in self.ranks.all_reduce_sum(*squares))
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the gradients of both groups and take an optimizer step; without ``policy`` its group is held still."""
        if not policy:
            for parameter in self.optimizer.param_groups[0]["params"]:
                parameter.grad = None
        for group, factor in enumerate(factors):
            if factor < 1:
                torch._foreach_mul_(self._gradient_shards(group), factor)
        self.optimizer.step()

    def discard(self) -> None:
        """Skip the step, and clear the gradients."""
        self.clear()

    def weights(self) -> dict[str, Tensor]:
        """Gather the full trained weights."""
        return {name: dtensors.full_tensor(parameter) for name, parameter in self._resharded().items()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load full weights into the shards."""
        own = self._resharded()
        check_names(own, tensors)
        for name, parameter in own.items():
            parameter.copy_(dtensors.distribute_like(tensors[name], parameter))

    def moments(self) -> dict[str, Tensor]:
        """Gather Adam's full moments."""
        moments = {}
        for name, parameter in self._resharded().items():
            state = self.optimizer.state.get(parameter, {})
            for key in (*MOMENTS, "step"):
                if key in state:
                    moments[f"{key}/{name}"] = dtensors.full_tensor(state[key])
        return moments

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Load Adam's full moments into the shards."""
        for name, parameter in self._resharded().items():
            if f"step/{name}" in tensors:
                state = {key: dtensors.distribute_like(tensors[f"{key}/{name}"], parameter) for key in MOMENTS}
                step = tensors[f"step/{name}"].to(parameter.device, copy=True)  # where a fused optimizer keeps it
                self.optimizer.state[parameter] = {"step": step, **state}


def _policy_state(model: PreTrainedModel | PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy model's part of `Policy.module`'s state dict, without other adapters on its trunk."""
    own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    if not isinstance(model, PeftModel):
        return own
    return {name: t for name, t in own.items() if ".lora_" not in name or is_of(name, model.active_adapter)}
