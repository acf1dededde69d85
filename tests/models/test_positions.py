"""What is computed for some positions only equals the same positions of the whole, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.models import positions
from pipeline.models.positions import decoder_of, flat, hidden_at, logits_at
from pipeline.models.scoring import sequence_scores

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {"llama": True, "mistral": True, "qwen2": True, "qwen3": True, "gemma2": False, "phi3": False, "gpt2": False}
ROWS_N = torch.tensor([0, 0, 1, 2, 2])
PLACES_N = torch.tensor([3, 4, 8, 0, 7])
WIDTH = 9


def model_of(architecture: str, auto: Any = AutoModelForCausalLM, **more: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(architecture, **SHAPE, **more)).eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 64, (3, WIDTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", COMMON)
def test_asked_positions_equal_those_of_the_whole_with_their_gradients(architecture: str) -> None:
    model = model_of(architecture)
    logits_NV, hidden_NH = logits_at(model, flat(ROWS_N, PLACES_N, WIDTH), input_ids=ids())
    logits_NV.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    whole = model(input_ids=ids(), output_hidden_states=True)
    whole.logits[ROWS_N, PLACES_N].square().sum().backward()
    torch.testing.assert_close(logits_NV, whole.logits[ROWS_N, PLACES_N], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden_NH, whole.hidden_states[-1][ROWS_N, PLACES_N], atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "is_common"), COMMON.items())
def test_only_layers_of_the_common_form_are_shortened(architecture: str, is_common: bool) -> None:
    seen: list[int] = []
    model = model_of(architecture)
    decoder = decoder_of(model)
    last = (decoder.layers if hasattr(decoder, "layers") else decoder.h)[-1]
    handle = last.mlp.register_forward_hook(lambda module, arguments, output: seen.append(output.numel() // 32))
    logits_at(model, flat(ROWS_N, PLACES_N, WIDTH), input_ids=ids())
    handle.remove()
    assert seen == [len(ROWS_N) if is_common else 3 * WIDTH]
    assert "forward" not in vars(last)  # and the layer is its old self again


def test_a_layer_that_runs_again_in_backward_is_left_alone() -> None:
    model = model_of("llama").train()
    model.gradient_checkpointing_enable()
    logits_NV, _ = logits_at(model, flat(ROWS_N, PLACES_N, WIDTH), input_ids=ids())
    logits_NV.square().sum().backward()
    plain = model_of("llama")
    plain(input_ids=ids()).logits[ROWS_N, PLACES_N].square().sum().backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_the_layer_is_put_back_when_the_model_fails() -> None:
    model = model_of("llama")
    with pytest.raises(IndexError):
        logits_at(model, flat(ROWS_N, PLACES_N, WIDTH), input_ids=ids() + 1000)
    assert "forward" not in vars(decoder_of(model).layers[-1])
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hidden_states_of_a_classifiers_trunk(architecture: str) -> None:
    trunk = decoder_of(model_of(architecture, AutoModelForSequenceClassification, num_labels=1))
    whole_BTH = trunk(input_ids=ids()).last_hidden_state
    found_NH = hidden_at(trunk, flat(ROWS_N, PLACES_N, WIDTH), input_ids=ids())
    torch.testing.assert_close(found_NH, whole_BTH[ROWS_N, PLACES_N], atol=1e-5, rtol=0)


def test_scores_are_those_of_the_classifier_also_where_the_end_is_the_padding() -> None:
    model = model_of("llama", AutoModelForSequenceClassification, num_labels=1)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 0], [15, 0, 0, 16]]  # 0 is the padding, and may be sampled
    with torch.no_grad():  # by hand, at the last token: transformers would look for the last one that is no padding
        hidden = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = [float(model.score.weight[0] @ state) for state in hidden]
    assert sequence_scores(model, rows, pad_id=0) == pytest.approx(expected, abs=1e-5)


def test_the_common_form_is_told_by_what_a_layer_computes() -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    class Scaled(LlamaDecoderLayer):
        def forward(self, hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
            residual = hidden_states
            return residual + 2 * super().forward(hidden_states, **inputs)

    assert positions._is_common(LlamaDecoderLayer)
    assert not positions._is_common(Scaled)
