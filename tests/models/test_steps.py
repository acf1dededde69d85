"""Decoding with the cache of each architecture against a plain loop that reads every row again, alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import tiny_causal_lm

from pipeline.errors import PipelineError
from pipeline.models.generate.decode import GenerationSettings, beam_search, decode, stream
from pipeline.models.generate.sampling import Sampling
from pipeline.models.generate.steps import UncachedSteps, cache_use

PROMPTS = [[5, 9, 33, 17, 40], [7, 8, 50, 3, 21, 30, 11, 62, 4], [12, 13, 14, 15, 16, 3, 44, 45, 46, 20, 21, 60, 33]]
EOS, NEW = [63, 10, 11, 12, 13, 14, 15, 16], 10
"""Several tokens end a response, so that rows leave the batch at different steps."""

WITH_CACHE = (
    *("mamba", "mamba2", "falcon_mamba", "bamba", "falcon_h1", "qwen3_next", "granitemoehybrid", "lfm2"),
    *("llama", "gpt2", "opt", "bloom", "mpt", "falcon", "gpt_oss", "gemma2", "xglm", "biogpt"),
)
WITHOUT_CACHE = {
    "rwkv": "it is not one that transformers fills",  # a list of its own, `state`
    "recurrent_gemma": "its logits differ",  # the state lies in the module: no row can leave the batch
}


def plain_loop(model: Any, prompt: list[int]) -> list[int]:
    """The most likely token after a row that is read from its start each time, by itself."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in EOS:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", [*WITH_CACHE, *WITHOUT_CACHE])
def test_decoding_together_and_streamed_equals_a_plain_loop(kind: str) -> None:
    model, said = tiny_causal_lm(kind), []
    wanted = [plain_loop(model, prompt) for prompt in PROMPTS]
    settings = GenerationSettings(NEW, EOS, pad_id=0, sampling=Sampling(greedy=True))
    assert decode(model, PROMPTS, settings, say=said.append) == wanted
    streamed = [list(stream(model, prompt, settings)) for prompt in PROMPTS]
    assert streamed == wanted
    if kind in WITH_CACHE:
        assert said == []
    else:
        [text] = said  # once for the model, not for each batch
        assert f"the cache of this {kind} model cannot be used" in text
        assert WITHOUT_CACHE[kind] in text


class Leaky(torch.nn.Module):
    """A llama whose attention mask is lost on its way in, as that of a recurrent state can be."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_causal_lm("llama")
        self.config, self.base_model_prefix = self.inner.config, "inner"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, **more)


def test_a_model_that_takes_padding_in_decodes_rows_of_one_length_together() -> None:
    model, said = Leaky(), []
    twins = [*PROMPTS, PROMPTS[1][::-1]]  # two of one length
    wanted = [plain_loop(model.inner, prompt) for prompt in twins]
    responses = decode(
        model,
        twins,
        GenerationSettings(max_new_tokens=NEW, eos_ids=EOS, pad_id=0, sampling=Sampling(greedy=True)),
        say=said.append,
    )
    assert cache_use(model, PROMPTS, 0) == "unpadded"
    assert responses == wanted
    assert "with padding on the left its logits differ" in said[0]


def test_beams_need_a_cache() -> None:
    with pytest.raises(PipelineError, match="rwkv model has no cache that can be searched with 3 beams"):
        beam_search(
            tiny_causal_lm("rwkv"), PROMPTS, GenerationSettings(max_new_tokens=4, eos_ids=EOS, pad_id=0), beams=3
        )


def test_beams_of_a_recurrent_model_do_not_depend_on_the_other_prompts() -> None:
    model, settings = tiny_causal_lm("mamba"), GenerationSettings(6, EOS, pad_id=0)
    alone = [beam_search(model, [prompt], settings, beams=3)[0] for prompt in PROMPTS]
    assert beam_search(model, PROMPTS, settings, beams=3) == alone


def test_a_row_that_ended_does_not_step_past_the_last_position() -> None:
    """One of nine rows that ends stays in the batch for a while; 64 positions are all there are."""
    model = tiny_causal_lm("gpt2")
    model.config.max_position_embeddings = 64  # what gpt2 calls n_positions
    steps = UncachedSteps(model, [[5] * 62, [6, 7]], 0)
    steps.begin()
    for _ in range(4):
        logits_BV = steps.next(torch.tensor([9, 9]))
    wanted = model(torch.tensor([[6, 7, 9, 9, 9, 9]])).logits[0, -1]
    torch.testing.assert_close(logits_BV[1], wanted, atol=1e-5, rtol=1e-5)
