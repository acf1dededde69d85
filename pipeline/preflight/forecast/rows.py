"""Estimates the token lengths of a stage's rows from their characters, before a tokenizer has seen them.

A token of English text has about four characters in a large vocabulary and fewer in a small one. Lengths are cached in
the store by the digest of the rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import Row
from pipeline.plan import Plan, PlannedStage
from pipeline.records import load
from pipeline.stage import Data

CACHE_FILE = "row-lengths-2.json"
"""The number in the name is raised when rows are read in another way."""
TURN = 5
"""Tokens a chat template adds to a turn."""


@dataclass(frozen=True)
class Lengths:
    """Sizes of the rows a stage trains on.

    Attributes:
        rows: number of rows; of candidates, number of answers.
        characters: total over all rows.
        longest: characters of the longest row.
        turns: total over all rows.
    """

    rows: int
    characters: int
    longest: int
    turns: int

    def tokens(self, vocab: int) -> float:
        """Return the approximate number of tokens of all rows."""
        return self.characters / per_token(vocab) + TURN * self.turns

    def longest_tokens(self, vocab: int) -> int:
        """Return the approximate number of tokens of the longest row."""
        return int(self.longest / per_token(vocab)) + TURN * max(1, round(self.turns / max(self.rows, 1)))


def per_token(vocab: int) -> float:
    """Return the approximate number of characters per token."""
    return 3.0 if vocab < 4_000 else 3.7 if vocab < 32_000 else 4.2


class RowLengths:
    """Row lengths of a plan's data sources, cached by content."""

    def __init__(self, plan: Plan, cache: Path) -> None:
        self.plan = plan
        self.file = cache / CACHE_FILE
        try:
            self._known: dict[str, dict[str, int]] = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of(self, stage: PlannedStage) -> Lengths | None:
        """Return the lengths of the rows a stage trains on, or only scores; None when they are not on this machine."""
        item = stage.data.get("data") or stage.data.get("test")
        source = self.plan.recipe.data[item.source_name] if item is not None else None
        if item is None or source is None:
            return None
        artifact = self.plan.data_artifact(source.artifact) if source.artifact is not None else None
        if source.path is None and artifact is None:
            return None
        shape = type(stage.spec.config).markers(Data)[item.field].shape
        key = f"{item.digest} {shape} {json.dumps(source.model_dump(mode='json', exclude={'path'}), sort_keys=True)}"
        if key not in self._known:
            try:
                rows = load(source, shape, seed=stage.spec.seed, name=item.source_name, artifact=artifact).train
            except PipelineError:  # preflight reports bad rows
                return None
            sizes = [size for row in rows for size in _sizes(row)]
            lengths = Lengths(
                len(sizes), sum(c for c, _ in sizes), max((c for c, _ in sizes), default=0), sum(t for _, t in sizes)
            )
            self._known[key] = asdict(lengths)
            keep_if_possible(self.file, json.dumps(self._known))
        return Lengths(**self._known[key])


def _sizes(row: Row) -> list[tuple[int, int]]:
    """Return the characters and turns of a row; of candidates those of each answer with its prompt."""
    if "candidates" not in row:
        return [_size(row)]
    answers = [str(one["text"]) for one in row["candidates"]]
    return [_size({"prompt": row["prompt"], "completion": answer}) for answer in answers]


def _size(row: Row) -> tuple[int, int]:
    """Return the characters and turns of a row; a pair's prompt counts twice, once for each response."""
    twice = 2 if "chosen" in row else 1
    texts = [
        (key, text)
        for key in ("text", "messages", "prompt", "chosen", "rejected", "completion")
        for text in _texts(row.get(key))
    ]
    return sum(len(t) * (twice if key == "prompt" else 1) for key, t in texts), len(texts)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [str(turn["content"]) for turn in value if isinstance(turn, dict) and "content" in turn]
    return []
