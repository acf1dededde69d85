"""Probes the first training pass of a model: its compute dtype, and whether activations are recomputed.

A setting says what was asked for; the probe sees what runs. Its hook is removed after the first pass.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class ForwardProbe:
    """Hooks the first linear module of the last decoder layer, from construction until `end`.

    Passes without gradients (of a reference model, of sampling) do not count.

    Attributes:
        dtype: dtype of the module's first output; None before the first pass.
        passes: forward passes through the module.
        again: forward passes during a backward pass, which recompute activations.
    """

    def __init__(self, model: nn.Module) -> None:
        self.dtype: torch.dtype | None = None
        self.passes = self.again = 0
        layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        linear = next((part for part in layers[-1].modules() if _is_linear(part)), None) if layers else None
        # Not a hook on the layer: checkpointing in transformers recomputes its `forward` without the layer's hooks.
        self._handle = None if linear is None else linear.register_forward_hook(self._record)

    @property
    def is_blind(self) -> bool:
        """Whether no pass was seen: the layers are of an unknown class, or none has run yet."""
        return not self.passes

    def _record(self, _: nn.Module, __: object, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self.dtype = self.dtype or output.dtype
            self.passes += 1
            self.again += torch._C._current_graph_task_id() != -1  # inside a backward pass, as torch.utils.checkpoint

    def end(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
