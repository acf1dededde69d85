"""When rewards teach: a difference within a prompt's responses, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.errors import ExitCode, PipelineError
from pipeline.rl.on_policy.hooks import Rollouts
from pipeline.rl.on_policy.learning import IDLE_PATIENCE, RewardWatch, teaches
from pipeline.rl.on_policy.trainer import PromptBatches, Prompts
from pipeline.stage import Event

NONE = math.nan
PROMPTS = Prompts(rows=[], prompt_ids=[], shown=[], train=0, counts={}, tokenizer=cast(Any, None))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 1.0, 0.0, 0.0], False),  # two prompts whose responses differ from prompt to prompt only
        ([1.0, 0.0, 0.5, 0.5], True),
        ([NONE, NONE, NONE, NONE], False),
        ([NONE, 1.0, 2.0, NONE], False),  # one response with a reward has nothing to be compared with
        ([0.1, 0.1 + 1e-9, 0.0, 0.0], False),  # rounding
        ([1e-5, 2e-5, 0.0, 0.0], True),  # small rewards differ as well as large ones
    ],
)
def test_only_differences_between_responses_to_a_prompt_teach(rewards: list[float], expected: bool) -> None:
    assert teaches(torch.tensor(rewards, dtype=torch.double), 2) is expected


def test_a_difference_begins_the_count_anew_and_the_count_survives_a_checkpoint(
    make_context: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    ctx, same, differ = make_context(events), torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0])
    watch = RewardWatch()
    for _ in range(IDLE_PATIENCE - 1):
        watch.look(same, 2, ctx)
    watch.look(differ, 2, ctx)
    for _ in range(IDLE_PATIENCE - 1):
        watch.look(same, 2, ctx)
    watch.check_end()  # something was taught in between
    trainer = SimpleNamespace(
        args=SimpleNamespace(gradient_accumulation_steps=1, sync_ref_model=False, device="cpu"),
        state=SimpleNamespace(global_step=5),
    )
    batches = PromptBatches(prompts=4, group=2, responses=4, repeats=1, seed=1)
    Rollouts(ctx, PROMPTS, batches, watch).save(trainer, tmp_path)
    later = Rollouts(ctx, PROMPTS, batches)
    later.load(trainer, tmp_path)
    resumed = later.watch
    assert trainer._step == 5
    with pytest.raises(PipelineError, match=f"same reward in {IDLE_PATIENCE} rollouts in a row") as error:
        resumed.look(same, 2, ctx)
    assert error.value.exit_code == ExitCode.FAILED
    assert [event.text for event in events if "got the same reward (0)" in event.text] == [events[0].text]
    assert len(events) == 1
