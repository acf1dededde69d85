"""The settings of `compute` that a running stage reads, besides its parallel dimensions (`parallel/dims.py`).

Knows nothing of recipes, of what starts the processes, or of torch: `trueup plan` imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["auto", "eager", "sdpa", "flash"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ComputeSettings:
    """How a stage computes; none of it may change the result beyond rounding.

    Attributes:
        precision: number format of the computation.
        device: device to run on; ``auto`` is a GPU if there is any.
        threads: CPU threads of each process; None leaves the number to torch and the machine.
        attention: attention kernel.
        liger: whether Liger's fused kernels run.
        activation_checkpointing: whether the backward pass recomputes activations; a stage takes ``auto`` as false.
        micro_batch: rows of a forward pass.
        checkpoint_every_s: seconds between checkpoints.
    """

    precision: Precision = "auto"
    device: Device = "auto"
    threads: int | None = None
    attention: Attention = "auto"
    liger: Switch = "auto"
    activation_checkpointing: bool | Literal["auto"] = "auto"
    micro_batch: int | Literal["auto"] = "auto"
    checkpoint_every_s: float = 30.0

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass recomputes activations."""
        return self.activation_checkpointing is True
