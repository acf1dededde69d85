"""Floating-point operations of a stage, and the hours they take on a device.

References: Kaplan et al. 2020 (arXiv:2001.08361, section 2.1): a forward pass costs 2 operations per parameter and
token, a backward pass twice that, so training costs 6·P·D; with 12·layers·width·context for attention over the whole
context (Hoffmann et al. 2022, arXiv:2203.15556, appendix F counts it too), half of it under a causal mask.
"""

from __future__ import annotations

from pipeline.estimate.devices import MFU, Device
from pipeline.estimate.shape import ModelShape


def forward_flops(shape: ModelShape, tokens: float, length: float) -> float:
    """Return the operations of a forward pass over ``tokens`` in rows of ``length``."""
    return tokens * (2.0 * shape.body + 2.0 * shape.layers * shape.attention * length)


def training_flops(
    shape: ModelShape, tokens: float, length: float, *, trained_all: bool = True, recompute: bool = False
) -> float:
    """Return the operations of forward and backward passes.

    Args:
        shape: shape of the model.
        tokens: number of tokens trained on.
        length: tokens of a row.
        trained_all: whether all weights need gradients; with LoRA only activations do, which halves the backward pass.
        recompute: whether activation checkpointing adds a forward pass.
    """
    return forward_flops(shape, tokens, length) * (1 + (2 if trained_all else 1) + (1 if recompute else 0))


def hours(flops: float, device: Device, devices: int, *, half: bool) -> float | None:
    """Return the hours on ``devices`` at the assumed model FLOPs utilisation; None when the peak is not known."""
    if not device.tflops:
        return None
    rate = device.tflops * 1e12 * MFU * (1.0 if half or not device.is_gpu else 0.5)
    return flops / (rate * devices) / 3600
