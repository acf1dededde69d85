"""The committed files of the quickstart world: reproducible, small, and honest about what is held out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "quickstart"
FILES = (
    "corpus.jsonl",
    "demonstrations.jsonl",
    "preferences.jsonl",
    "preferences_test.jsonl",
    "prompts.jsonl",
    "prompts_dev.jsonl",
    "prompts_test.jsonl",
)
LIST_QUESTION = re.compile(r"\b(list|words|here)\b.*: (\w+), (\w+), (\w+)")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def questions(name: str) -> set[str]:
    """What users ask in a file."""
    if name == "corpus.jsonl":
        return {q for row in rows(name) for q in re.findall(r"<\|user\|>(.*?)<\|end\|>", row["text"])}
    key = "messages" if name == "demonstrations.jsonl" else "prompt"
    return {message["content"] for row in rows(name) for message in row[key] if message["role"] == "user"}


def content(question: str) -> str:
    """Name what a question is about, found here from its words, not from the generator."""
    if match := re.search(r": (\w+), (\w+), (\w+)", question):
        return "list " + " ".join(sorted(match.groups()))
    if match := re.search(r"(\d+)\D+(\d+)", question):
        return "sum " + " ".join(sorted(match.groups()))
    if match := re.search(r"(?:story about|story with|tale of) a (\w+) and a (\w+)", question):
        return f"story {match[1]} {match[2]}"
    if match := re.search(r"(?:How do I|how to|want to) (\w+) (?:my|the) \S+ (\w+)", question):
        return f"do {match[1]} {match[2]}"
    if match := re.search(r"(?:opposite of|what is not) (\w+)", question):
        return f"opposite {match[1]}"
    if match := re.search(r"(?:length|start) of (\w+)", question):
        return f"letters {match[1]}"  # only the corpus asks this; nothing of it is held out
    if re.fullmatch(r"(?:Tell me|Say) something.*|What do you know\?|Who is \w+\?", question):
        return "remark"  # asks for nothing
    people = re.findall(r"\b[A-Z][a-z]+\b", question)[1:]
    topics = {"live in|Where does|lives\\.": "home", "job|work|earns": "job", "pet|animal": "pet"}
    topics |= {"eat|food|cook": "food", "instrument|band|music": "music"}
    topic = next(name for pattern, name in topics.items() if re.search(pattern, question))
    return f"fact {people[-1]} {topic}"


def test_regenerating_gives_the_committed_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate.py", "--out", tmp_path], check=True, capture_output=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_files_are_small() -> None:
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= 4_000_000


@pytest.mark.parametrize(
    ("held_out", "others"),
    [
        ("prompts_test.jsonl", ["corpus.jsonl", "demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl"]),
        ("preferences_test.jsonl", ["corpus.jsonl", "demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl"]),
        ("prompts_dev.jsonl", ["corpus.jsonl", "demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl"]),
        ("prompts_dev.jsonl", ["prompts_test.jsonl", "preferences_test.jsonl"]),
    ],
)
def test_no_content_is_in_two_splits(held_out: str, others: list[str]) -> None:
    kept_back = {content(q) for q in questions(held_out)}
    kinds = {c.split()[0] for c in kept_back}
    assert kinds == {"fact", "sum", "opposite", "list", "story", "do"}
    for other in others:
        asked = {content(q) for q in questions(other)}
        assert {c.split()[0] for c in asked} - {"letters", "remark"} == kinds
        assert kept_back.isdisjoint(asked), sorted(kept_back & asked)[:5]


def test_held_out_facts_sums_and_opposites_are_stated_in_the_corpus() -> None:
    prose = " ".join(row["text"] for row in rows("corpus.jsonl") if "<|" not in row["text"])
    for row in rows("prompts_test.jsonl") + rows("prompts_dev.jsonl"):
        if row["task"] in ("fact", "sum", "opposite"):
            assert row["answer"] in prose


def test_held_out_prompts_are_distinct_and_cover_every_task() -> None:
    test = rows("prompts_test.jsonl")
    assert len(test) == 500
    assert len({row["prompt"][0]["content"] for row in test}) == 500
    counts = {row["task"]: 0 for row in test}
    for row in test:
        counts[row["task"]] += 1
    assert len(counts) == 9
    assert min(counts.values()) >= 20
    assert all(row["unsafe"] == (row["task"] == "unsafe") for row in test)


def test_labels_prefer_gold_but_not_always() -> None:
    """Bradley-Terry with scale 2 on gaps of 0.5 to 6 points: right clearly more often than not, never always."""
    for name in ("preferences.jsonl", "preferences_test.jsonl"):
        pairs = rows(name)
        share = sum(row["gold_chosen"] > row["gold_rejected"] for row in pairs) / len(pairs)
        assert 0.85 < share < 0.97
        assert all(row["gold_chosen"] != row["gold_rejected"] for row in pairs)


def test_a_property_is_named_where_two_answers_differ_in_it_alone() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        from gold import FILLERS, POLITE, RUDE  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    manners = {"politeness": set(POLITE), "rudeness": set(RUDE), "filler": set(FILLERS)}

    def parts(text: str) -> tuple[list[str], list[str]]:
        sentences = re.split(r"(?<=[.!?])\s+", text)
        known = set().union(*manners.values())
        return [s for s in sentences if s not in known], [s for s in sentences if s in known]

    counts: dict[str, int] = {}
    for pair in rows("preferences_test.jsonl"):
        (core, said), (other, also) = (parts(pair[side][0]["content"]) for side in ("chosen", "rejected"))
        counts[pair["differs_in"]] = counts.get(pair["differs_in"], 0) + 1
        if pair["differs_in"] == "answer":
            assert core != other and said == also
        elif pair["differs_in"]:
            assert (
                core == other
                and (set(said) ^ set(also)) <= manners[pair["differs_in"]]
                and abs(len(said) - len(also)) == 1
            )
    assert set(counts) == {"", *manners, "answer"} and min(counts.values()) >= 40 and counts["answer"] >= 120


def test_gold_columns_of_pairs_are_what_gold_says() -> None:
    """The scores stored with a pair are recomputed from its texts and the answers of the prompts file."""
    sys.path.insert(0, str(FOLDER))
    try:
        from gold import gold  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    known = {row["prompt"][0]["content"]: row for row in rows("prompts.jsonl")}
    compared = 0
    for pair in rows("preferences.jsonl"):
        asked = known.get(pair["prompt"][0]["content"])
        if asked is None:
            continue
        scores = gold(
            [pair["prompt"]] * 2,
            [pair["chosen"], pair["rejected"]],
            answer=[asked["answer"]] * 2,
            unsafe=[asked["unsafe"]] * 2,
        )
        assert scores == [pair["gold_chosen"], pair["gold_rejected"]]
        compared += 1
    assert compared > 100
