"""Measures which number format computes fastest on this CPU; the result is cached per machine.

bfloat16 is half as fast as fp32 on a CPU without instructions for it, and up to 3.5 times as fast on one with them
(`docs/log.md`); no CPU flag tells the factor. So a layer of the model's width is timed in both, forward and backward.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pipeline.models.cpu.bf16_speed import NO_INSTRUCTIONS, SMALLEST_WIDTH, WIDEST, Speed, has_bf16, recall, remember

_TOKENS = 512
_FEWEST, _MOST, _ENOUGH_S = 4, 12, 2.0
"""Fewest and most trials of each format, and the seconds after which only the fewest are made."""
_FEW_TOKENS, _HOPELESS = 16, 8.0
"""Tokens of the first trials, and how many times as long bf16 takes there when nothing more needs to be measured.
Where torch has no kernel for its products, one trial of all tokens may take half a minute."""
_FIRST, _SECOND_LOOK = 2, 5
"""First trials of each format, and further ones where bf16 looks hopeless: on a busy machine two of a millisecond may
both be slow, and the measurement is remembered."""


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats that fp32 weights compute in under autocast."""


class Choice(NamedTuple):
    """The chosen number format, and the reason."""

    precision: Literal["fp32", "bf16"]
    reason: str


def computing_in(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return an autocast context for ``bf16`` or ``fp16``; one that does nothing for ``fp32``."""
    dtype = HALF.get(precision)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def fastest_precision(width: int, cache: Path | None = None) -> Choice:
    """Return the faster format for a model of ``width`` hidden units on this CPU.

    Args:
        width: hidden size of the model; below `SMALLEST_WIDTH` nothing is measured.
        cache: file of cached measurements; in the user's cache folder by default.
    """
    if width < SMALLEST_WIDTH:
        return Choice("fp32", f"narrower than {SMALLEST_WIDTH} units")
    if has_bf16() is False:
        return Choice("fp32", NO_INSTRUCTIONS)
    width, threads = min(width, WIDEST), torch.get_num_threads()
    speed = recall(width, threads, cache) or remember(width, threads, measure(width), cache)
    return Choice(speed.faster, speed.words(width))


def measure(width: int) -> Speed:
    """Time a linear layer of ``width`` by 3 ``width``, forward and backward, in fp32 and in bf16 by autocast.

    Trials alternate, and the fastest of each format counts: other load on the machine makes a trial slower, never
    faster, and rarely affects all trials of only one format. Where a few tokens show that bf16 is emulated, these
    trials are the measurement.
    """
    own = torch.Generator().manual_seed(0)  # leaves the stage's random state alone, whether measured or cached
    inputs = torch.randn(_TOKENS, width, generator=own, requires_grad=True)
    weight = torch.randn(3 * width, width, generator=own, requires_grad=True)
    few = inputs[:_FEW_TOKENS].detach().requires_grad_()
    first: list[tuple[float, float]] = []
    for count in (_FIRST, _SECOND_LOOK):
        first += [(_seconds(few, weight, False), _seconds(few, weight, True)) for _ in range(count)]
        speed = _fastest(first)
        if speed.bf16_ms <= _HOPELESS * speed.fp32_ms:
            break
    else:
        return speed
    for lower in (False, True):  # warm-up
        _seconds(inputs, weight, lower)
    trials: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(trials) < _FEWEST or (len(trials) < _MOST and time.perf_counter() - started < _ENOUGH_S):
        trials.append((_seconds(inputs, weight, False), _seconds(inputs, weight, True)))
    return _fastest(trials)


def _fastest(trials: list[tuple[float, float]]) -> Speed:
    """Return the fastest trial of each format, given seconds in fp32 and in bf16."""
    fp32, bf16 = (min(seconds) * 1000 for seconds in zip(*trials, strict=True))
    return Speed(round(fp32, 4), round(bf16, 4))


def _seconds(inputs: torch.Tensor, weight: torch.Tensor, lower: bool) -> float:
    """Return the seconds of one trial; gradients of the trial before are dropped first."""
    inputs.grad = weight.grad = None
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        out = torch.nn.functional.linear(inputs, weight)
    torch.autograd.backward(out.float().sum())
    return time.perf_counter() - started
