"""The report of an evaluation: its records, its JSON file and who may read it.

Owns `report.json` (schema below). Knows nothing of statistics or drawing, and imports neither numpy nor matplotlib, so
that the command line can read a report quickly.

    {"schema": 2, "baseline": "sft", "seed": 17, "models": {"dpo": {"win_rate": {"value", "low", "high", "n"},
     "gold": {…}, "reward": {…}, "kl": {…}, "length": {…}, "eos_rate": {…}, "tasks": {"sum": {"correct": {…}}}}}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.estimate import Delta, Estimate, Record, counted, stable

SCHEMA = 2
LOWER_MARK = "▼"
GAMED_SHARE = 0.5
"""Gold must gain at least this share of what the reward model gained."""
LEAST_GAIN = 0.1
"""In standard deviations: a smaller gain by the reward model is nothing to be gamed."""
Judge = Literal["gold", "reward"]
Verdict = Literal["correct fell", "gold fell", "gold lagged"]


class WinCounts(Record):
    """What a win rate is made of; see `pipeline.evaluation.winrate.WinRate`."""

    wins: int
    ties: int
    losses: int
    decided: Estimate | None = None
    p_value: float
    won_by: float | None = None
    lost_by: float | None = None


class TaskMetrics(Record):
    """Share of correct answers in one task, and the paired difference to the baseline."""

    correct: Estimate
    delta: Delta | None = None


class Gains(Record):
    """Paired differences to the baseline by the reward model (proxy) and by gold, each in its own unit.

    The unit is the standard deviation of the baseline's scores.

    Attributes:
        proxy: gain by the reward model.
        gold: gain by gold.
        lag: gold's gain less the proxy's; below zero where gold lags behind. Absent in reports of schema 1.
        verdict: how the reward model is gamed here; absent when it is not.
    """

    proxy: Delta
    gold: Delta
    lag: Delta | None = None
    verdict: Verdict | None = None


class Gaming(Gains):
    """Whether a model games the reward model, over all prompts and in each task; see `pipeline.evaluation.gaming`.

    Attributes:
        tasks: the same on the prompts of each task.
    """

    tasks: dict[str, Gains] = Field(default_factory=dict)

    @property
    def gamed_tasks(self) -> list[str]:
        """Tasks in which the model games the reward model."""
        return [task for task, gains in self.tasks.items() if gains.verdict]


class ModelMetrics(Record):
    """Everything measured of one model; what was not measured is absent.

    Attributes:
        ref: how the store names the checkpoint; empty when not told.
        variant: it is the baseline's checkpoint, decoded in another way, and so no candidate.
        win_rate: against the baseline, ties counting one half; absent for the baseline itself.
        win_counts: what the win rate is made of.
        gold: mean score by the gold function.
        reward: mean score by the reward model.
        gold_delta: paired difference of gold to the baseline's.
        reward_delta: the same of the reward model's score.
        correct: share of correct answers over all prompts that have a checkable answer.
        delta: paired difference of that share to the baseline's.
        kl: KL to the reference in nats per response, estimator k1.
        kl_k3: the same by k3.
        kl_per_token: KL in nats per token, k1.
        length: tokens per response.
        eos_rate: share of responses that ended before the limit.
        tasks: correctness per task.
        gaming: gains by the reward model and by gold, and whether they part; absent for the baseline.
    """

    ref: str = ""
    variant: bool = False
    win_rate: Estimate | None = None
    win_counts: WinCounts | None = None
    gold: Estimate | None = None
    reward: Estimate | None = None
    gold_delta: Delta | None = None
    reward_delta: Delta | None = None
    correct: Estimate | None = None
    delta: Delta | None = None
    kl: Estimate | None = None
    kl_k3: Estimate | None = None
    kl_per_token: Estimate | None = None
    length: Estimate | None = None
    eos_rate: Estimate | None = None
    tasks: dict[str, TaskMetrics] = Field(default_factory=dict)
    gaming: Gaming | None = None

    @property
    def is_gamed(self) -> bool:
        """Whether the model's reward rose without what it stands for, over all prompts or in a task."""
        return self.gaming is not None and bool(self.gaming.verdict or self.gaming.gamed_tasks)

    def lower_tasks(self, level: float) -> list[str]:
        """Return the tasks answered worse than by the baseline beyond noise."""
        return [task for task, each in self.tasks.items() if each.delta and each.delta.is_below(level)]


