"""The house speaks the field's language: words that were private to it do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

RETIRED_NAMES: dict[str, str] = {
    "slices": "shard (sequence parallelism) or tp_size (tensor parallelism)",
    "sliced": "sharded",
    "slice_model": "shard_model",
    "in_parts": "sharded",
    "whole_model": "consolidated_model",
    "laid_out": "distribute_like",
    "strangers": "foreign_parameters",
    "dealt": "sharded",
    "deaths": "exit_codes",
    "take_part": "run_worker_node",
    "cutting_problem": "split_problem",
    "filling_problem": "pipeline_bubble_problem",
    "count_kept": "count_saved_activations",
    "is_priced": "uses_kl_penalty",
    "Copies": "TPReplicas",
    "Division": "BatchSplit",
    "Holding": "ShardingState",
    "KeepsSums": "save_metrics",
    "Meeting": "Coordinator",
    "Slicing": "TPConfig",
    "Speaker": "ResponseGenerator",
    "Stepper": "TrainEngine",
    "WholeState": "Checkpoints",
}
"""Identifiers, whole, and what the field calls them."""

RETIRED_PHRASES: dict[str, str] = {
    r"\bin parts\b": "sharded (weights) or pipeline stages",
    r"\b(in|of) slices\b": "shards",
    r"\bslices of (rows|tokens|heads)\b": "shards of",
    r"\bthe optimizer's memory\b": "optimizer state",
}
"""In docstrings, comments and messages."""


def _tokens(file: Path) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline))


HOUSE = [*PACKAGE.rglob("*.py"), *(file for file in (ROOT / "tests").rglob("*.py") if file.name != Path(__file__).name)]
FILES = {str(file.relative_to(ROOT)): _tokens(file) for file in sorted(HOUSE)}


def _uses(pattern: str, *kinds: int) -> str:
    """Return where tokens of some kinds match a pattern."""
    return ", ".join(
        f"{file}:{token.start[0]}"
        for file, tokens in FILES.items()
        for token in tokens
        if token.type in kinds and re.search(pattern, token.string)
    )


@pytest.mark.parametrize("word", RETIRED_NAMES)
def test_a_private_name_is_not_used_again(word: str) -> None:
    seen = _uses(rf"(^|^test_|^test_\w+_){word}(_\w+)?$" if word.islower() else rf"^{word}$", tokenize.NAME)
    assert not seen, f"`{word}` is {RETIRED_NAMES[word]} in this house: {seen}"


@pytest.mark.parametrize("phrase", RETIRED_PHRASES)
def test_a_private_phrase_is_not_used_again(phrase: str) -> None:
    seen = _uses(phrase, tokenize.STRING, tokenize.COMMENT)
    assert not seen, f"say {RETIRED_PHRASES[phrase]}: {seen}"


def test_nothing_is_bound_to_the_word_found() -> None:
    """A noun says what was found. Fields of that name stay, as `Problem.found`: what a message says there is."""
    seen = []
    for file in sorted(HOUSE):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        fields = {id(line.target) for node in classes for line in node.body if isinstance(line, ast.AnnAssign)}
        for node in ast.walk(tree):
            is_bound = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "found"
            if is_bound and id(node) not in fields:
                seen.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not seen, f"{len(seen)} bindings: {', '.join(seen)}"
