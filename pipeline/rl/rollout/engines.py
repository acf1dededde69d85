"""Samples responses: chooses the prompts, the engine and the random numbers.

The prompts of an iteration and the random numbers of a response are functions of the seed, the iteration and the index
in the rollout. They depend neither on the number of ranks nor on where a run was resumed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from transformers import GenerationConfig

from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.generation_config import without_generation_config
from pipeline.models.generate.sampling import Sampling
from pipeline.models.generate.steps import Say, cache_use
from pipeline.rl.rollout.episodes import Episode, Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

EngineName = Literal["batched", "generate", "vllm"]


class Sampled(NamedTuple):
    """Responses sampled by an engine.

    Attributes:
        responses: token ids of each response; the end token, if there is one, is the last.
        logps: log-probabilities of the tokens as the engine computed them; None if they equal the model's.
    """

    responses: list[list[int]]
    logps: list[list[float]] | None = None


class Engine(Protocol):
    """Samples one response per prompt."""

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        places: Sequence[int],
        greedy: bool = False,
    ) -> Sampled:
        """Sample one response per prompt.

        Args:
            model: model to sample from.
            prompts: token ids of each prompt.
            seed: seed of this rollout.
            places: index of each prompt in the full rollout, for its random numbers.
            greedy: take the most likely token each time.
        """
        ...


@dataclass(frozen=True)
class BatchedEngine:
    """Our own decoding loop (`decode`), for any causal model of transformers.

    Attributes:
        max_new_tokens: longest response.
        eos_ids: tokens that end a response; empty for responses of a fixed length.
        pad_id: fills the left of shorter prompts.
        temperature: sampling temperature.
        batch_size: rows decoded together.
        say: called once if the model's cache cannot be used.
    """

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    batch_size: int = 128
    say: Say | None = None

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        places: Sequence[int],
        greedy: bool = False,
    ) -> Sampled:
        """Sample one response per prompt; a response depends on its seed and place only."""
        settings = GenerationSettings(
            self.max_new_tokens,
            self.eos_ids,
            self.pad_id,
            sampling=Sampling(greedy=greedy, temperature=self.temperature),
            seed=seed,
        )
        responses = decode(model, prompts, settings, row_ids=list(places), batch_size=self.batch_size, say=self.say)
        return Sampled(responses)


@dataclass(frozen=True)
class GenerateEngine:
    """`model.generate` of transformers, for a GPU. Seeded per rollout, so a response depends on the other prompts.

    Falls back to `BatchedEngine` for a model whose cache is not correct with left padding.
    """

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    say: Say | None = None

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        places: Sequence[int],
        greedy: bool = False,
    ) -> Sampled:
        """Sample all prompts as one batch, padded on the left."""
        if cache_use(model, prompts, self.pad_id, self.say) != "padded":
            fallback = BatchedEngine(self.max_new_tokens, self.eos_ids, self.pad_id, self.temperature, say=self.say)
            return fallback(model, prompts, seed=seed, places=places, greedy=greedy)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=not greedy,
            eos_token_id=list(self.eos_ids) or None,
            pad_token_id=self.pad_id,
            **({} if greedy else {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}),
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode(), without_generation_config(model):
            torch.manual_seed(seed * 1_000_003 + (places[0] if places else 0))
            sequences = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )
        return Sampled([_until_end(row, self.eos_ids) for row in sequences[:, width:].tolist()])


def _until_end(tokens: list[int], eos_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: position + 1]
    return tokens


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
    seed: int,
    eos_ids: Sequence[int],
    decode_text: Callable[[Sequence[int]], str],
) -> list[Episode]:
    """Sample one response per prompt.

    Args:
        sampling: context that yields the model to sample from, with full weights and a merged adapter.
        engine: rollout engine.
        prompts: prompts with their indices in the full rollout.
        seed: seed of this rollout.
        eos_ids: tokens that end a response.
        decode_text: converts tokens to text without special tokens.
    """
    places = [place for place, _ in prompts]
    ids = [prompt.ids for _, prompt in prompts]
    with sampling as model:
        sampled = engine(model, ids, seed=seed, places=places) if ids else Sampled([])
    sampled = _with_ends(sampled, eos_ids)
    episodes = [
        Episode(
            place=place,
            row=prompt.row,
            prompt_ids=prompt.ids,
            response_ids=response,
            ended=response[-1] in eos_ids,
            text=decode_text(response),
        )
        for (place, prompt), response in zip(prompts, sampled.responses, strict=True)
    ]
    for episode, logps in zip(episodes, sampled.logps or [], strict=False):
        episode.sampled_T = torch.tensor(logps)
    return episodes
