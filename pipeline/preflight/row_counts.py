"""Checks that a stage gets enough rows: at least one batch to train on, or the prompts of one rollout.

Owns how many rows each kind needs. Knows nothing of where the rows come from: they are counted before tokenization
(`sources.py`) or after it (`tokens.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import Problem, agreeing, counted
from pipeline.stage import StageConfig


def rows_problem(kind: str, config: StageConfig, train: int, held_out: int, shape: str) -> Problem | None:
    """Return a problem if a stage gets too few rows; None if it gets enough.

    Args:
        kind: kind of the stage.
        config: configuration of the stage.
        train: number of training rows.
        held_out: number of held-out rows.
        shape: shape of the rows.
    """
    needs = NEEDS.get(kind)
    settings: Any = getattr(config, "train", None)
    return needs(settings, train, held_out, shape) if needs is not None and settings is not None else None


def _batch(settings: Any, train: int, _held_out: int, shape: str) -> Problem | None:
    what = counted(train, "pair" if shape == "preference" else "row")
    if train >= settings.batch_size:
        return None
    return _too_few(
        f"there {agreeing(train, 'is', 'are')} {what} to train on", f"one batch of {settings.batch_size}", "rows"
    )


def _kto_batch(settings: Any, train: int, _held_out: int, shape: str) -> Problem | None:
    """Check KTO's rows; a pair counts as two rows of a batch, the good response and the bad one."""
    rows = 2 * train if shape == "preference" else train
    if rows >= settings.batch_size:
        return None
    paired = f" ({counted(train, 'pair')})" if shape == "preference" else ""
    return _too_few(
        f"there {agreeing(rows, 'is', 'are')} {counted(rows, 'row')}{paired} to train on",
        f"one batch of {settings.batch_size}",
        "rows",
    )


def _prompt_batch(settings: Any, train: int, _held_out: int, _shape: str) -> Problem | None:
    needed = settings.responses_at_once // settings.num_generations
    if train >= needed:
        return None
    wanted = f"{needed}, for one batch of {settings.responses_at_once} responses"
    return _too_few(f"there {agreeing(train, 'is', 'are')} {counted(train, 'prompt')} to learn from", wanted, "prompts")


def _ppo_prompts(_settings: Any, train: int, held_out: int, _shape: str) -> Problem | None:
    """Check PPO's prompts; without held-out prompts it splits some off for evaluation."""
    if train >= 1 and train + held_out >= 2:
        return None
    statement = f"there {agreeing(train, 'is', 'are')} {counted(train, 'prompt')} to learn from and {held_out} held out"
    return Problem(statement, "at least two prompts, one of them to learn from", "bring more prompts")


def _too_few(statement: str, needed: str, what: str) -> Problem:
    return Problem(statement, f"at least {needed}", f"lower train.batch_size or bring more {what}")


NEEDS: dict[str, Callable[[Any, int, int, str], Problem | None]] = {
    "sft": _batch,
    "reward": _batch,
    "dpo": _batch,
    "kto": _kto_batch,
    "grpo": _prompt_batch,
    "rloo": _prompt_batch,
    "ppo": _ppo_prompts,
}
"""Kind to the check of its row counts. Pretraining cuts documents into rows, so only token counts can be checked."""
