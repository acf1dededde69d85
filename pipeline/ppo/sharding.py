"""Steppers that share state out over processes: DeepSpeed's ZeRO stages 1 to 3, and torch's FSDP2.

One engine holds policy, value function and reference (`Policy.whole`); every call of a model goes through it, so that
it can gather weights. The passes over micro-batches are collective: every process runs the same number.

References: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.amp import GradScaler

from pipeline.errors import PipelineError, Problem
from pipeline.parallel import dtensors
from pipeline.parallel.consolidation import rebuilt
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.zero.optimizer_state import ZeroState, share_fp32
from pipeline.ppo.adapters import is_of
from pipeline.ppo.policy import Policy
from pipeline.ppo.settings import PPOSettings
from pipeline.ppo.steppers import MOMENTS, check_names, parameter_groups


class ZeroEngine:
    """DeepSpeed holds optimizer states (stage 1), gradients (2) and weights (3) sharded.

    Clipping is ours: DeepSpeed knows one norm for all.

    Attributes:
        engine: DeepSpeed's, around everything.
        stage: of ZeRO.
    """

    in_step = True
    may_keep = False
    scaler = GradScaler(enabled=False)
    """Never of use: fp16 is refused where weights are sharded."""

    def __init__(self, policy: Policy, settings: PPOSettings, ranks: Ranks, config: dict[str, Any]) -> None:
        """Shard.

        Args:
            policy: built, in memory in every process.
            settings: of the algorithm.
            ranks: the processes.
            config: DeepSpeed's (`pipeline/parallel/zero/config.py`).
        """
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        self.policy, self.ranks = policy, ranks
        self.stage = int(config["zero_optimization"]["stage"])
        once = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "train_batch_size": ranks.count}
        plugin = DeepSpeedPlugin(hf_ds_config={**config, **once, "gradient_clipping": 0.0})
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        self.accelerator = Accelerator(deepspeed_plugin=plugin)
        groups = parameter_groups(policy, settings)
        adam = torch.optim.AdamW(groups, eps=settings.adam_epsilon, weight_decay=settings.weight_decay)
        self.engine, prepared = self.accelerator.prepare(policy.whole, adam)
        self.optimizer = prepared.optimizer
        if self.stage == 3:
            share_fp32(self.optimizer)
        policy.through(self.engine)
        trained = (policy.policy_parameters, policy.value_parameters)
        self.state = ZeroState(self.optimizer, self.stage, trained, ranks)
        unset_hf_deepspeed_config()  # models made from now on are not to be dealt out
        if self.accelerator.num_processes != ranks.count:
            statement = f"accelerate runs DeepSpeed on {self.accelerator.num_processes} processes"
            raise PipelineError(Problem(statement, f"all {ranks.count}"))

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """Give the model whole: with ZeRO-3 weights are gathered once, not for every token."""
        if self.stage < 3:
            with self.policy.sampling() as model:
                yield model
            return
        import deepspeed
        from trl.models.utils import add_hooks, remove_hooks

        with deepspeed.zero.GatheredParameters(list(self.policy.whole.parameters())):
            remove_hooks(self.engine)
            try:
                with self.policy.sampling() as model:
                    yield model
            finally:
                add_hooks(self.engine)

    def consolidated_model(self) -> Any | None:
        """Return the policy's model with all its weights on the first process."""
        if self.stage < 3:
            return self.policy.model if self.ranks.is_first else None
        state = self.accelerator.get_state_dict(self.engine)
        return rebuilt(self.policy.model, _of_policy(self.policy.model, state)) if self.ranks.is_first else None

    def clear(self) -> None:
        """Forget gradients: there are none between two steps."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a loss; DeepSpeed takes the mean over processes, so the loss is times their number."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self.ranks.count)

    def _gradients(self, group: int) -> list[Tensor]:
        """Return this process's part of the summed gradients of a group."""
        held = self.optimizer
        if self.stage == 3:
            parts = [i for i, owner in held.sub_group_to_group_id.items() if owner == group]
            if held.offload_optimizer:
                return [held.fp32_partitioned_groups_flat[i].grad for i in parts]
            named = [zip(held.fp16_groups[i], held.averaged_gradients[i], strict=True) for i in parts]
            return [
                self._without_padding(parameter, gradient) for group_of in named for parameter, gradient in group_of
            ]
        if held.cpu_offload:
            return [held.single_partition_of_fp32_groups[group].grad]
        return list(held.averaged_gradients[group] or [])

    def _without_padding(self, parameter: Any, gradient: Tensor) -> Tensor:
        """Return a part of a gradient with zeros beyond the weight's end, where DeepSpeed leaves what lay there."""
        first = self.ranks.index * gradient.numel()
        gradient.view(-1)[max(0, parameter.ds_numel - first) :].zero_()
        return gradient

    def norms(self) -> tuple[float, float]:
        """Return the norms of policy and value over all parts."""
        squares = [sum(float(part.double().square().sum()) for part in self._gradients(group)) for group in (0, 1)]
        policy, value = (total**0.5 for total in self.ranks.sums(*squares))
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the parts and step."""
        for group, factor in enumerate((factors[0] if policy else 0.0, factors[1])):
            if factor != 1:
                for part in self._gradients(group):
                    part.mul_(factor)
        rate, decay = self._hold(policy=policy)
        self.engine.step()
        if not policy:
            self.optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
            for flat in self.state.flat(0):  # its moments stayed 0; its count of steps begins when it does
                self.optimizer.optimizer.state[flat]["step"].zero_()

    def _hold(self, *, policy: bool) -> tuple[float, float]:
        """Stop the policy's group where it is; return what it had."""
        group = self.optimizer.param_groups[0]
        before = (group["lr"], group["weight_decay"])
        if not policy:
            group.update(lr=0.0, weight_decay=0.0)
        return before

    def discard(self) -> None:
        """Take no step: DeepSpeed leaves one out whose gradients are not finite, and cleans up after it."""
        for group in (0, 1):
            for part in self._gradients(group):
                part.fill_(float("nan"))
        self.engine.step()

    def weights(self) -> dict[str, Tensor]:
        """Gather what is trained, in fp32."""
        return {name: self.state.weight(parameter) for name, parameter in self.policy.trained().items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Share weights out."""
        own = self.policy.trained()
        check_names(own, tensors)
        for name, parameter in own.items():
            self.state.set_weight(parameter, tensors[name])

    def _names(self) -> Iterator[tuple[int, nn.Parameter, str]]:
        """Yield each weight that is trained with its group and its name."""
        names = {id(parameter): name for name, parameter in self.policy.trained().items()}
        for group, parameters in enumerate(self.state.groups):
            for parameter in parameters:
                yield group, parameter, names[id(parameter)]

    def moments(self) -> dict[str, Tensor]:
        """Gather what Adam remembers."""
        self.state.link()
        found: dict[str, Tensor] = {}
        for group, parameter, name in self._names():
            moments, rest = self.state.known(group)
            if "step" in rest:
                found |= {f"{key}/{name}": self.state.moment(parameter, key) for key in moments}
                found[f"step/{name}"] = torch.tensor(float(rest["step"]))
        return found

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Share Adam's memory out."""
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
    """torch's FSDP2 holds weights, gradients and optimizer states sharded, layer by layer."""

    in_step = True
    may_keep = False
    scaler = GradScaler(enabled=False)
    """Never of use: fp16 is refused where weights are sharded."""

    def __init__(self, policy: Policy, settings: PPOSettings, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.policy, self.ranks = policy, ranks
        mesh = init_device_mesh(policy.device.type, (ranks.count,))
        for block in policy.blocks():
            fully_shard(block, mesh=mesh)
        self.engine = fully_shard(policy.whole, mesh=mesh)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings), eps=settings.adam_epsilon, weight_decay=settings.weight_decay
        )
        policy.through(self.engine)
        policy.run(lambda: None)  # the root learns of its parts before one of them is called alone, to sample

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """Give the model whole: weights are gathered once, not for every token."""
        with fsdp.gathered(self.policy.whole), self.policy.sampling() as model:
            yield model

    def _in_parts(self) -> dict[str, Any]:
        """Let go of gathered weights, and return what is trained as this process's parts, by name."""
        fsdp.let_go(self.policy.whole)
        return self.policy.trained()

    def consolidated_model(self) -> Any | None:
        """Return the policy's model with all its weights on the first process."""
        self._in_parts()
        state = {name: dtensors.full_tensor(parameter) for name, parameter in self.policy.whole.state_dict().items()}
        return rebuilt(self.policy.model, _of_policy(self.policy.model, state)) if self.ranks.is_first else None

    def clear(self) -> None:
        """Forget gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a loss; FSDP takes the mean over processes, so the loss is times their number."""
        (loss * self.ranks.count).backward()  # type: ignore[no-untyped-call]

    def _parts(self, group: int) -> list[Tensor]:
        found = []
        for parameter in self.optimizer.param_groups[group]["params"]:
            if parameter.grad is not None:
                found.append(parameter.grad.to_local())
        return found

    def norms(self) -> tuple[float, float]:
        """Return the norms of policy and value over all parts."""
        squares = [sum(float(part.double().square().sum()) for part in self._parts(group)) for group in (0, 1)]
        policy, value = (total**0.5 for total in self.ranks.sums(*squares))
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the parts and step."""
        if not policy:
            for parameter in self.optimizer.param_groups[0]["params"]:
                parameter.grad = None
        for group, factor in enumerate(factors):
            if factor < 1:
                torch._foreach_mul_(self._parts(group), factor)
        self.optimizer.step()

    def discard(self) -> None:
        """Take no step."""
        self.clear()

    def weights(self) -> dict[str, Tensor]:
        """Gather what is trained."""
        return {name: dtensors.full_tensor(parameter) for name, parameter in self._in_parts().items()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Share weights out."""
        own = self._in_parts()
        check_names(own, tensors)
        for name, parameter in own.items():
            parameter.copy_(dtensors.distribute_like(tensors[name], parameter))

    def moments(self) -> dict[str, Tensor]:
        """Gather what Adam remembers."""
        found = {}
        for name, parameter in self._in_parts().items():
            state = self.optimizer.state.get(parameter, {})
            for key in (*MOMENTS, "step"):
                if key in state:
                    found[f"{key}/{name}"] = dtensors.full_tensor(state[key])
        return found

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Share Adam's memory out."""
        for name, parameter in self._in_parts().items():
            if f"step/{name}" in tensors:
                state = {key: dtensors.distribute_like(tensors[f"{key}/{name}"], parameter) for key in MOMENTS}
                step = tensors[f"step/{name}"].to(parameter.device, copy=True)  # where a fused optimizer counts
                self.optimizer.state[parameter] = {"step": step, **state}


def _of_policy(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's part of the state of `Policy.whole`, without other adapters on its trunk."""
    own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    if not isinstance(model, PeftModel):
        return own
    return {name: t for name, t in own.items() if ".lora_" not in name or is_of(name, model.active_adapter)}
