"""The chat format of models trained from scratch: its special tokens and its template.

Owns the format only. Torch-free. A model from a hub keeps the format it came with.
"""

from __future__ import annotations

from typing import Any

SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
PAD = "<|pad|>"

SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
"""In the order a scratch vocabulary starts with, so that their ids are 0 to 4."""

# One line per step, no white space in the output. `generation` marks what the assistant says, its end token included:
# trl trains on exactly that when `assistant_only_loss` is on.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- '<|system|>' + message['content'] + '<|end|>' -}}"
    "{%- elif message['role'] == 'user' -%}{{- '<|user|>' + message['content'] + '<|end|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- raise_exception('unknown role ' + message['role']) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def chat_tokenizer(backend: Any, *, context_tokens: int) -> Any:
    """Wrap a `tokenizers.Tokenizer` whose vocabulary has the special tokens as a tokenizer that can chat.

    Args:
        backend: the trained tokenizer.
        context_tokens: longest sequence the model will take.

    Returns:
        A `PreTrainedTokenizerFast` with `<|end|>` as end and `<|pad|>` as padding, without a start token.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
