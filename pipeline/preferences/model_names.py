"""Finds texts that say which model wrote them: they would tell people what a blind comparison hides.

Reference: Chiang et al. 2024, arXiv:2403.04132, section 3 (answers that give the model's identity away are left out).
"""

from __future__ import annotations

import re

_MODEL_NAMES = re.compile(
    r"\b(chat\s?gpt|gpt-?[2-9]\w*|open\s?ai|anthropic|deepmind|mixtral|qwen\w*|deepseek|vicuna|smollm\w*|olmo|chatglm|"
    r"baichuan|hugging\s?face|llama[- ]?[1-9][\w.]*|as an? ai (language )?(model|assistant)|large language model)\b"
    r"|\b(i am|i'm|my name is|(made|trained|developed|created|built) by)\b[^.!?\n]{0,40}\b(claude|gemini|bard|llama|"
    r"mistral|falcon|alpaca|koala|dolly|grok|zephyr|palm|copilot|bing|ernie|google|meta|microsoft|xai|cohere)\b",
    re.IGNORECASE,
)
"""What gives the model away; names that are also words only where the text speaks of itself."""


def names_model(text: str) -> bool:
    """Return whether a text names a model or the maker of one as its author."""
    return bool(_MODEL_NAMES.search(text))
