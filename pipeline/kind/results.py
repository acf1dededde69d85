"""What a stage hands to its runner: events while it runs, rows it cannot use, and its result.

Knows nothing of kinds, of recipes, or of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.plain_data import JsonView, Row


@dataclass(frozen=True)
class Event:
    """An event that a running stage sends to its runner.

    Attributes:
        kind: ``progress`` (step of total, metrics), ``note`` (a line of text), or ``phase`` (the current activity).
        text: the line or the phase.
        step: steps done.
        total: number of steps; 0 when unknown.
        metrics: latest values to show.
    """

    kind: Literal["progress", "note", "phase"]
    text: str = ""
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A row that a stage cannot use.

    Attributes:
        where: ``file:line`` of the row.
        reason: why the stage cannot use it.
        row: the row as the stage received it.
    """

    where: str
    reason: str
    row: Row


@dataclass(frozen=True)
class StageResult:
    """The result of a stage; the runner writes it into the manifest.

    Attributes:
        metrics: final values.
        best: best values with the step at which they were measured, e.g. ``{"eval_loss": 1.2, "step": 300}``.
        tokens: number of tokens trained on or generated.
        trainer_seconds: seconds inside the trainer; for an `evaluate` stage, inside the evaluation.
        scoring_seconds: seconds a training stage spent scoring beside training: a reference model, held-out pairs.
        rows: counts, e.g. ``{"train": 1000, "held_out": 100, "rejected": 2}``.
        lineage: provenance of the weights, see `artifacts/provenance.py`.
        summary: short sentences for the end-of-run table.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    trainer_seconds: float = 0.0
    scoring_seconds: float = 0.0
    rows: Mapping[str, int] = field(default_factory=dict)
    lineage: JsonView = field(default_factory=dict)
    summary: str = ""
