"""Whether two computations of the same logits agree up to rounding.

Differences are relative to the spread of the logits: the distance between the likeliest and the unlikeliest token. For
reward scores, one number per sequence, they are relative to the largest score, or to 1 if that is larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ROUNDING = {"fp32": 1e-3, "tf32": 1e-2, "half": 0.1}
"""Fraction of the spread by which two correct computations may differ, by number format.

Measured in fp32 on a CPU: up to 1e-5 over 43 tiny architectures and real models of 2 to 30 layers. Mistakes that matter
(an incompatible key-value cache, a merge into a tied weight) are above 0.02.
"""


def rounding_of(model: PreTrainedModel | PeftModel) -> float:
    """Return the entry of `ROUNDING` for the number format that a model computes in."""
    device = model.device.type
    formats = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    is_half = bool(formats & {torch.bfloat16, torch.float16}) or torch.is_autocast_enabled(device)
    if is_half or getattr(model, "is_quantized", False):
        return ROUNDING["half"]
    return ROUNDING["fp32" if device == "cpu" else "tf32"]


def disagreement(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest difference between logits of the same shapes, and the spread of those expected.

    NaN on one side only makes the difference infinite. A token that both sides rule out (minus infinity) does not
    count.
    """
    worst = spread = 0.0
    for a, b in zip(logits, expected, strict=True):
        a, b = a.float().cpu(), b.float().cpu()
        off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        worst = max(worst, float(off.nan_to_num(nan=float("inf"), posinf=float("inf")).max()))
        known = b[b.isfinite()]
        if b.shape[-1] == 1:  # a reward score: a difference of 1 decides a preference
            spread = max(spread, 1.0, float(known.abs().max()) if known.numel() else 0.0)
        elif known.numel():
            spread = max(spread, float(known.max() - known.min()))
    return worst, spread
