"""Packed conversations against each alone, on tiny models of many architectures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from architectures import tiny_causal_lm

from pipeline.errors import PipelineError
from pipeline.stage import StageContext
from pipeline.training.data.collate import CausalCollator
from pipeline.training.data.packing import refuse_unpackable

ROWS = [
    {"input_ids": [7, 8, 9, 10], "labels": [7, 8, 9, 10], "seq_lengths": [4]},  # alone in its row: nothing to see
    {
        "input_ids": [5, 6, 7, 8, 9, 10, 11, 12, 30, 31, 32, 33, 34, 35],
        "labels": [5, 6, 7, 8, 9, 10, 11, 12, 30, 31, 32, 33, 34, 35],
        "seq_lengths": [8, 6],
    },
]

APART = (
    *("gpt2", "gptj", "gpt_neo", "gpt_bigcode", "gpt_neox", "codegen", "ctrl"),
    *("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "olmo2", "stablelm", "starcoder2", "cohere", "phi", "phi3"),
    *("phimoe", "granite", "smollm3", "gemma2", "gemma3_text", "llama4_text", "persimmon", "lfm2"),
)
"""Architectures whose packed conversations stay apart: by the masks that transformers makes of positions."""

TOGETHER = (
    *("opt", "xglm", "biogpt"),  # positions are offsets that the mask gives
    *("bloom", "mpt", "falcon", "gpt_oss"),  # a mask of their own
    *("mamba", "mamba2", "falcon_mamba", "rwkv"),  # a state goes on
    *("bamba", "falcon_h1", "qwen3_next", "qwen3_5_text", "granitemoehybrid", "recurrent_gemma"),  # some layers' does
)
"""Those whose conversations see one another (transformers 5.23)."""


@pytest.mark.parametrize("kind", APART)
def test_packed_conversations_that_stay_apart_are_accepted(
    kind: str, make_context: Callable[..., StageContext]
) -> None:
    """And the same model is refused a batch that hides where the second conversation begins."""
    model, collate = tiny_causal_lm(kind), CausalCollator(0, with_mask=True)
    refuse_unpackable(make_context(), model, ROWS, collate)

    def hide(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in collate(rows).items() if name != "position_ids"}

    with pytest.raises(PipelineError, match="see one another"):
        refuse_unpackable(make_context(), model, ROWS, hide)


@pytest.mark.parametrize("kind", TOGETHER)
def test_packed_conversations_that_see_one_another_are_refused(
    kind: str, make_context: Callable[..., StageContext]
) -> None:
    with pytest.raises(PipelineError) as caught:
        refuse_unpackable(make_context(), tiny_causal_lm(kind), ROWS, CausalCollator(0, with_mask=True))
    [problem] = caught.value.problems
    assert "see one another" in problem.found
    assert problem.remedy == "set train.mode: rows"


def test_a_row_of_one_conversation_needs_no_look(make_context: Callable[..., StageContext]) -> None:
    model, passes = tiny_causal_lm("mamba"), []
    model.register_forward_hook(lambda *pass_: passes.append(pass_))
    refuse_unpackable(make_context(), model, ROWS[:1], CausalCollator(0, with_mask=True))
    assert passes == []
    with pytest.raises(PipelineError, match="see one another"):
        refuse_unpackable(make_context(), model, ROWS, CausalCollator(0, with_mask=True))
    assert len(passes) == 2


def test_the_look_leaves_the_model_as_it_was(make_context: Callable[..., StageContext]) -> None:
    model = tiny_causal_lm("llama").train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    numbers = torch.get_rng_state()
    refuse_unpackable(make_context(), model, ROWS, CausalCollator(0, with_mask=True))
    assert model.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
