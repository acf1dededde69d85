"""The report of an evaluation: its records and its JSON file.

Owns `report.json` (schema below). Knows nothing of statistics or drawing, and imports neither numpy nor matplotlib, so
that the command line can read a report quickly.

    {"schema": 2, "baseline": "sft", "seed": 17, "models": {"dpo": {"win_rate": {"value", "low", "high", "n"},
     "gold": {…}, "reward": {…}, "kl": {…}, "length": {…}, "eos_rate": {…}, "tasks": {"sum": {"correct": {…}}}}}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import PipelineError, Problem, counted
from pipeline.evaluation.stats.estimate import Delta, Estimate, Record, stable
from pipeline.plain_data import JsonObject

SCHEMA = 2
LOWER_MARK = "▼"
GAMED_SHARE = 0.5
"""Least ratio of gold's gain to the reward model's gain; below it gold lags."""
LEAST_GAIN = 0.1
"""Least gain by the reward model, in standard deviations, for a verdict of gaming."""
GREEDY = " (greedy)"
"""End of the name under which a model is listed a second time, decoded greedily."""
Judge = Literal["gold", "reward"]
Verdict = Literal["correct fell", "gold fell", "gold lagged"]


class WinCounts(Record):
    """Counts behind a win rate, see `pipeline.evaluation.stats.winrate.WinRate`."""

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
        lag: gold's gain less the proxy's, below zero when gold lags; None in reports of schema 1.
        verdict: how the model games the reward model; None when it does not.
    """

    proxy: Delta
    gold: Delta
    lag: Delta | None = None
    verdict: Verdict | None = None


class Gaming(Gains):
    """Whether a model games the reward model, over all prompts and in each task; see `pipeline.evaluation.gaming`.

    Attributes:
        tasks: gains and verdict on the prompts of each task.
    """

    tasks: dict[str, Gains] = Field(default_factory=dict)

    @property
    def gamed_tasks(self) -> list[str]:
        """Tasks in which the model games the reward model."""
        return [task for task, gains in self.tasks.items() if gains.verdict]


class ModelMetrics(Record):
    """All metrics of one model; a metric that was not measured is None.

    Attributes:
        ref: ref of the checkpoint in the store; may be empty.
        variant: whether it is the baseline's checkpoint with other decoding, and so no candidate.
        win_rate: win rate against the baseline, a tie counting one half; None for the baseline itself.
        win_counts: counts behind the win rate.
        gold: mean score by the gold function.
        reward: mean score by the reward model.
        gold_delta: paired difference of the gold score to the baseline's.
        reward_delta: paired difference of the reward model's score to the baseline's.
        correct: share of correct answers over all prompts with a checkable answer.
        delta: paired difference of that share to the baseline's.
        kl: KL to the reference in nats per response, estimator k1.
        kl_k3: KL to the reference in nats per response, estimator k3.
        kl_per_token: KL to the reference in nats per token, estimator k1.
        nll: negative log-likelihood per token under the baseline, in nats; its exponential is the baseline's perplexity
            of the answers.
        length: mean tokens per response.
        eos_rate: share of responses that ended with EOS before the limit.
        tasks: correctness per task.
        gaming: gains by the reward model and by gold, with the verdict; None for the baseline.
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
    nll: Estimate | None = None
    length: Estimate | None = None
    eos_rate: Estimate | None = None
    tasks: dict[str, TaskMetrics] = Field(default_factory=dict)
    gaming: Gaming | None = None

    @property
    def is_gamed(self) -> bool:
        """Whether the model games the reward model, over all prompts or in a task."""
        return self.gaming is not None and bool(self.gaming.verdict or self.gaming.gamed_tasks)

    def lower_tasks(self, level: float) -> list[str]:
        """Return the tasks whose correctness is below the baseline's beyond noise."""
        return [task for task, each in self.tasks.items() if each.delta and each.delta.is_below(level)]


class RoundStep(Record):
    """A model against the one of the round before, by the judge.

    Attributes:
        model: name of the model.
        before: name of the model of the round before.
        win_rate: share of prompts won against it, a tie counting one half.
        delta: paired difference of the mean score to it.
    """

    model: str
    before: str
    win_rate: Estimate
    delta: Delta


SettingValue = str | int | float | bool | None


class Spread(Record):
    """A figure of several models that differ in their seed only.

    Attributes:
        mean: mean over the models.
        sd: standard deviation over the models, with n - 1; None of a single one.
        n: number of models that have the figure.
    """

    mean: float
    sd: float | None = None
    n: int


