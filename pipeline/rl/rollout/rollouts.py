"""Samples responses: chooses the prompts and the random numbers, and makes episodes of what an engine sampled.

The prompts of an iteration and the random numbers of a response are functions of the seed, the iteration and the index
in the rollout. They depend neither on the number of ranks nor on where a run was resumed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.engine import Engine, Sampled
from pipeline.rl.rollout.episodes import Episode, Prompt


def prompt_order(count: int, start: int, number: int, seed: int) -> list[int]:
    """Return the indices ``start`` to ``start + number`` of an endless sequence of shuffled passes over all prompts."""
    order: list[int] = []
    passes: dict[int, list[int]] = {}
    for position in range(start, start + number):
        lap, offset = divmod(position, count)
        if lap not in passes:
            passes[lap] = list(range(count))
            random.Random(f"{seed}/prompts/{lap}").shuffle(passes[lap])
        order.append(passes[lap][offset])
    return order


def _with_ends(sampled: Sampled, eos_ids: Sequence[int]) -> Sampled:
    """Replace empty responses by an end token, because every episode needs at least one token.

    Raises:
        ValueError: a response is empty, and there is no end token.
    """
    if all(sampled.responses):
        return sampled
    if not eos_ids:
        raise ValueError("the engine returned a response without tokens, and there is no end token")
    return sampled._replace(responses=[response or [eos_ids[0]] for response in sampled.responses])


def roll_out(
    sampling: AbstractContextManager[Any],
    engine: Engine,
    prompts: Sequence[tuple[int, Prompt]],
    *,
    settings: GenerationSettings,
    decode_text: Callable[[Sequence[int], Sequence[int]], str],
) -> list[Episode]:
    """Sample one response per prompt.

    Args:
        sampling: context that yields the model to sample from, with full weights and a merged adapter.
        engine: rollout engine.
        prompts: prompts with their indices in the full rollout.
        settings: limits, end tokens, how tokens are chosen, and the seed of this rollout.
        decode_text: converts the tokens of a response, which follow those of a prompt, to text without special tokens.
    """
    places = [place for place, _ in prompts]
    ids = [prompt.ids for _, prompt in prompts]
    with sampling as model:
        sampled = engine(model, ids, settings, places) if ids else Sampled([])
    sampled = _with_ends(sampled, settings.ends)
    episodes = [
        Episode(
            place=place,
            row=prompt.row,
            prompt_ids=prompt.ids,
            response_ids=response,
            ended=response[-1] in settings.ends,
            text=decode_text(response, prompt.ids),
        )
        for (place, prompt), response in zip(prompts, sampled.responses, strict=True)
    ]
    for episode, logps in zip(episodes, sampled.logps or [], strict=False):
        episode.sampled_T = torch.tensor(logps)
    return episodes
