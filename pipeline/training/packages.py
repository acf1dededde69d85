"""Checks that the packages a stage's `train` needs are installed: trackers, optimizers, vLLM, a compiler. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import Problem
from pipeline.models.load.kernels import has as is_installed
from pipeline.plain_data import JsonObject, JsonView
from pipeline.trainer_fields.optimizers import PACKAGES
from pipeline.trainer_fields.trackers import missing_trackers

if TYPE_CHECKING:
    from pipeline.stage import StageConfig
    from pipeline.trainer_fields import TrainFields

COMPILERS = ("g++", "c++", "clang++")
"""C++ compilers; `torch_compile` needs one of them."""


def package_problems(
    train: JsonView | StageConfig | None,
    has: Callable[[str], bool] = is_installed,
    which: Callable[[str], Any] = shutil.which,
) -> Iterator[Problem]:
    """Yield a problem for each package or program that a stage's `train` needs and that is missing.

    Args:
        train: the stage's `train` block; None for a stage that does not train.
        has: returns whether a module is installed.
        which: finds a program, as `shutil.which`.
    """
    if train is None:
        return
    given = dict(train)
    yield from missing_trackers(given.get("report_to"), has)
    optim = given.get("optim")
    module, install = PACKAGES.get(str(optim), ("", ""))
    if module and not has(module):
        remedy = f"{install}, or set train.optim: adamw_torch_fused"
        yield Problem(f"train.optim is {optim}, and {module} is not installed", "", remedy)
    if given.get("use_vllm") and not has("vllm"):
        remedy = "pip install 'trueup[vllm]' on a machine with a GPU, or leave it out"
        yield Problem("train.use_vllm is true, and vLLM is not installed", "", remedy)
    generated = given.get("torch_compile") and given.get("torch_compile_backend", "inductor") == "inductor"
    if generated and not any(which(name) for name in COMPILERS):
        remedy = "apt-get install g++, or set train.torch_compile_backend: eager"
        yield Problem("train.torch_compile is true, and there is no C++ compiler", "", remedy)


def evaluation_problems(train: TrainFields, source: str) -> Iterator[Problem]:
    """Yield a problem for each field of `train` that needs evaluations, for a data source without held-out rows.

    Args:
        train: the stage's `train` block.
        source: name of the data source.
    """
    given: JsonObject = train.passthrough()
    asked = [word for word in ("load_best_model_at_end", "eval_steps", "eval_delay") if given.get(word)]
    if given.get("eval_strategy", "no") != "no":
        asked.append("eval_strategy")
    if getattr(train, "lr_scheduler_type", "") in ("reduce_lr_on_plateau", "greedy"):
        asked.append("lr_scheduler_type")
    for word in asked:
        value = given.get(word, getattr(train, word, None))
        shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
        statement = f"train.{word} is {shown}, and data.{source} holds no rows out to evaluate on"
        yield Problem(statement, "", f"set data.{source}.held_out: 0.1, or leave it out")
