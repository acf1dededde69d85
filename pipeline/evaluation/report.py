"""The report of an evaluation: its records, its JSON file and who may read it, and the final table.

Owns `report.json` (schema below) and the rows people see first. Knows nothing of statistics or drawing, and imports
neither numpy nor matplotlib, so that the command line can read a report quickly.

    {"schema": 1, "baseline": "sft", "models": {"dpo": {"win_rate": {"value", "low", "high", "n"}, "gold": {…},
     "reward": {…}, "kl": {…}, "length": {…}, "eos_rate": {…}, "tasks": {"sum": {"correct": {…}}}}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.estimate import (
    Delta,
    Estimate,
    Record,
    number,
    number_interval,
    percent,
    percent_interval,
    signed_points,
    stable,
)

SCHEMA = 1
LOWER_MARK = "▼"
GAMED_SHARE = 0.5
"""Gold must gain at least this share of what the reward model gained."""
LEAST_GAIN = 0.1
"""In standard deviations: a smaller gain by the reward model is nothing to be gamed."""
Judge = Literal["gold", "reward"]
Verdict = Literal["gold fell", "gold lagged"]


class WinCounts(Record):
    """What a win rate is made of: prompts won, tied and lost, the share won without ties, and the sign test."""

    wins: int
    ties: int
    losses: int
    decided: Estimate | None = None
    p_value: float


class TaskMetrics(Record):
    """Share of correct answers in one task, and the paired difference to the baseline."""

    correct: Estimate
    delta: Delta | None = None


class Gains(Record):
    """Paired differences to the baseline by the reward model (proxy) and by gold, each in its own unit.

    The unit is the standard deviation of the baseline's scores.
    """

    proxy: Delta
    gold: Delta

    def part(self, level: float) -> bool:
        """Whether the proxy rose while gold fell, both beyond noise."""
        return self.proxy.is_above(level) and self.gold.is_below(level)


class Gaming(Gains):
    """Whether a model games the reward model; see `pipeline.evaluation.gaming`.

    Attributes:
        surplus: gold's gain less `GAMED_SHARE` of the proxy's; below zero where gold lags behind.
        verdict: absent when the model does not game.
        tasks: both gains on the prompts of each task.
        parted_tasks: tasks where the proxy rose while gold fell, both beyond noise.
    """

    surplus: Delta
    verdict: Verdict | None = None
    tasks: dict[str, Gains] = Field(default_factory=dict)
    parted_tasks: list[str] = Field(default_factory=list)


class ModelMetrics(Record):
    """Everything measured of one model; what was not measured is absent.

    Attributes:
        ref: how the store names the checkpoint; empty when not told.
        win_rate: against the baseline, ties counting one half; absent for the baseline itself.
        win_counts: what the win rate is made of.
        gold: mean score by the gold function.
        reward: mean score by the reward model.
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
    win_rate: Estimate | None = None
    win_counts: WinCounts | None = None
    gold: Estimate | None = None
    reward: Estimate | None = None
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
        """Whether the model's reward rose without gold."""
        return self.gaming is not None and self.gaming.verdict is not None

    def lower_tasks(self, level: float) -> list[str]:
        """Return the tasks answered worse than by the baseline beyond noise."""
        return [task for task, each in self.tasks.items() if each.delta and each.delta.is_lower(level)]


class Report(Record):
    """A comparison of models on the same prompts.

    Attributes:
        schema_version: of `report.json`, where it is called ``schema``.
        baseline: name of the model the others are compared with.
        judge: whose scores decide a win.
        prompts: how many were asked.
        level: confidence level of every interval.
        resamples: of every bootstrap.
        models: metrics by model, in the order they are shown.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    baseline: str
    judge: Judge = "gold"
    prompts: int | None = None
    level: float = 0.95
    resamples: int | None = None
    models: dict[str, ModelMetrics]

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.baseline not in self.models:
            raise ValueError(f"baseline `{self.baseline}` is not among the models")
        return self

    @property
    def task_names(self) -> list[str]:
        """Tasks of all models, in the order they first appear."""
        return list(dict.fromkeys(task for model in self.models.values() for task in model.tasks))


class Answer(Record):
    """One model's answer to one prompt, with its score by the judge."""

    text: str
    score: float | None = None
    correct: float | None = None


