"""A small share of what `make fuzz` runs, with a seed: no recipe ends in a bare exception."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import case_of, fuzz, report
from recipe_cases import RecipeCases
from row_cases import RowCases

from pipeline.errors import PipelineError
from pipeline.recipe import load

RECIPE = """\
data:
  corpus: {path: data/quickstart/corpus.jsonl}
stages:
  tokenizer: {kind: tokenizer, data: corpus}
  base:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model:
      type: llama
      hidden_size: 64
      num_hidden_layers: 2
      num_attention_heads: 4
      max_position_embeddings: 64
    train:
      batch_size: 8
"""

FOUND = (
    ("kind: pretrain", "kind: {}", "`kind` is a mapping"),
    ("kind: pretrain", "kind: []", "`kind` is a list"),
    ("num_hidden_layers: 2", "num_hidden_layers:", "model.num_hidden_layers is without a value"),
    ("hidden_size: 64", "hidden_size: hub://x", 'model.hidden_size is "hub://x"'),
    ("max_position_embeddings: 64", "max_position_embeddings: x", 'model.max_position_embeddings is "x"'),
    ("hidden_size: 64", "hidden_size: 0", "model.hidden_size is 0"),
    ("num_attention_heads: 4", "num_attention_heads: 1.5", "model.num_attention_heads is 1.5"),
    ("type: llama", "type: []", "model.type is []"),
    ("batch_size: 8", "batch_size: 99999999999", "train.batch_size is 99,999,999,999"),
    ("batch_size: 8", "batch_size: 9999999999999999999999", "`9999999999999999999999` is too large"),
    ("path: data/quickstart/corpus.jsonl", "path: " + "a" * 300, "cannot be looked up: File name too long"),
    ("    data: corpus", '    data: "a\\nb"', "no data source `a\\nb`"),
)
"""What once ended in a bare exception, ran for ever or took two lines, and what is said of it now."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> RecipeCases:
    return RecipeCases(tmp_path_factory.mktemp("recipes"))


def test_mutated_recipes_are_accepted_or_refused_in_words(recipes: RecipeCases) -> None:
    outcomes = fuzz(recipes, 5, range(100))
    assert outcomes.findings == [], report(outcomes, "python tests/fuzz recipes --seed 5 --only {number}")
    assert outcomes.counts["accepted"] > 5  # the mutations are not all of one sort
    assert outcomes.counts["refused"] > 50


def test_mutated_rows_are_read_or_refused_in_words_and_none_is_lost(tmp_path: Path) -> None:
    outcomes = fuzz(RowCases(tmp_path), 5, range(400))
    assert outcomes.findings == [], report(outcomes, "python tests/fuzz rows --seed 5 --only {number}")
    assert outcomes.counts["accepted"] > 50
    assert outcomes.counts["refused"] > 100


def test_a_case_hangs_on_seed_and_number_alone(recipes: RecipeCases) -> None:
    assert case_of(recipes, 1, 40) == case_of(recipes, 1, 40)
    assert case_of(recipes, 1, 40) != case_of(recipes, 2, 40)


def test_a_bare_exception_is_a_finding(recipes: RecipeCases) -> None:
    class Broken(RecipeCases):
        def __init__(self) -> None:
            pass

        def make(self, rng: object, number: int) -> str:
            return str(number)

        def attempt(self, case: str) -> str:
            return "accepted" if case != "2" else {}[case]

    outcomes = fuzz(Broken(), 1, range(4))
    assert outcomes.counts == {"accepted": 3, "findings": 1}
    assert "again: x --only 2" in report(outcomes, "x --only {number}")


@pytest.mark.parametrize(("before", "line", "said"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_told(recipes: RecipeCases, before: str, line: str, said: str) -> None:
    assert before in RECIPE
    file = recipes.folder / "recipes" / "found.yaml"
    file.write_text(RECIPE.replace(before, line), encoding="utf-8")
    with pytest.raises(PipelineError) as error:
        load(file)
    told = [str(problem) for problem in error.value.problems]
    assert any(said in text for text in told), told
    assert all("\n" not in text for text in told)
