from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from pipeline.errors import PipelineError
from pipeline.models.generate.decode import GenerationSettings, beam_search, decode, stream
from pipeline.models.generate.sampling import Sampling, next_tokens, truncated
from pipeline.models.load.scratch import build_causal_lm

PAD, EOS = 0, 1


def ragged_prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, 300) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def generate_greedily(
    model: Any, prompts: list[list[int]], new: int, eos: list[int], beams: int = 1
) -> list[list[int]]:
    """What `transformers` answers, one prompt at a time (no padding at all), cut after the end token."""
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=eos, pad_token_id=PAD, num_beams=beams
    )
    responses = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        responses.append(out[0, len(prompt) :].tolist())
    return responses


def test_greedy_equals_generate_on_ragged_prompts(any_model: Any) -> None:
    prompts = ragged_prompts(64)
    eos = [EOS, *range(5, 20)]  # 16 of 320 tokens end a response, so rows leave the batch at different steps
    expected = generate_greedily(any_model, prompts, 20, eos)
    assert len({len(response) for response in expected}) > 2
    assert any(response[-1] in eos for response in expected)
    for batch_size in (64, 7):
        responses = decode(
            any_model,
            prompts,
            GenerationSettings(max_new_tokens=20, eos_ids=eos, pad_id=PAD, sampling=Sampling(greedy=True)),
            batch_size=batch_size,
        )
        assert responses == expected


def test_greedy_equals_generate_over_many_steps(llama: Any) -> None:
    prompts = ragged_prompts(8, longest=5)
    expected = generate_greedily(llama, prompts, 100, [EOS])
    assert (
        decode(
            llama,
            prompts,
            GenerationSettings(max_new_tokens=100, eos_ids=EOS, pad_id=PAD, sampling=Sampling(greedy=True)),
        )
        == expected
    )


@pytest.mark.parametrize(
    "changed", [{"type": "mistral", "sliding_window": 8}, {"type": "lfm2", "layer_types": ["conv", "full_attention"]}]
)
def test_other_caches_lose_rows_correctly(tokenizer: Any, tiny_specs: dict[str, Any], changed: dict[str, Any]) -> None:
    # A sliding window and a convolution keep states of their own: dropping ended rows must drop those too.
    spec = {**tiny_specs["llama"], **changed}
    model = build_causal_lm(spec, tokenizer, seed=1).eval()
    prompts, eos = ragged_prompts(24), [EOS, *range(5, 20)]
    expected = generate_greedily(model, prompts, 16, eos)
    assert len({len(response) for response in expected}) > 2
    assert (
        decode(
            model,
            prompts,
            GenerationSettings(max_new_tokens=16, eos_ids=eos, pad_id=PAD, sampling=Sampling(greedy=True)),
        )
        == expected
    )