class SettingFigures(Record):
    """The models of one setting: variants of a stage that differ in their seed only.

    Attributes:
        stage: name of the stage.
        settings: what sets it apart from other variants of the stage, without seeds; empty if only seeds are swept.
        models: names of the models.
        figures: `win_rate`, `gold`, `reward`, `correct`, `kl` (nats per response), `nll` (nats per token) and `length`
            (tokens), if measured.
    """

    stage: str
    settings: dict[str, SettingValue] = Field(default_factory=dict)
    models: list[str]
    figures: dict[str, Spread] = Field(default_factory=dict)


class BestPoint(Record):
    """The best of n answers of the baseline, over all prompts.

    Attributes:
        n: number of answers of which the best is chosen.
        kl: upper bound of its divergence from the baseline in nats, log n - (n - 1) / n.
        gold: mean gold score of the chosen answer.
        reward: mean score of the chosen answer by the reward model.
    """

    n: int
    kl: float
    gold: Estimate | None = None
    reward: Estimate | None = None


class BestOfBaseline(Record):
    """What choosing the best of n answers of the baseline gains, for every n.

    Attributes:
        chosen_by: whose scores choose.
        points: the points, n from 1.
    """

    chosen_by: Judge
    points: list[BestPoint]


class Report(Record):
    """A comparison of models on the same prompts.

    Attributes:
        schema_version: version of `report.json`, where its key is ``schema``.
        baseline: name of the model the others are compared with.
        judge: the judge whose scores decide a win.
        prompts: number of prompts evaluated.
        available: number of prompts in the data; more than `prompts` when the report is on a sample.
        sampled_by: column the sample is stratified by; empty for a simple sample or all prompts.
        seed: seed of the answers, of the sample and of every bootstrap; None in reports of schema 1.
        level: confidence level of every interval.
        resamples: number of resamples of every bootstrap.
        warnings: warnings to the reader about the figures.
        models: metrics by model, in the order shown.
        rounds: each round's model against the one before, in their order; None when the report is not on rounds.
        best_of_n: the best of n answers of the baseline; None if it was not asked for. Its answers are not in
            `samples.jsonl`.
        sweep: figures of each setting over its seeds, in the order of the models; None when the report is not on a
            sweep.
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
    rounds: list[RoundStep] | None = None
    best_of_n: BestOfBaseline | None = None
    sweep: list[SettingFigures] | None = None

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.baseline not in self.models:
            raise ValueError(f"baseline `{self.baseline}` is not among the models")
        for step in self.rounds or []:
            if not {step.model, step.before} <= set(self.models):
                raise ValueError(f"round `{step.model}` after `{step.before}` is not among the models")
        for row in self.sweep or []:
            if not set(row.models) <= set(self.models):
                raise ValueError(f"a setting of `{row.stage}` has models that are not among those of the report")
        return self

    @property
    def is_sample(self) -> bool:
        """Whether the report is on a sample of the data's prompts."""
        return self.available is not None and (self.prompts or 0) < self.available

    @property
    def sample_text(self) -> str:
        """The evaluated prompts in words: ``60 of 500 prompts, a sample stratified by task (seed 17)``."""
        if not self.is_sample:
            return counted(self.prompts or 0, "prompt")
        sampling = f"a sample stratified by {self.sampled_by}" if self.sampled_by else "a sample"
        return f"{self.prompts:,} of {counted(self.available or 0, 'prompt')}, {sampling} (seed {self.seed})"

    @property
    def candidates(self) -> list[str]:
        """Models that could replace the baseline: all except the baseline and its variants."""
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
        PipelineError: no such file, not JSON, of a newer schema, or not a report; names every invalid field.
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


def _from_schema_1(data: JsonObject) -> JsonObject:
    """Convert a report of schema 1 to schema 2; schema 1 records no verdict but gold falling in a task."""
    models = data.get("models")
    baseline = data.get("baseline")
    for name, each in models.items() if isinstance(models, dict) else ():
        if not isinstance(each, dict):
            continue
        if name == f"{baseline}{GREEDY}":
            each["variant"] = True
        gaming = each.get("gaming")
        if isinstance(gaming, dict):
            gaming.pop("surplus", None)
            parted = gaming.pop("parted_tasks", [])
            for task, gains in gaming.get("tasks", {}).items():
                gains.update({"verdict": "gold fell"} if task in parted else {})
    return {**data, "schema": SCHEMA}
