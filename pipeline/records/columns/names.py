"""Normalises names of columns: `SystemPrompt`, `system-prompt` and `System Prompt` are one name."""

from __future__ import annotations

import re
from functools import lru_cache

CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
NUMBER = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
"""Match the boundary between two words of a name that nothing separates."""


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: ``ResponseA`` gives ``response`` and ``a``."""
    return tuple(filter(None, re.split(r"[\W_]+", NUMBER.sub("_", plain_name(name)))))


def plain_name(name: str) -> str:
    """Return a name in snake case; a number stays attached to its word, as in ``response1``."""
    return re.sub(r"[\W_]+", "_", CAPITAL.sub("_", name.strip())).casefold()
