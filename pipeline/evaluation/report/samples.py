"""The samples of a report: one row per prompt, with all data from which the report's figures are computed.

Owns the records of `samples.jsonl` and reading them. Knows nothing of statistics: `pipeline.evaluation.comparison`
recomputes every figure of a report from its samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.stats.estimate import Record, stable

StopReason = Literal["eos", "max_new_tokens", "context"]
"""Why an answer stops: end token, length limit, or full context."""

Result = Literal["win", "tie", "loss"]


class Answer(Record):
    """One model's answer to one prompt; a value that was not measured is None.

    Attributes:
        text: text of the answer.
        score: score by the judge, either `gold` or `reward`.
        gold: score by the gold function.
        reward: score by the reward model.
        correct: 1, 0 or a share; None for a prompt without a checkable answer.
        result: result against the baseline's answer, by the judge; None for the baseline.
        kl: k1 estimate of the KL to the reference in nats, the log-ratio of the answer under the two models.
        kl_k3: k3 estimate of the same.
        nll: negative log-likelihood of the answer under the baseline in nats, at the temperature of the answers.
        length: number of tokens, including the end token.
        stop_reason: why the answer stops.
    """

    text: str
    score: float | None = None
    gold: float | None = None
    reward: float | None = None
    correct: float | None = None
    result: Result | None = None
    kl: float | None = None
    kl_k3: float | None = None
    nll: float | None = None
    length: float | None = None
    stop_reason: StopReason | None = None


class Sample(Record):
    """A prompt with the answers of all models.

    Attributes:
        prompt: the prompt as readable text.
        task: group of the prompt; empty when the data has none.
        row: index among the prompts of the data source, from 0.
        seed: seed of every sampled answer's random numbers, together with `row`.
        reference: the reference answer in the data.
        answers: answers by model.
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
        PipelineError: a line is not a sample; the problem names the line.
    """
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            samples.append(Sample.model_validate_json(line))
        except ValidationError as error:
            raise PipelineError(
                Problem(f"not a sample: {error.errors()[0]['msg']}", where=f"{path}:{number}")
            ) from None
    return samples
