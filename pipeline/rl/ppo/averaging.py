"""An exponential moving average (EMA) of the policy's weights, which is evaluated and saved instead of the policy.

Reference: Polyak and Juditsky 1992; for RLHF, Ouyang et al. 2022, arXiv:2203.02155, appendix C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.rl.policy.policy import Policy


class Average:
    """The EMA of the policy's trained weights; the value function has none."""

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy, self.decay = policy, decay
        self.weights = {name: parameter.detach().clone() for name, parameter in self._policy_weights().items()}

    def _policy_weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.policy.trained().items() if name.startswith("policy.")}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the policy's weights after an optimizer step."""
        for name, parameter in self._policy_weights().items():
            self.weights[name].lerp_(parameter, 1 - self.decay)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside the context, replace the policy's weights by their average."""
        own = self._policy_weights()
        current = {name: parameter.detach().clone() for name, parameter in own.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(current)

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._policy_weights().items():
            parameter.copy_(weights[name])
