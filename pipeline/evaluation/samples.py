"""The answers a report is made of: one row per prompt, with everything its figures are computed from.

Owns the records of `samples.jsonl` and reading them. Knows nothing of statistics: `pipeline.evaluation.comparison`
makes every figure of a report again from its samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.estimate import Record, stable

StopReason = Literal["eos", "max_new_tokens", "context"]
"""Why an answer stops: it ended by itself, was as long as the limit, or the model's context was full."""

Result = Literal["win", "tie", "loss"]


class Answer(Record):
    """One model's answer to one prompt; what was not measured is absent.

    Attributes:
        text: of the answer.
        score: by the judge: `gold` or `reward`.
        gold: score by the gold function.
        reward: score by the reward model.
        correct: 1, 0 or a share; absent where the prompt has no checkable answer.
        result: against the baseline's answer, by the judge; absent for the baseline.
        kl: log-ratio of the answer under the model and under the baseline, in nats: the estimator k1.
        kl_k3: the same by k3.
        length: tokens, the end token included.
        stop_reason: why it stops.
    """

    text: str
    score: float | None = None
    gold: float | None = None
    reward: float | None = None
    correct: float | None = None
    result: Result | None = None
    kl: float | None = None
    kl_k3: float | None = None
    length: float | None = None
    stop_reason: StopReason | None = None


class Sample(Record):
    """A prompt with the answers of all models.

    Attributes:
        prompt: as a person reads it.
        task: its group; empty when the data has none.
        row: its place among the prompts of the data source, from 0.
        seed: with `row` it gives the random numbers of every sampled answer.
        reference: the right answer, as the data has it.
        answers: by model.
    """

    prompt: str
    task: str = ""
    row: int | None = None
    seed: int | None = None
    reference: Any = None
    answers: dict[str, Answer]


def to_jsonl(samples: Sequence[Sample]) -> str:
    """Render `samples.jsonl`: the same samples give the same bytes."""
    rows = (json.dumps(stable(each.model_dump(exclude_none=True)), ensure_ascii=False) for each in samples)
    return "".join(f"{row}\n" for row in rows)


def read_samples(path: Path) -> list[Sample]:
    """Read and validate a `samples.jsonl`.

    Raises:
        PipelineError: a line is not a sample; names it.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            found.append(Sample.model_validate_json(line))
        except ValidationError as error:
            raise PipelineError(
                Problem(f"not a sample: {error.errors()[0]['msg']}", where=f"{path}:{number}")
            ) from None
    return found
