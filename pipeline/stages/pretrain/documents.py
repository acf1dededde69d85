"""The rows of pretraining: texts tokenized and cut into rows. Knows nothing of models and of trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.models.tokenizer.encoding import TextEncoder
from pipeline.training.data.encoding import EncodedRow, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_documents(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int,
    mode: str,
    *,
    parsed: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[EncodedRow]:
    """Tokenize texts and cut them into rows of at most ``max_length`` tokens.

    Each text gets the tokenizer's prefix tokens, such as Llama's `<s>`, and the end token.
    """
    if not texts:
        return []
    before, eos = TextEncoder(tokenizer).prefix, tokenizer.eos_token_id
    encoded = encode_texts(tokenizer, texts, parsed=parsed, progress=progress)
    begun = ([*before, *ids] if ids and ids[: len(before)] != before else ids for ids in encoded)
    streams = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in begun]
    if mode == "packed":
        streams = [[token for ids in streams for token in ids]]
    rows = [ids[i : i + max_length] for ids in streams for i in range(0, len(ids), max_length)]
    return [{"input_ids": row} for row in rows if len(row) > 1]
