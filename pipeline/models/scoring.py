"""Computes a reward model's scores, one number per response to a prompt.

A reward model has one of two forms: a sequence classification model with one label, which scores prompt and response
together, or an implicit reward, the log-ratio of two language models. Owns the batching of the first: sequences are
sorted by length and padded on the right, with a token budget per forward pass. Knows nothing of the use of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.errors import PipelineError, Problem
from pipeline.models.batching import length_batches
from pipeline.models.cpu.precision import computing_in
from pipeline.models.forward import evaluating
from pipeline.models.implicit_reward import ImplicitReward
from pipeline.models.positions import decoder_of, hidden_at
from pipeline.models.prompted_response import PromptedResponse
from pipeline.parallel.zero.zero3 import forward_without_engine, idle_passes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TOKEN_BUDGET = 4096
"""Padded tokens in one forward pass."""


def finite(scores: list[float], name: str) -> list[float]:
    """Return scores of a reward model.

    Raises:
        PipelineError: one of them is not a finite number.
    """
    if not all(map(math.isfinite, scores)):
        remedy = "train the reward model again, with another precision or a lower learning rate"
        raise PipelineError(Problem(f"{name} gives a score that is no finite number", "finite scores", remedy))
    return scores


def score(
    model: PreTrainedModel | PeftModel | ImplicitReward,
    answers: Sequence[PromptedResponse],
    pad_id: int,
    *,
    token_budget: int = TOKEN_BUDGET,
    precision: str = "fp32",
) -> list[float]:
    """Return the score that a reward model of any form gives each response, in their order.

    Args:
        model: the reward model. If its weights are sharded, every rank must call this, even without responses of its
            own.
        answers: prompts, each with a response.
        pad_id: the padding id of the model's tokenizer.
        token_budget: padded tokens in one forward pass.
        precision: compute precision, if it is lower than that of the weights.

    Raises:
        PipelineError: prompt and response are empty, or for an implicit reward the prompt is, or both together are
            longer than its context.
    """
    if isinstance(model, ImplicitReward):
        return [sum(tokens) for tokens in token_scores(model, answers, token_budget=token_budget, precision=precision)]
    return sequence_scores(model, [one.ids for one in answers], pad_id, token_budget=token_budget, precision=precision)


def token_scores(
    model: ImplicitReward,
    answers: Sequence[PromptedResponse],
    *,
    token_budget: int = TOKEN_BUDGET,
    precision: str = "fp32",
) -> list[list[float]]:
    """Return the share of each response token in the score of `score`; none for an empty response.

    Args:
        model: the implicit reward.
        answers: prompts, each with a response.
        token_budget: padded tokens in one forward pass.
        precision: compute precision, if it is lower than that of the weights.

    Raises:
        PipelineError: a prompt is empty, or longer with its response than the model's context.
    """
    prompts, responses = [one.prompt_ids for one in answers], [one.response_ids for one in answers]
    return model.token_rewards(prompts, responses, token_budget=token_budget, precision=precision)


def sequence_scores(
    model: PreTrainedModel | PeftModel,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    *,
    token_budget: int = TOKEN_BUDGET,
    precision: str = "fp32",
) -> list[float]:
    """Return a sequence classification model's score of each sequence of token ids, in their order.

    Args:
        model: a sequence classification model with one label. If its weights are sharded, every rank must call this,
            even without sequences of its own.
        sequences: prompt and response together, each non-empty.
        pad_id: the model's padding id.
        token_budget: padded tokens in one forward pass.
        precision: compute precision, if it is lower than that of the weights.

    Raises:
        PipelineError: a sequence is empty.
    """
    empty = [row for row, sequence in enumerate(sequences) if not sequence]
    if empty:
        raise PipelineError(Problem(f"sequence {empty[0]} is empty", "at least one token", "remove the row"))
    scores = [0.0] * len(sequences)
    batches = list(length_batches([len(sequence) for sequence in sequences], token_budget))
    idle = idle_passes(model, len(batches))
    with evaluating(model), forward_without_engine(model), computing_in(precision, model.device):
        for rows in batches:
            for row, value in zip(rows, _scores(model, [sequences[row] for row in rows], pad_id), strict=True):
                scores[row] = value
        for _ in range(idle):
            _scores(model, [[pad_id]], pad_id)
    return scores


def _scores(model: PreTrainedModel | PeftModel, sequences: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    width = max(map(len, sequences))
    ids_BT = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in sequences], device=model.device)
    decoder = decoder_of(model)
    head = getattr(model, "score", None)
    if decoder is None or head is None:
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in sequences]
        logits_B1 = model(input_ids=ids_BT, attention_mask=torch.tensor(mask, device=model.device)).logits
    else:  # under causal attention nothing after a row's last token matters
        ends = [row * width + len(sequence) - 1 for row, sequence in enumerate(sequences)]
        hidden_BH = hidden_at(decoder, torch.tensor(ends, device=model.device), input_ids=ids_BT)
        weight = next(head.parameters())
        with torch.autocast(weight.device.type, enabled=False):  # half precision would round the score too coarsely
            logits_B1 = head(hidden_BH.to(weight.dtype))
    values: list[float] = logits_B1[:, 0].float().tolist()
    return values
