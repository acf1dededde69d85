"""The people of the quickstart world who compare two answers: they like what `gold` likes, and are sometimes wrong.

A real project has people here and no such function (``kind: labels`` in place of ``kind: judge``). This file and
gold.py beside it need only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import gold as taste

SCALE = 2.0
"""How sure they are: they prefer an answer that is one point better with probability sigmoid(2.0) = 0.88."""


def chance(first: float, second: float) -> float:
    """Return the probability that somebody prefers the first of two answers, from their points.

    Reference: Bradley and Terry 1952.
    """
    return 1 / (1 + math.exp(-SCALE * (first - second)))


def prefer(
    prompts: Sequence[Any],
    completions: Sequence[Sequence[taste.Completion]],
    *,
    answer: Sequence[str],
    unsafe: Sequence[bool],
    **columns: Any,
) -> list[float]:
    """Say of each pair of answers whether the first is preferred.

    A pair always gets the same verdict, in either order: chance is a hash of the question and the two answers.

    Args:
        prompts: what was asked, as messages or text.
        completions: two answers to each prompt.
        answer: the right answer of each prompt.
        unsafe: whether each prompt should be refused.
        columns: other columns of the rows, not used.

    Returns:
        1.0 for each pair whose first answer is preferred, else 0.0.
    """
    return [_prefers_first(*one) for one in zip(prompts, completions, answer, unsafe, strict=True)]


def _prefers_first(prompt: Any, pair: Sequence[taste.Completion], right: str, unsafe: bool) -> float:
    texts = [taste.text_of(said) for said in pair]
    low, high = sorted(texts)
    points = {text: taste.points(taste.read(text, right, unsafe=unsafe), unsafe=unsafe) for text in texts}
    key = json.dumps([prompt, low, high], sort_keys=True).encode()
    luck = int.from_bytes(hashlib.sha256(key).digest()[:6], "big") / 2**48
    preferred = low if luck < chance(points[low], points[high]) else high
    return float(preferred == texts[0])