def test_adapter_counts_while_it_is_on(fresh_llama: Any) -> None:
    from pipeline.models.load.adapter_config import Adapter
    from pipeline.models.load.adapters import attach, without_adapter

    prompts = ragged_prompts(8)
    options: dict[str, Any] = {"max_new_tokens": 10, "eos_ids": EOS, "pad_id": PAD, "sampling": Sampling(greedy=True)}
    plain = decode(fresh_llama, prompts, GenerationSettings(**options))
    model = attach(fresh_llama, Adapter(r=4), "causal", seed=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    assert decode(model, prompts, GenerationSettings(**options)) == generate_greedily(model, prompts, 10, [EOS])
    assert decode(model, prompts, GenerationSettings(**options)) != plain
    with without_adapter(model):
        assert decode(model, prompts, GenerationSettings(**options)) == plain


def test_sampled_frequencies_follow_the_softmax(llama: Any) -> None:
    prompt, draws, temperature = [7, 8, 9], 20_000, 0.7
    with torch.inference_mode():
        logits = llama(torch.tensor([prompt])).logits[0, -1].double() / temperature
    probs = torch.softmax(logits, dim=-1)
    responses = decode(
        llama,
        [prompt] * draws,
        GenerationSettings(max_new_tokens=1, eos_ids=EOS, pad_id=PAD, sampling=Sampling(temperature=temperature)),
        batch_size=2000,
    )
    counts = torch.bincount(torch.tensor(responses)[:, 0], minlength=len(probs)).double()
    # Chi-square needs about five expected draws per cell: rarer tokens share one.
    common = probs * draws >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    expected = [*(probs[common] * draws).tolist(), (probs[~common].sum() * draws).item()]
    assert chisquare(observed, expected).pvalue > 1e-3


def test_second_token_is_sampled_given_the_first(llama: Any) -> None:
    prompt, draws = [7, 8, 9], 4000
    responses = decode(
        llama,
        [prompt] * draws,
        GenerationSettings(max_new_tokens=2, eos_ids=EOS, pad_id=PAD, sampling=Sampling(temperature=0.5)),
        batch_size=2000,
    )
    first = max(
        {tuple(row[:1]) for row in responses if len(row) == 2}, key=lambda t: sum(row[:1] == [*t] for row in responses)
    )
    seconds = [row[1] for row in responses if len(row) == 2 and row[0] == first[0]]
    with torch.inference_mode():
        logits = llama(torch.tensor([[*prompt, *first]])).logits[0, -1].double() / 0.5
    probs = torch.softmax(logits, dim=-1)
    common = probs * len(seconds) >= 5
    counts = torch.bincount(torch.tensor(seconds), minlength=len(probs)).double()
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    expected = [*(probs[common] * len(seconds)).tolist(), (probs[~common].sum() * len(seconds)).item()]
    assert chisquare(observed, expected).pvalue > 1e-3


def test_same_seed_same_text_other_seed_other_text(llama: Any) -> None:
    prompts = ragged_prompts(16)
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_ids": EOS, "pad_id": PAD}
    once = decode(llama, prompts, GenerationSettings(seed=3, **options))
    assert decode(llama, prompts, GenerationSettings(seed=3, **options)) == once
    assert decode(llama, prompts, GenerationSettings(seed=4, **options)) != once


def test_row_does_not_depend_on_its_neighbours(llama: Any) -> None:
    prompts = ragged_prompts(40)
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_ids": [EOS, *range(5, 40)], "pad_id": PAD, "seed": 5}
    together = decode(llama, prompts, GenerationSettings(**options))
    assert decode(llama, prompts, GenerationSettings(**options), batch_size=3) == together
    # Row 17 alone, and the last rows alone, under their own identity:
    assert decode(llama, prompts[17:18], GenerationSettings(**options), row_ids=[17]) == together[17:18]
    assert decode(llama, prompts[30:], GenerationSettings(**options), row_ids=range(30, 40)) == together[30:]
    # TPReplicas of one prompt are different rows.
    assert len({tuple(row) for row in decode(llama, [[9, 9]] * 10, GenerationSettings(**options))}) > 5


def test_shorter_limit_gives_a_prefix(llama: Any) -> None:
    # Each step has its own random number, whatever the number of steps.
    prompts = ragged_prompts(8)
    options: dict[str, Any] = {"eos_ids": [], "pad_id": PAD, "seed": 2}
    longer = decode(llama, prompts, GenerationSettings(max_new_tokens=40, **options))
    assert decode(llama, prompts, GenerationSettings(max_new_tokens=17, **options)) == [row[:17] for row in longer]


def test_global_random_state_is_left_alone(llama: Any) -> None:
    before = torch.get_rng_state()
    decode(llama, ragged_prompts(4), GenerationSettings(max_new_tokens=4, eos_ids=EOS, pad_id=PAD))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_and_training_mode_restored(tokenizer: Any, tiny_specs: dict[str, Any]) -> None:
    model = build_causal_lm({**tiny_specs["gpt2"], "resid_pdrop": 0.5, "embd_pdrop": 0.5}, tokenizer, seed=1).train()
    prompts = ragged_prompts(8)
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_ids": EOS, "pad_id": PAD, "sampling": Sampling(greedy=True)}
    assert decode(model, prompts, GenerationSettings(**options)) == decode(
        model, prompts, GenerationSettings(**options)
    )
    assert model.training


def test_response_keeps_its_end_token_and_stops_there(llama: Any) -> None:
    every_token = list(range(320))
    assert all(
        len(row) == 1
        for row in decode(llama, [[5], [6, 7]], GenerationSettings(max_new_tokens=9, eos_ids=every_token, pad_id=PAD))
    )
    assert all(
        len(row) == 9
        for row in decode(llama, [[5], [6, 7]], GenerationSettings(max_new_tokens=9, eos_ids=[], pad_id=PAD))
    )


def test_response_ends_where_the_context_is_full(any_model: Any) -> None:
    prompts = [[5] * 126, [5] * 20]  # 128 positions: room for 2 tokens after the first prompt, 108 after the second
    responses = decode(
        any_model,
        prompts,
        GenerationSettings(max_new_tokens=10, eos_ids=[], pad_id=PAD, sampling=Sampling(greedy=True)),
    )
    assert [len(row) for row in responses] == [2, 10]
    assert responses == [
        *generate_greedily(any_model, prompts[:1], 2, [999]),
        *generate_greedily(any_model, prompts[1:], 10, [999]),
    ]


def test_progress_counts_prompts(llama: Any) -> None:
    seen: list[tuple[int, int]] = []
    decode(
        llama,
        ragged_prompts(5),
        GenerationSettings(max_new_tokens=1, eos_ids=EOS, pad_id=PAD),
        batch_size=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_no_prompts_no_responses(llama: Any) -> None:
    assert decode(llama, [], GenerationSettings(max_new_tokens=4, eos_ids=EOS, pad_id=PAD)) == []


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5] * 128], {}, "prompt 0 has 128 tokens; expected less than the model's 128 positions"),
        ([[5]], {"sampling": Sampling(temperature=0.0)}, "temperature is 0.0; it must be > 0. Use greedy"),
        ([[5]], {"sampling": Sampling(top_p=0.0)}, "top_p is 0.0; it must be > 0 and <= 1"),
        ([[5]], {"sampling": Sampling(top_k=-1)}, "top_k is -1; it must be >= 0"),
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be >= 1"),
    ],
)
def test_bad_options_are_told(llama: Any, prompts: list[list[int]], options: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says.replace("[", r"\[")):
        decode(llama, prompts, GenerationSettings(**{"max_new_tokens": 4, "eos_ids": EOS, "pad_id": PAD, **options}))