class Sample(Record):
    """A prompt with the answers of all models."""

    prompt: str
    task: str = ""
    answers: dict[str, Answer]


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
    if schema != SCHEMA:
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


def headline(report: Report) -> list[list[str]]:
    """Return the final table: a header and one row per model, as plain text.

    Columns nobody has a value for are left out.
    """
    columns: list[tuple[str, list[str]]] = [("model", list(report.models))]

    def add(title: str, cells: Mapping[str, str]) -> None:
        if any(cells.values()):
            columns.append((title, [cells[name] or "–" for name in report.models]))

    models = report.models
    add(f"win rate vs {report.baseline}", {name: _win_cell(report, name) for name in models})
    add("gold", {name: number_interval(m.gold) if m.gold else "" for name, m in models.items()})
    add("reward", {name: _reward_cell(m) for name, m in models.items()})
    add("correct", {name: _correct_cell(m, report.level) for name, m in models.items()})
    add("KL", {name: number(m.kl.value) if m.kl else "" for name, m in models.items()})
    add("tokens", {name: number(m.length.value, 1) if m.length else "" for name, m in models.items()})
    add("ended", {name: percent(m.eos_rate.value, 0) if m.eos_rate else "" for name, m in models.items()})
    if report.task_names:
        add(f"tasks below {report.baseline}", {name: _lower_cell(report, name) for name in models})
    return [[title for title, _ in columns], *([*row] for row in zip(*(cells for _, cells in columns), strict=True))]


def task_table(report: Report) -> list[list[str]]:
    """Return correctness per task: a header and one row per task, the baseline first, then the others with deltas."""
    others = [name for name in report.models if name != report.baseline]
    rows = [["task", "prompts", report.baseline, *others]]
    for task in report.task_names:
        own = report.models[report.baseline].tasks.get(task)
        count = next(m.tasks[task].correct.n for m in report.models.values() if task in m.tasks)
        cells = [task, str(count), percent(own.correct.value, 0) if own else "–"]
        for name in others:
            each = report.models[name].tasks.get(task)
            cells.append(_task_cell(each, report.level) if each else "–")
        rows.append(cells)
    return rows


def write(report: Report, folder: Path, samples: Sequence[Sample] = (), *, title: str = "Evaluation") -> list[Path]:
    """Write `report.json`, `report.md`, `samples.jsonl` and the figures into a folder.

    Args:
        report: what was measured.
        folder: made when missing.
        samples: every prompt with its answers; the page shows the worst regressions.
        title: of the page.

    Returns:
        The files written.
    """
    from pipeline.evaluation import figures, page

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json"]
    written[0].write_text(to_json(report), encoding="utf-8")
    if samples:
        rows = (json.dumps(stable(each.model_dump(exclude_none=True)), ensure_ascii=False) for each in samples)
        written.append(folder / "samples.jsonl")
        written[-1].write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    drawn = figures.draw(report, folder)
    written += drawn
    written.append(folder / "report.md")
    written[-1].write_text(page.render(report, samples, [path.name for path in drawn], title=title), encoding="utf-8")
    return written


def win_cell(metrics: ModelMetrics) -> str:
    """Render a win rate with its interval, or nothing."""
    return percent_interval(metrics.win_rate) if metrics.win_rate else ""


def _win_cell(report: Report, name: str) -> str:
    return "baseline" if name == report.baseline else win_cell(report.models[name])


def _reward_cell(metrics: ModelMetrics) -> str:
    return f"{number(metrics.reward.value)}{' (gamed)' if metrics.is_gamed else ''}" if metrics.reward else ""


def _correct_cell(metrics: ModelMetrics, level: float) -> str:
    if not metrics.correct:
        return ""
    mark = f" {LOWER_MARK}" if metrics.delta and metrics.delta.is_lower(level) else ""
    return percent(metrics.correct.value) + mark


def _lower_cell(report: Report, name: str) -> str:
    metrics = report.models[name]
    if name == report.baseline or not metrics.tasks:
        return ""
    lower = metrics.lower_tasks(report.level)
    return f"{LOWER_MARK} {', '.join(lower)}" if lower else "none"


def _task_cell(metrics: TaskMetrics, level: float) -> str:
    text = percent(metrics.correct.value, 0)
    if metrics.delta is None:
        return text
    mark = f" {LOWER_MARK}" if metrics.delta.is_lower(level) else ""
    return f"{text} ({signed_points(metrics.delta, 0)}){mark}"
