from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.sampling import Sampling
from pipeline.models.logprobs import response_logprobs, token_logprobs
from pipeline.models.scoring import sequence_scores


def rows(count: int) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(3)
    prompts = [[rng.randrange(5, 300) for _ in range(rng.randint(1, 20))] for _ in range(count)]
    responses = [[rng.randrange(5, 300) for _ in range(rng.randint(0, 15))] for _ in range(count)]
    return prompts, responses


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_a_plain_forward_row_by_row(any_model: Any, temperature: float) -> None:
    prompts, responses = rows(40)
    logprobs = response_logprobs(any_model, prompts, responses, temperature=temperature, token_budget=200)
    for prompt, response, values in zip(prompts, responses, logprobs, strict=True):
        with torch.inference_mode():
            logits = any_model(torch.tensor([prompt + response])).logits[0] / temperature
        table = torch.log_softmax(logits, dim=-1)
        expected = [table[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]
        assert values == pytest.approx(expected, abs=1e-5)


def test_greedy_response_has_the_highest_logprob_at_each_step(llama: Any) -> None:
    prompts, _ = rows(8)
    responses = decode(
        llama, prompts, GenerationSettings(max_new_tokens=6, eos_ids=[1], pad_id=0, sampling=Sampling(greedy=True))
    )
    best = response_logprobs(llama, prompts, responses)
    for row, response in enumerate(responses):
        for t in range(len(response)):
            other = [*response[:t], (response[t] + 1) % 312]
            assert response_logprobs(llama, [prompts[row]], [other])[0][t] < best[row][t]


def test_output_layer_is_left_as_it_was(llama: Any) -> None:
    response_logprobs(llama, [[5, 6]], [[7]])
    with torch.inference_mode():
        assert llama(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 312)


def test_soft_cap_of_the_architecture_is_kept(tokenizer: Any) -> None:
    from pipeline.models.load.scratch import build_causal_lm

    spec = {
        "type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.5,
        "final_logit_softcapping": 2.0,
    }
    model = build_causal_lm(spec, tokenizer, seed=1).eval()
    with torch.inference_mode():
        table = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0], dim=-1)
    expected = [table[1, 7].item(), table[2, 8].item()]
    assert response_logprobs(model, [[5, 6]], [[7, 8]])[0] == pytest.approx(expected, abs=1e-5)
    assert model(torch.tensor([[5]])).logits.abs().max() <= 2.0


def test_by_hand() -> None:
    # Shares 1 : 3 of two tokens: log 3/4. At temperature 0.5 the shares are squared, 1 : 9.
    logits = torch.tensor([[0.0, 1.0986122887]])
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(-0.2876820724, abs=1e-6)
    assert token_logprobs(logits, torch.tensor([1]), 0.5).item() == pytest.approx(-0.1053605157, abs=1e-6)


def test_bad_rows_are_told(llama: Any) -> None:
    with pytest.raises(PipelineError, match="prompt 1 is empty"):
        response_logprobs(llama, [[5], []], [[6], [7]])
    with pytest.raises(PipelineError, match="row 0 has 100 \\+ 29 tokens; expected at most the model's 128 positions"):
        response_logprobs(llama, [[5] * 100], [[6] * 29])


def test_scores_do_not_depend_on_the_batch(llama: Any, tokenizer: Any, tmp_path: Any, folder_input: Any) -> None:
    from pipeline.models.load.pretrained import load_reward_model
    from pipeline.models.save.artifact import save_model

    save_model(llama, tokenizer, tmp_path)
    model = load_reward_model(folder_input(tmp_path), tokenizer, seed=1).eval()
    sequences = [prompt for prompt, _ in zip(*rows(20), strict=True)]
    expected = []
    for sequence in sequences:
        with torch.inference_mode():
            hidden = model.model(torch.tensor([sequence])).last_hidden_state[0, -1]  # the last real token
            expected.append((model.score.weight @ hidden).item())
    assert sequence_scores(model, sequences, 0, token_budget=64) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(PipelineError, match="sequence 1 is empty"):
        sequence_scores(model, [[5], []], 0)
