"""The text with which a base model continues a prompt.

Knows nothing of models, and of how tokens are sampled. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decoded_response(ids: Sequence[int], prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a response without special tokens, as `with_leading_space` has it.

    Args:
        ids: tokens of the response.
        prompt_ids: tokens of the prompt.
        tokenizer: tokenizer of both.
    """
    return with_leading_space(str(tokenizer.decode(ids, skip_special_tokens=True)).strip(), ids, prompt_ids, tokenizer)


def with_leading_space(
    text: str, ids: Sequence[int], prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return a response as it follows its prompt: a continuation begins with its own white space.

    Tokenizers of Llama's family leave out the space before the first word of what they decode. Without it, prompt and
    response together are another text (``park.They``) with other tokens than were sampled, and that is what would be
    learnt from. A chat template puts its own text between prompt and response, so there nothing is added.

    Args:
        text: the response without special tokens. White space at its beginning is taken for that of its tokens.
        ids: its tokens.
        prompt_ids: tokens of the prompt.
        tokenizer: tokenizer of both.
    """
    if tokenizer.chat_template or not prompt_ids or not text.strip() or text[0].isspace():
        return text
    last = list(prompt_ids[-1:])
    before, both = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (last, [*last, *ids]))
    after = both[len(before) :]
    return after[: len(after) - len(after.lstrip())] + text
