"""How the gradients of an optimizer step come together and are applied, whatever holds the weights.

`PlainEngine` keeps all of them in every process and adds gradients up itself. `sharding.py` has those that share
weights, gradients or optimizer states out (ZeRO, FSDP2). All take the same steps: a loss is the sum over this process's
tokens divided by the tokens of all, gradients are summed over processes, policy and value are clipped each to its own
norm, and what is trained and its moments are kept whole, so that a run goes on with another stepper or other processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from pipeline.parallel.ranks import Ranks
from pipeline.ppo.policy import Policy
from pipeline.ppo.settings import PPOSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam remembers of each weight."""


class TrainEngine(Protocol):
    """Owns the optimizer of a policy and its value function.

    Attributes:
        policy: whose weights.
        optimizer: with two groups, policy and value.
        scaler: of the loss in fp16, whose small gradients would be zeros; in other formats it does nothing.
        in_step: whether every process has to run the same number of forward and backward passes.
        may_keep: whether a forward pass of the scoring may be kept for the first optimizer step.
    """

    policy: Policy
    optimizer: Any
    scaler: GradScaler
    in_step: bool
    may_keep: bool

    def sampling(self) -> AbstractContextManager[Any]:
        """Give the whole model to sample from, an adapter folded in."""
        ...

    def consolidated_model(self) -> Any | None:
        """Return the policy's model with all its weights on the first process; every process calls it."""
        ...

    def clear(self) -> None:
        """Forget gradients."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a loss; ``last`` of the optimizer step, every process says so once."""
        ...

    def norms(self) -> tuple[float, float]:
        """Return the norms of the summed gradients of policy and value, after the last backward pass.

        Where the loss was scaled too far they are not finite; `discard` then lowers the scale.
        """
        ...

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale the gradients of policy and value and step; without ``policy`` not even its moments move."""
        ...

    def discard(self) -> None:
        """Take no step, leave weights and moments as they are."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return whole copies of what is trained, by name; every process calls it."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `weights` returned."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Return what Adam remembers, whole, as ``moment/name``; a weight without a step has none."""
        ...

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `moments` returned."""
        ...


def parameter_groups(policy: Policy, settings: PPOSettings) -> list[dict[str, Any]]:
    """Return the two groups of the optimizer: policy and value, each with its learning rate."""
    return [
        {"params": policy.policy_parameters, "lr": settings.learning_rate},
        {"params": policy.value_parameters, "lr": settings.value_rate},
    ]


def check_names(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse tensors of another model.

    Raises:
        ValueError: the names differ.
    """
    if set(own) != set(given):
        raise ValueError(f"checkpoint has other weights: {sorted(set(own) ^ set(given))[:3]}")


class PlainEngine:
    """Every process holds everything; gradients are added up in one message."""

    in_step = False
    may_keep = True

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
        """Give the model, an adapter folded in."""
        return self.policy.sampling()

    def consolidated_model(self) -> Any | None:
        """Return the policy's model on the first process."""
        return self.policy.model if self.ranks.is_first else None

    def clear(self) -> None:
        """Forget gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a loss."""
        torch.autograd.backward(self.scaler.scale(loss))
        if last:
            for group in self._groups:
                self.ranks.add_gradients(group)

    def norms(self) -> tuple[float, float]:
        """Return the norms of policy and value."""
        self.scaler.unscale_(self.optimizer)
        self._unscaled = self.scaler.is_enabled()
        policy, value = (_norm(group) for group in self._groups)
        return policy, value

    def step(self, factors: tuple[float, float], *, policy: bool) -> None:
        """Scale gradients and step."""
        if not policy:  # not even Adam's moments and weight decay touch the policy
            for parameter in self._groups[0]:
                parameter.grad = None
        for group, factor in zip(self._groups, factors, strict=True):
            _scale_gradients(group, factor)
        self.optimizer.step()
        self._settle_scale()

    def discard(self) -> None:
        """Take no step."""
        self._settle_scale()
        self.clear()

    def _settle_scale(self) -> None:
        """Lower the scale of the loss where it was too large, raise it where it was not for long."""
        if self._unscaled:
            self.scaler.update()
        self._unscaled = False

    def weights(self) -> dict[str, Tensor]:
        """Return copies of what is trained."""
        return {name: parameter.detach().clone() for name, parameter in self.policy.trained().items()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put weights back."""
        own = self.policy.trained()
        check_names(own, tensors)
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    def moments(self) -> dict[str, Tensor]:
        """Return what Adam remembers."""
        return dict(self._moments())

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.policy.trained().items():
            state = self.optimizer.state.get(parameter, {})
            for key in (*MOMENTS, "step"):
                if key in state:
                    yield f"{key}/{name}", state[key].detach().clone()

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Put Adam's memory back."""
        for name, parameter in self.policy.trained().items():
            if f"step/{name}" in tensors:
                keys = (*MOMENTS, "step")  # a fused optimizer counts its steps where its weights are
                state = {key: tensors[f"{key}/{name}"].to(parameter.device, copy=True) for key in keys}
                self.optimizer.state[parameter] = state


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    if factor < 1:
        torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], factor)


def clip_factors(norms: tuple[float, float], largest: float) -> tuple[float, float]:
    """Return what scales gradients of these norms to at most ``largest``; 1 where it is 0 or they are smaller."""
    policy, value = (min(1.0, largest / (norm + 1e-6)) if largest else 1.0 for norm in norms)
    return policy, value


def drifted(weights: Mapping[str, Tensor], ranks: Ranks) -> bool:
    """Return whether processes that should hold the same weights do not."""
    digest = sum(float(tensor.double().sum()) for tensor in weights.values())
    return ranks.all_reduce_max(digest) != -ranks.all_reduce_max(-digest)


def are_finite(norms: tuple[float, float]) -> bool:
    """Return whether a step with gradients of these norms may be taken."""
    return all(math.isfinite(norm) for norm in norms)
