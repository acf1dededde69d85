"""The trackers of transformers that `train.report_to` may name, and the packages they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import Problem, listed, nearest

TRACKERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml",), "pip install azureml-core"),
    "clearml": (("clearml",), "pip install clearml"),
    "codecarbon": (("codecarbon",), "pip install codecarbon"),
    "comet_ml": (("comet_ml",), "pip install comet_ml"),
    "dagshub": (("dagshub", "mlflow"), "pip install dagshub mlflow"),
    "dvclive": (("dvclive",), "pip install dvclive"),
    "flyte": (("flytekit",), "pip install flytekit"),
    "kubeflow": ((), ""),  # inside one of its jobs
    "mlflow": (("mlflow",), "pip install mlflow"),
    "neptune": (("neptune",), "pip install neptune"),
    "swanlab": (("swanlab",), "pip install swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "pip install tensorboardX"),
    "trackio": (("trackio",), "pip install trackio"),
    "wandb": (("wandb",), "pip install wandb"),
}
"""Tracker to the modules it needs, and how to install them."""

ANY_OF = ("tensorboard",)
"""Trackers that need only one of their modules."""

SWITCHES = ("none", "all")
"""Values for no tracker and for all installed ones."""


def asked_for(report_to: object) -> list[Any]:
    """Return the trackers a recipe names as a list: of null, one name, or a list."""
    if report_to is None:
        return []
    return list(report_to) if isinstance(report_to, list) else [report_to]


def tracker_problems(report_to: object) -> Iterator[Problem]:
    """Yield a problem for each unknown tracker, and for `none` or `all` beside others."""
    names = asked_for(report_to)
    for name in names:
        if not isinstance(name, str):
            shown = "a mapping" if isinstance(name, dict) else "a list" if isinstance(name, list) else str(name).lower()
            yield Problem(f"train.report_to is {shown}", "a tracker's name, or a list of names")
        elif name in SWITCHES and len(names) > 1:
            yield Problem(f"train.report_to has {name} among others", "by itself", "leave it out")
        elif name not in TRACKERS and name not in SWITCHES:
            words = [*TRACKERS, *SWITCHES]
            yield Problem(
                f"train.report_to: {name} is not supported", f"one of {listed(words, 20)}", nearest(name, words)
            )


def missing_trackers(report_to: object, has: Callable[[str], bool]) -> Iterator[Problem]:
    """Yield a problem for each tracker whose package is not installed."""
    for name in asked_for(report_to):
        modules, install = TRACKERS.get(name, ((), "")) if isinstance(name, str) else ((), "")
        are_installed = [has(module) for module in modules]
        if modules and not (any(are_installed) if name in ANY_OF else all(are_installed)):
            yield Problem(f"train.report_to is {name}, which is not installed", "", f"{install}, or leave it out")
