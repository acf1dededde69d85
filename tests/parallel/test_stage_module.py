"""The parts of a cut model, one after another, are the whole model: outputs, gradients, names. No processes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.errors import PipelineError
from pipeline.parallel.pipeline.split import MODULE_NAMES, bounds, split_problem
from pipeline.parallel.pipeline.stage_module import StageModule

SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 5, "intermediate_size": 64}


def _model(kind: str, *, tied: bool = False) -> Any:
    torch.manual_seed(3)
    shape = dict(SHAPE) if kind != "gpt2" else {k: v for k, v in SHAPE.items() if k != "intermediate_size"}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape |= {"num_key_value_heads": 2} if kind in ("llama", "mistral", "qwen2", "qwen3") else {}
    config = AutoConfig.for_model(kind, vocab_size=61, tie_word_embeddings=tied, **special, **shape)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("kind", sorted(MODULE_NAMES))
def test_parts_one_after_another_are_the_whole(kind: str, stages: int, tied: bool) -> None:
    whole = _model(kind, tied=tied)
    parts = [StageModule(copy.deepcopy(whole), stage, stages) for stage in range(stages)]
    ids = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden = ids
    for part in parts:
        hidden = part(hidden)
    expected = whole(input_ids=ids).logits
    assert torch.equal(hidden, expected)
    hidden.square().sum().backward()
    expected.square().sum().backward()
    gradients: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, parameter in part.full_names().items():
            gradients[name] = gradients.get(name, 0) + parameter.grad
    named = dict(whole.named_parameters())
    assert set(gradients) == set(named)
    for name, parameter in named.items():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6, rtol=1e-5), name
    counted = [name for part in parts for name in part.counted()]
    assert sorted(counted) == sorted(named)  # each once


def test_layers_are_divided_evenly() -> None:
    assert bounds(3, 3) == [(0, 1), (1, 2), (2, 3)]
    assert bounds(5, 3) == [(0, 1), (1, 3), (3, 5)]
    assert bounds(7, 2) == [(0, 3), (3, 7)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma"}, "compute.pipeline_parallel with a gemma model"),
        ({"model_type": "llama", "num_hidden_layers": 3}, "compute.pipeline_parallel 4 for 3 layers"),
        ({"model_type": "gpt2", "n_layer": 2}, "compute.pipeline_parallel 4 for 2 layers"),
        (
            {"model_type": "qwen2", "num_hidden_layers": 8, "layer_types": ["full_attention", "sliding_attention"]},
            "layers of 2 kinds (full_attention, sliding_attention)",
        ),
    ],
)
def test_what_is_not_cut_is_named(config: dict[str, Any], said: str) -> None:
    problem = split_problem(config, 4)
    assert problem is not None and said in problem.found
    assert problem.expected and problem.remedy


def test_a_model_is_refused_before_it_is_cut() -> None:
    whole = _model("llama")
    with pytest.raises(PipelineError, match="6 for 5 layers"):
        StageModule(whole, 0, 6)
    assert len(whole.model.layers) == 5


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_part_computes_activations_again_where_it_is_asked_to(kind: str) -> None:
    calls = {}
    for recompute in (False, True):
        part = StageModule(_model(kind), 1, 2, recompute=recompute).train()
        passes: list[int] = []
        getattr(part.inner, part.anatomy.layers)[1].mlp.register_forward_pre_hook(
            lambda *_, seen=passes: seen.append(1)
        )
        part(torch.ones(2, 7, 32, requires_grad=True)).sum().backward()
        calls[recompute] = len(passes)
    assert calls == {False: 1, True: 2}


def test_a_part_in_bf16_keeps_its_weights_and_what_it_sends_in_fp32() -> None:
    first, last = (StageModule(_model("llama"), stage, 2, autocast=torch.bfloat16) for stage in range(2))
    hidden = first(torch.ones(2, 7, dtype=torch.long))
    assert hidden.dtype == torch.float32 and last(hidden).dtype == torch.bfloat16
    assert {p.dtype for p in last.parameters()} == {torch.float32}
