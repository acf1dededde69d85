"""Rows padded on the left, as trl scores them, against each row alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import tiny_causal_lm

from pipeline.errors import PipelineError
from pipeline.models.generate.steps import left_padded
from pipeline.rl.on_policy.hooks import OnPolicyHooks
from pipeline.stage import StageContext
from pipeline.training.composition import composed
from pipeline.training.data.padding import needs_positions, with_position_ids

PROMPTS = [[5, 9, 33, 17, 40], [7, 8, 50, 3, 21, 30, 11, 62, 4]]
AS_THEY_ARE = (
    "llama",
    "qwen3",
    "gemma2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "mamba",
    "mamba2",
    "bamba",
    "qwen3_next",
)
"""Relative positions, positions taken from the mask, or states that the mask keeps padding from."""
WITH_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "xglm", "biogpt", "ctrl", "recurrent_gemma")
"""Positions counted from the first column."""


@pytest.mark.parametrize("kind", [*AS_THEY_ARE, *WITH_POSITIONS])
def test_whether_a_model_is_told_positions(kind: str, make_context: Callable[..., StageContext]) -> None:
    assert needs_positions(make_context(), tiny_causal_lm(kind), PROMPTS, 0) is (kind in WITH_POSITIONS)


def test_a_state_that_takes_padding_in_is_refused(make_context: Callable[..., StageContext]) -> None:
    with pytest.raises(PipelineError, match="padding on the left changes what this rwkv model computes"):
        needs_positions(make_context(), tiny_causal_lm("rwkv"), PROMPTS, 0)


class Scores:
    """Stands where a trainer of trl does: it gives rows a mask, and no positions."""

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("kind", WITH_POSITIONS)
def test_a_model_that_is_told_positions_scores_a_padded_row_as_it_does_alone(kind: str) -> None:
    model = tiny_causal_lm(kind)
    ids, mask = left_padded(PROMPTS, 0, torch.device("cpu"))
    trainer_class = composed(Scores, OnPolicyHooks)
    trainer = trainer_class.__new__(trainer_class)
    trainer.parts = SimpleNamespace(rollouts=SimpleNamespace(prompts=SimpleNamespace(with_positions=False)))
    alone = model(input_ids=torch.tensor(PROMPTS[:1]), use_cache=False).logits[0]

    def off() -> float:
        return float((trainer._get_per_token_logps_and_entropies(model, ids, mask)[0, -5:] - alone).abs().max())

    assert off() > 0.1
    trainer.parts.rollouts.prompts.with_positions = True
    assert off() < 1e-4
    with with_position_ids(model):
        pass
    trainer.parts.rollouts.prompts.with_positions = False
    assert off() > 0.1  # no hook is left behind
