"""What `compute` refuses together: every remedy, done to the letter, leaves nothing to refuse."""

import itertools
import re
from typing import Any

from pipeline.recipe.schema import Compute
from pipeline.stage import MODEL_PARALLEL

WORDS: dict[str, list[Any]] = {
    "zero": [0, 1, 3],
    "fsdp": [False, True],
    "offload": ["none", "optimizer", "all"],
    "pipeline_parallel": [1, 2],
    "tensor_parallel": [1, 2],
    "sequence_parallel": [1, 2],
    "precision": ["auto", "fp16"],
    "liger": ["auto", "on"],
    "attention": ["auto", "eager"],
    "processes": [1, 2, 3],
    "nodes": [1, 2],
}


def done(settings: dict[str, Any], remedy: str) -> dict[str, Any]:
    """Do what a remedy says first: all before its first `or`, of values the first one."""
    text = re.split(r", or |; |: DeepSpeed", remedy)[0].replace("HOST:PORT", "first:29500")
    sets = re.findall(r"compute\.(\w+): ([\w:]+)", text)
    leaves = re.findall(r"leave compute\.(\w+) out", text)
    assert sets or leaves, f"nothing to do: {remedy}"
    changed = {**settings, **{word: yaml_of(value) for word, value in sets}}
    return {word: value for word, value in changed.items() if word not in leaves}


def yaml_of(text: str) -> Any:
    return {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)


def test_a_remedy_leaves_nothing_to_refuse() -> None:
    """Of every combination: where one thing is wrong, its remedy is enough; where several are, one after another is."""
    seen = set()
    for values in itertools.product(*WORDS.values()):
        settings = dict(zip(WORDS, values, strict=True))
        contradictions = Compute(**settings).contradictions()
        seen.update((field, re.sub(r"\d", "", expected)) for field, expected, _ in contradictions)
        cut = [word for word in MODEL_PARALLEL if settings[word] > 1]
        # Numbers of processes are looked at once one way to cut is left.
        rounds = len(contradictions) + 2 * (len(cut) > 1)
        for _ in range(rounds):
            if left := Compute(**settings).contradictions():
                settings = done(settings, left[0][2])
        assert not Compute(**settings).contradictions(), (values, contradictions, settings)
    assert len(seen) > 15