def test_stream_gives_what_decode_gives(any_model: Any) -> None:
    prompts = ragged_prompts(4)
    eos = [EOS, *range(5, 20)]
    whole = decode(
        any_model,
        prompts,
        GenerationSettings(max_new_tokens=12, eos_ids=eos, pad_id=PAD, seed=7, sampling=Sampling(top_k=50)),
    )
    for row, prompt in enumerate(prompts):
        pieces = stream(
            any_model,
            prompt,
            GenerationSettings(max_new_tokens=12, eos_ids=eos, pad_id=PAD, sampling=Sampling(top_k=50), seed=7),
            row_id=row,
        )
        assert list(pieces) == whole[row]


def test_beam_search_equals_generate(any_model: Any) -> None:
    prompts = ragged_prompts(6)
    responses = beam_search(
        any_model, prompts, GenerationSettings(max_new_tokens=8, eos_ids=EOS, pad_id=PAD), beams=3, batch_size=4
    )
    assert responses == generate_greedily(any_model, prompts, 8, [EOS], beams=3)


def test_top_k_and_top_p_keep_the_right_tokens() -> None:
    # Shares .5 .3 .15 .05. Top-p .6: .5 has not reached .6, with .3 it is .8, so two tokens. Top-k 3 drops the last.
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert truncated(logits, Sampling(top_p=0.6)).isfinite().tolist() == [[False, True, False, True]]
    assert truncated(logits, Sampling(top_k=3)).isfinite().tolist() == [[True, True, False, True]]
    # Both: of the three left, shares are .526 .316 .158; .842 >= .8 after two.
    assert truncated(logits, Sampling(top_k=3, top_p=0.8)).isfinite().tolist() == [[False, True, False, True]]
    assert truncated(logits, Sampling(top_p=0.01)).isfinite().tolist() == [[False, True, False, False]]


def test_uniform_number_picks_its_share() -> None:
    # Shares in vocabulary order: .15 .5 .05 .3, cumulative .15 .65 .70 1.
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log().repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.149, 0.151, 0.66, 0.71, 1 - 1e-16], dtype=torch.float64)
    assert next_tokens(logits, Sampling(), uniforms).tolist() == [0, 0, 1, 2, 3, 3]
    # With the last token cut off, a number next to 1 falls to the last token that has a share.
    cut = torch.tensor([[0.15, 0.8, 0.05, 0.0]]).log()
    assert next_tokens(cut, Sampling(), torch.tensor([1 - 1e-16], dtype=torch.float64)).tolist() == [2]
