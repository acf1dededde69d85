"""The report on held-out pairs takes its scores from any function of token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.stats.intervals import wilson
from pipeline.kind.compute import ComputeSettings
from pipeline.models.prompted_response import PromptedResponse
from pipeline.stage import StageContext
from pipeline.training.data.encoding import EncodedRow, EncodedRows
from pipeline.training.pair_report import full_sequences, report_on_pairs
from pipeline.training.report_columns import ReportColumns


def _rows() -> list[dict[str, Any]]:
    properties = ("answer", "polite", None)
    shown: dict[str, Any] = {"prompt": [{"role": "user", "content": "é"}], "chosen": [], "rejected": []}
    return [{**shown, "task": "sum", "differs_in": name, "gold_chosen": 1, "gold_rejected": 0} for name in properties]


def _context(folder: Path, said: list[Any]) -> StageContext:
    def load_rows(field: str) -> Any:
        raise AssertionError(field)

    return StageContext("rm", 1, folder, folder, {}, load_rows, ComputeSettings(), said.append, lambda: False)


def _sums(seen: list[PromptedResponse], answers: Sequence[PromptedResponse]) -> list[float]:
    """Score a response by the sum of its own tokens, the prompt's left out."""
    seen += answers
    return [float(sum(one.response_ids)) for one in answers]


def test_scores_are_of_any_function_and_the_card_is_of_these_scores(tmp_path: Path) -> None:
    # The second of four rows was left out. Sums of responses: 5 and 3, 1 and 4, 9 and 1: right, wrong, right.
    encoded: list[EncodedRow] = [
        {"prompt_ids": [7, 8], "chosen_ids": [5], "rejected_ids": [1, 2]},
        {"prompt_ids": [7], "chosen_ids": [1], "rejected_ids": [4]},
        {"prompt_ids": [7], "chosen_ids": [4, 5], "rejected_ids": [1]},
    ]
    rows = _rows()
    pairs = full_sequences(EncodedRows(encoded, [0, 2, 3], [], [], [], []), [rows[0], {"not": "kept"}, *rows[1:]])
    seen: list[PromptedResponse] = []
    said: list[Any] = []
    figures = report_on_pairs(
        _context(tmp_path, said), pairs, lambda answers: _sums(seen, answers), ReportColumns("task", "differs_in")
    )
    assert [one.ids for one in seen] == [[7, 8, 5], [7, 1], [7, 4, 5], [7, 8, 1, 2], [7, 4], [7, 1]]
    assert [one.prompt_ids for one in seen[:2]] == [[7, 8], [7]]
    lines = (tmp_path / "held_out_scores.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [json.loads(line) for line in lines]
    assert [(one["chosen_score"], one["rejected_score"]) for one in kept] == [(5, 3), (1, 4), (9, 1)]
    assert "é" in lines[0]
    card = json.loads((tmp_path / "reward_card.json").read_text(encoding="utf-8"))
    assert (card["pairs"], card["groups"]["sum"]["n"]) == (3, 3)
    assert {name: one["accuracy"]["value"] for name, one in card["properties"].items()} == {"answer": 1, "polite": 0}
    assert figures["test_accuracy"] == figures["gold_agreement"] == round(wilson(2, 3).value, 8)
    assert (figures["accuracy_on_answer"], figures["accuracy_on_polite"]) == (1, 0)
    # Lengths of responses 1 and 2, 1 and 1, 2 and 1: the longer one is rejected, neither, chosen: 1.5 of 3.
    assert figures["longer_wins_accuracy"] == 0.5
