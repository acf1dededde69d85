"""Train engines: accumulate and apply the gradients of an optimizer step, whatever the sharding.

`PlainEngine` replicates everything on every rank and all-reduces gradients. `sharding.py` has the engines that shard
weights, gradients or optimizer state (ZeRO, FSDP2). All take the same steps: a loss is the sum over this rank's tokens
divided by the tokens of all ranks, gradients are summed over ranks, and policy and value function are clipped by
separate norms. Weights and moments are saved in full, so a run can resume with another engine or number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import KeywordArguments
from pipeline.rl.policy.policy import Policy
from pipeline.rl.ppo.settings import PPOSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments of each weight, by their names in torch."""


class TrainEngine(Protocol):
    """Owns the optimizer of a policy and its value function.

    Attributes:
        policy: policy that is trained.
        optimizer: optimizer with two parameter groups, policy and value function.
        scaler: loss scaler for fp16, where small gradients would underflow; disabled otherwise.
        is_collective: whether passes are collective, so that every rank must run the same number of them.
        can_reuse_forward: whether the forward pass of `PPOTrainer.measure` may be reused for the first optimizer step.
    """

    policy: Policy
    optimizer: Any
    scaler: GradScaler
    is_collective: bool
    can_reuse_forward: bool

    def sampling(self) -> AbstractContextManager[Any]:
        """Return a context that yields the model to sample from, with full weights and a merged adapter."""
        ...

    def consolidated_model(self) -> PreTrainedModel | PeftModel | None:
        """Return the policy's model with full weights on the first rank, else None; every rank must call it."""
        ...

    def clear(self) -> None:
        """Clear the gradients."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of a loss; ``last`` marks the last one of an optimizer step, on every rank."""
        ...

    def norms(self) -> tuple[float, float]:
        """Return the norms of the summed gradients of policy and value function, after the last backward pass.

        They are not finite if an fp16 loss was scaled too far; `discard` then lowers the scale.
        """
        ...

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the gradients of policy and value function, and take an optimizer step.

        Without ``policy`` its weights and its moments stay as they are.
        """
        ...

    def discard(self) -> None:
        """Skip the step: clear the gradients, and leave weights and moments as they are."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return full copies of the trained weights by name; every rank must call it."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `weights` returned."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Return Adam's full moments as ``moment/name``; a weight without a step has none. Every rank must call it."""
        ...

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `moments` returned."""
        ...


def parameter_groups(policy: Policy, settings: PPOSettings) -> list[KeywordArguments]:
    """Return the optimizer's two parameter groups, policy and value function, each with its learning rate."""
    return [
        {"params": policy.policy_parameters, "lr": settings.learning_rate},
        {"params": policy.value_parameters, "lr": settings.value_rate},
    ]


def check_names(own: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Check that a checkpoint has exactly the weights of the model.

    Raises:
        ValueError: the names differ.
    """
    if set(own) != set(given):
        raise ValueError(f"checkpoint has other weights: {sorted(set(own) ^ set(given))[:3]}")


class PlainEngine:
    """Every rank holds everything; gradients are all-reduced in one message per parameter group."""

    is_collective = False
    can_reuse_forward = True

    def __init__(self, policy: Policy, settings: PPOSettings, ranks: Ranks) -> None:
        self.policy, self.ranks = policy, ranks
        self.optimizer: Any = torch.optim.AdamW(
            parameter_groups(policy, settings),
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = GradScaler(policy.device.type, enabled=policy.precision == torch.float16)
        self._unscaled = False

    @property
    def _groups(self) -> list[list[nn.Parameter]]:
        return [group["params"] for group in self.optimizer.param_groups]

    def sampling(self) -> AbstractContextManager[Any]:
        """Return a context that yields the model to sample from, with a merged adapter."""
        return self.policy.sampling()

    def consolidated_model(self) -> PreTrainedModel | PeftModel | None:
        """Return the policy's model on the first rank; None on the others."""
        return self.policy.model if self.ranks.is_first else None

    def clear(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of a loss; after the last one, sum them over the ranks."""
        torch.autograd.backward(self.scaler.scale(loss))
        if last:
            for group in self._groups:
                self.ranks.add_gradients(group)

    def norms(self) -> tuple[float, float]:
        """Unscale the gradients; return their norms for policy and value function."""
        self.scaler.unscale_(self.optimizer)
        self._unscaled = self.scaler.is_enabled()
        policy, value = (_norm(group) for group in self._groups)
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the gradients of both groups and take an optimizer step; without ``policy`` its group is held still."""
        if not policy:  # without gradients AdamW changes neither moments nor weights of the policy
            for parameter in self._groups[0]:
                parameter.grad = None
        for group, factor in zip(self._groups, factors, strict=True):
            _scale_gradients(group, factor)
        self.optimizer.step()
        self._settle_scale()

    def discard(self) -> None:
        """Skip the step: update the loss scale, and clear the gradients."""
        self._settle_scale()
        self.clear()

    def _settle_scale(self) -> None:
        """Update the loss scale after unscaling: lower it after an overflow, raise it after many steps without one."""
        if self._unscaled:
            self.scaler.update()
        self._unscaled = False

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the trained weights by name."""
        return {name: parameter.detach().clone() for name, parameter in self.policy.trained().items()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights that `weights` returned."""
        own = self.policy.trained()
        check_names(own, tensors)
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    def moments(self) -> dict[str, Tensor]:
        """Return copies of Adam's moments as ``moment/name``."""
        return dict(self._moments())

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.policy.trained().items():
            state = self.optimizer.state.get(parameter, {})
            for key in (*MOMENTS, "step"):
                if key in state:
                    yield f"{key}/{name}", state[key].detach().clone()

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Load moments that `moments` returned."""
        for name, parameter in self.policy.trained().items():
            if f"step/{name}" in tensors:
                keys = (*MOMENTS, "step")  # a fused optimizer keeps its step count on the device of the weights
                state = {key: tensors[f"{key}/{name}"].to(parameter.device, copy=True) for key in keys}
                self.optimizer.state[parameter] = state


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    if factor < 1:
        torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], factor)


def clip_factors(norms: tuple[float, float], largest: float) -> tuple[float, float]:
    """Return the factors that clip gradients of these norms to ``largest``; a ``largest`` of 0 does not clip."""
    policy, value = (min(1.0, largest / (norm + 1e-6)) if largest else 1.0 for norm in norms)
    return policy, value


def drifted(weights: Mapping[str, Tensor], ranks: Ranks) -> bool:
    """Return whether the ranks' weights differ, by a checksum, although they should be the same."""
    digest = sum(float(tensor.double().sum()) for tensor in weights.values())
    return ranks.all_reduce_max(digest) != -ranks.all_reduce_max(-digest)


def are_finite(norms: tuple[float, float]) -> bool:
    """Return whether both gradient norms are finite."""
    return all(math.isfinite(norm) for norm in norms)
