"""Groups the models of a sweep by their settings, and summarizes each setting over its seeds.

Owns the grouping and the statistic over seeds: mean and standard deviation. Knows nothing of recipes and of drawing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.evaluation.report.record import ModelMetrics, Report, SettingFigures, SettingValue, Spread

FIGURES = ("win_rate", "gold", "reward", "correct", "kl", "nll", "length")
_SEED = "seed"


class Variant(Protocol):
    """What a model is among those that differ in settings only."""

    @property
    def stage(self) -> str:
        """Name that all of them have in common."""
        ...

    @property
    def settings(self) -> Mapping[str, SettingValue]:
        """Its settings by name; `seed`, or `NAME.seed`, are seeds."""
        ...


def with_sweep(report: Report, variants: Mapping[str, Variant]) -> Report:
    """Return a report with the figures of each setting; models that are no variant are left out of them.

    Args:
        report: a report.
        variants: stage and settings by the name of the model.
    """
    rows: dict[tuple[str, str], SettingFigures] = {}
    for name in report.models:
        if name in variants:
            variant = variants[name]
            settings = {key: value for key, value in variant.settings.items() if not _is_seed(key)}
            key = (variant.stage, json.dumps(settings, sort_keys=True))
            row = rows.get(key, SettingFigures(stage=variant.stage, settings=settings, models=[]))
            rows[key] = row.model_copy(update={"models": [*row.models, name]})
    return summarized_anew(report, list(rows.values()))


def summarized_anew(report: Report, rows: Sequence[SettingFigures]) -> Report:
    """Return a report with the settings of ``rows``, their figures computed from its models."""
    summaries = [
        row.model_copy(update={"figures": _figures([report.models[name] for name in row.models])}) for row in rows
    ]
    return report.model_copy(update={"sweep": summaries or None})


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == _SEED


def _figures(models: Sequence[ModelMetrics]) -> dict[str, Spread]:
    """Return each figure that a model has, over the models that have it."""
    figures = {}
    for figure in FIGURES:
        values = [estimate.value for model in models if (estimate := getattr(model, figure)) is not None]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            figures[figure] = Spread(mean=statistics.fmean(values), sd=sd, n=len(values))
    return figures
