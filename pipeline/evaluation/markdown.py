"""Markdown rendering: tables, and escaping of a model's text.

Owns escaping. Knows nothing of the content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~$])")


def table(rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Render rows as a pipe table; the first row is the header.

    Args:
        rows: cells; a ``|`` must be escaped already.
        numbers_from: columns from this one on are aligned to the right.
    """
    header, *body = rows
    rule = ["---:" if column >= numbers_from else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body)) + "\n"


def escaped(text: str, limit: int | None = None) -> str:
    """Escape any text so that a Markdown page shows it literally, on one line.

    Args:
        text: any text.
        limit: most characters kept.
    """
    text = "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text.strip())
    if limit is not None and len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    text = _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))
    return re.sub(r"\s*\n\s*", " ⏎ ", text).replace("\t", " ")
