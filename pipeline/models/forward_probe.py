"""Watches the first pass of a model that trains: the number format it computes in, and what it computes twice.

A setting says what was asked for; this sees what runs. Its hooks are gone after the first pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class ForwardProbe:
    """Watches the first linear part of the last decoder layer from the moment it is made until `end`.

    Passes without gradients (of a reference, of sampling) do not count.

    Attributes:
        dtype: of what it returned; None before.
        passes: forward passes through it.
        again: those of them during a backward pass: activations computed a second time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.dtype: torch.dtype | None = None
        self.passes = self.again = 0
        layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        linear = next((part for part in layers[-1].modules() if _is_linear(part)), None) if layers else None
        # Not the layer: transformers computes its `forward` again, and leaves hooks of the layer itself outside.
        self._handle = None if linear is None else linear.register_forward_hook(self._look)

    @property
    def is_blind(self) -> bool:
        """Whether nothing was seen: layers of an unknown make, or no pass yet."""
        return not self.passes

    def _look(self, _: nn.Module, __: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self.dtype = self.dtype or output.dtype
            self.passes += 1
            self.again += torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint knows it

    def end(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
