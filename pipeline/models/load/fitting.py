"""Fits a model and its tokenizer to one another: an embedding row for every token, and a separate padding token.

Owns these two changes and the notes about them. Knows nothing of files or stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from pipeline.errors import PipelineError, Problem
from pipeline.models.tokenizer.contract import growth_note, growth_problem
from pipeline.models.tokenizer.encoding import control_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def separate_padding(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> str:
    """Give a tokenizer whose padding token also ends responses another padding token.

    A reward model of `transformers` reads its score at the last token that is not padding. If the end token pads, that
    is the token before the end, and finished and truncated answers would score alike.

    Args:
        tokenizer: the reward model's; changed in place.
        ends: tokens that end a response.

    Returns:
        A note of what was changed; empty if padding already has a token of its own.

    Raises:
        PipelineError: every control token of the tokenizer ends responses.
    """
    taken = set(ends)
    if tokenizer.pad_token_id not in taken:
        return ""
    # The embedding row of the padding token gets no more training, so take a token that nothing else uses.
    used = f"{tokenizer.chat_template or ''}{tokenizer.bos_token or ''}"

    def order(item: tuple[str, int]) -> tuple[bool, bool, int]:
        return item[0] != tokenizer.unk_token, item[0] in used, item[1]

    control = sorted(control_tokens(tokenizer).items(), key=order)
    token = next((token for token, number in control if number not in taken), None)
    if token is None:
        statement = f"the padding token {tokenizer.pad_token} also ends responses"
        remedy = "add a padding token to the model's tokenizer and set it as pad_token"
        raise PipelineError(Problem(statement, "a token of its own, for the score is read before the padding", remedy))
    old, tokenizer.pad_token = tokenizer.pad_token, token
    return f"pads with {token}: {old} ends responses, and the score is read at the last token that is not padding"


def fit_embedding(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, can_grow: bool = True
) -> str:
    """Resize a model's embedding to have a row for every token; new rows are the mean of the others.

    Args:
        model: not sharded and in full precision, if it is to be resized.
        tokenizer: may have more tokens than the embedding has rows.
        can_grow: whether the embedding may be resized; False for sharded or quantised weights.

    Returns:
        A note of what was changed; empty if all tokens have a row.

    Raises:
        PipelineError: a token has no row, and the embedding cannot be resized.

    Reference: Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """
    known = int(model.get_input_embeddings().weight.shape[0])
    if known in (0, len(tokenizer)) or known > len(tokenizer):
        return ""
    if not can_grow:
        raise PipelineError(growth_problem(known, len(tokenizer)))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
        with torch.no_grad():
            layer.weight[known:] = layer.weight[:known].mean(dim=0)
            if getattr(layer, "bias", None) is not None:
                layer.bias[known:] = layer.bias[:known].mean()
    return growth_note(known, len(tokenizer))
