"""Rows that say the same of all variants of a stage are one; others stay as they are."""

from __future__ import annotations

from pipeline.cli.display.variants import merged, under_plain_names

STAGES = {"dpo-beta-1": "dpo", "dpo-beta-2": "dpo", "kto-beta-1": "kto", "kto-beta-2": "kto"}


def test_alike_variants_are_one_row_with_their_count() -> None:
    rows = [["sft", "5"], ["dpo-beta-1", "7"], ["dpo-beta-2", "7"], ["kto-beta-1", "7"], ["kto-beta-2", "8"]]
    assert merged(rows, STAGES, count=True) == [
        ["sft", "5"],
        ["dpo-* (each of 2)", "7"],
        ["kto-beta-1", "7"],
        ["kto-beta-2", "8"],
    ]
    assert merged(rows, {}) == rows


def test_two_columns_of_names_are_merged_together() -> None:
    rows = [["report", "sft", "5"], ["report", "dpo-beta-1", "5"], ["report", "dpo-beta-2", "5"]]
    assert under_plain_names(["sft", "dpo-beta-1", "dpo-beta-2"], STAGES) == ["sft", "dpo-*"]
    assert merged(rows, STAGES, names=2) == [["report", "sft", "5"], ["report", "dpo-*", "5"]]
