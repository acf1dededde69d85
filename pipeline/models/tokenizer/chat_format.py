"""The chat format of models trained from scratch: its special tokens and its chat template.

Owns the format only. Torch-free. A model from a hub keeps its own chat format.
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

# The template writes no white space. `{% generation %}` marks the assistant's text and its end token: trl trains on
# exactly these tokens with `assistant_only_loss`.
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
    from transformers import PreTrainedTokenizerFast  # slow to load; the template and its tokens do without

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
