"""Whether two ways of computing the same logits agree: by how much they may differ through rounding alone.

A measure is relative to the spread of the logits, the distance of the likeliest token from the unlikeliest; of scores,
one number for each sequence, to the largest, or to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDING = {"fp32": 1e-3, "tf32": 1e-2, "half": 0.1}
"""Share of the spread by which two right computations may differ.

Measured in fp32 on a CPU: up to 1e-5 over 43 tiny architectures and real models of 2 to 30 layers. Mistakes that matter
(a cache of another kind, a merge into a tied weight) are above 0.02.
"""


def rounding_of(model: Any) -> float:
    """Return the share of the spread by which two computations of a model may differ, in the format it computes in."""
    device = model.device.type
    formats = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    is_half = bool(formats & {torch.bfloat16, torch.float16}) or torch.is_autocast_enabled(device)
    if is_half or getattr(model, "is_quantized", False):
        return ROUNDING["half"]
    return ROUNDING["fp32" if device == "cpu" else "tf32"]


def disagreement(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest difference between logits of the same shapes, and the spread of those wanted.

    Something that is not a number on one side makes the difference infinite; a token that both rule out (minus
    infinity) makes none.
    """
    worst = spread = 0.0
    for a, b in zip(found, wanted, strict=True):
        a, b = a.float().cpu(), b.float().cpu()
        off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        worst = max(worst, float(off.nan_to_num(nan=float("inf"), posinf=float("inf")).max()))
        known = b[b.isfinite()]
        if b.shape[-1] == 1:  # a score: one unit of it is what a preference is told by
            spread = max(spread, 1.0, float(known.abs().max()) if known.numel() else 0.0)
        elif known.numel():
            spread = max(spread, float(known.max() - known.min()))
    return worst, spread
