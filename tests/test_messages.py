"""Messages read as sentences: *X is A; expected B. Do C*."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import Problem, agreeing, counted

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("file is UTF-16", "UTF-8"), "file is UTF-16; expected UTF-8"),
        (
            Problem("`sft` has no chat template", "one, to render conversations", "put a chat_template.jinja there"),
            "`sft` has no chat template; expected one, to render conversations. Put a chat_template.jinja there",
        ),
        (
            Problem("beta is -0.1", "must be > 0", "", "r.yaml:3", "dpo"),
            "r.yaml:3 stage dpo: beta is -0.1; it must be > 0",
        ),
        (Problem("no tag `sft:olt`", "tags are sft:old"), "no tag `sft:olt`; tags are sft:old"),
        (Problem("no artifact `x`", "`x` has no versions"), "no artifact `x`; `x` has no versions"),
        (Problem("unknown key `sed`", "", "did you mean `seed`?"), "unknown key `sed`. Did you mean `seed`?"),
        (Problem("no faiss", "", "pip install 'trueup[x]'"), "no faiss. Run `pip install 'trueup[x]'`"),
        (Problem("it broke.", "", "train.beta is the word"), "it broke. train.beta is the word"),
    ],
)
def test_a_message_is_made_of_sentences(problem: Problem, text: str) -> None:
    assert str(problem) == text


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (1024, ("held-out row",), "1,024 held-out rows"),
        (1, ("loss", "losses"), "1 loss"),
        (2, ("loss", "losses"), "2 losses"),
    ],
)
def test_a_noun_agrees_with_its_count(count: int, noun: tuple[str, ...], text: str) -> None:
    assert counted(count, *noun) == text


def test_a_verb_agrees_with_its_count() -> None:
    assert [agreeing(count, "is", "are") for count in (0, 1, 2)] == ["are", "is", "are"]


MORE_THAN_ONE = {
    "artifacts/refs.py": "a ref that means one artifact is no problem",
    "evaluation/report/tables.py": "few tasks are named instead",
    "evaluation/stats/intervals.py": "numbers of a ratio, for developers",
    "parallel/fsdp/wrapping.py": "weights of a model",
    "parallel/pipeline/split.py": "one kind of layer is no problem",
    "parallel/sharding_state.py": "weights of a model",
    "records/loading.py": "one bad row is told by itself",
    "records/shapes/votes.py": "one winner is no problem",
    "stages/tokenizer/run.py": "entries of a vocabulary",
}
"""Files in which a length is followed by a plural that is always right: why."""


def _fixed_plurals() -> set[str]:
    """Return the files in which `len(…)` of an f-string is followed by a word that ends in ``s``."""
    files = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in pairwise(parts):
                is_length = isinstance(value, ast.FormattedValue) and ast.unparse(value.value).startswith("len(")
                words = text.value if isinstance(text, ast.Constant) else ""
                if is_length and re.match(r" ([a-z-]+ )?(?!as\b|is\b|has\b|was\b)[a-z]+s\b", str(words)):
                    files.add(file.relative_to(PACKAGE).as_posix())
    return files


def test_a_length_is_not_followed_by_a_fixed_plural() -> None:
    assert _fixed_plurals() == set(MORE_THAN_ONE), "use `counted`, or say why there is always more than one"