class Report(Record):
    """A comparison of models on the same prompts.

    Attributes:
        schema_version: of `report.json`, where it is called ``schema``.
        baseline: name of the model the others are compared with.
        judge: whose scores decide a win.
        prompts: how many were asked.
        available: how many the data has; more than were asked when the report is on a sample of them.
        sampled_by: column the sample is stratified by; empty when it is not, or when all were asked.
        seed: of the answers, of the sample and of every bootstrap; absent in reports of schema 1.
        level: confidence level of every interval.
        resamples: of every bootstrap.
        warnings: what a reader must know before believing a figure.
        models: metrics by model, in the order they are shown.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    baseline: str
    judge: Judge = "gold"
    prompts: int | None = None
    available: int | None = None
    sampled_by: str = ""
    seed: int | None = None
    level: float = 0.95
    resamples: int | None = None
    warnings: list[str] = Field(default_factory=list)
    models: dict[str, ModelMetrics]

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.baseline not in self.models:
            raise ValueError(f"baseline `{self.baseline}` is not among the models")
        return self

    @property
    def is_sample(self) -> bool:
        """Whether only some of the data's prompts were asked."""
        return self.available is not None and (self.prompts or 0) < self.available

    @property
    def sample_text(self) -> str:
        """Say what was asked: ``60 of 500 prompts, a sample stratified by task (seed 17)``."""
        if not self.is_sample:
            return counted(self.prompts or 0, "prompt")
        how = f"a sample stratified by {self.sampled_by}" if self.sampled_by else "a sample"
        return f"{self.prompts:,} of {counted(self.available or 0, 'prompt')}, {how} (seed {self.seed})"

    @property
    def candidates(self) -> list[str]:
        """Models that could replace the baseline: not itself, nor its own checkpoint decoded in another way."""
        return [name for name, each in self.models.items() if name != self.baseline and not each.variant]

    @property
    def task_names(self) -> list[str]:
        """Tasks of all models, in the order they first appear."""
        return list(dict.fromkeys(task for model in self.models.values() for task in model.tasks))


def to_json(report: Report) -> str:
    """Render `report.json`: the same report gives the same bytes."""
    data = report.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(stable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> Report:
    """Read and validate a `report.json`.

    Raises:
        PipelineError: no such file, not JSON, made by a newer version, or not a report; names every wrong place.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(Problem("no report here", "a report.json", "run the evaluate stage", str(path))) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(Problem(f"not JSON ({error})", "a report.json", where=str(path))) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        remedy = "upgrade trueup, or read it with the version that wrote it"
        raise PipelineError(Problem(f"report schema {schema}", f"at most {SCHEMA}", remedy, str(path)))
    if schema == 1:
        data = _from_schema_1(data)
    elif schema != SCHEMA:
        raise PipelineError(
            Problem(f"schema is {schema!r}", f"`schema: {SCHEMA}`, as the evaluate stage writes", where=str(path))
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        problems = [
            Problem(f"`{'.'.join(str(part) for part in each['loc']) or 'report'}`: {each['msg']}", where=str(path))
            for each in error.errors()
        ]
        raise PipelineError(*problems) from None


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a report of schema 1 as one of schema 2: it told only where gold fell in a task."""
    models = data.get("models")
    baseline = data.get("baseline")
    for name, each in models.items() if isinstance(models, dict) else ():
        if not isinstance(each, dict):
            continue
        if name == f"{baseline} (greedy)":
            each["variant"] = True
        gaming = each.get("gaming")
        if isinstance(gaming, dict):
            gaming.pop("surplus", None)
            parted = gaming.pop("parted_tasks", [])
            for task, gains in gaming.get("tasks", {}).items():
                gains.update({"verdict": "gold fell"} if task in parted else {})
    return {**data, "schema": SCHEMA}
