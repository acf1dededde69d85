"""A model's own settings: handed on with the right special tokens, and never mixed into our own sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.models.generate.decode import GenerationSettings, beam_search
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.models.generate.generation_config import settings_of, without_generation_config
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import Base, attach, base_of_adapter
from pipeline.models.save.artifact import save_model
from pipeline.stage import ResolvedInput


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        # The end token of this tokenizer is 1; 0 to 4 are its special tokens, 300 is a word.
        ([1, 3], [1, 3]),
        ([300, 1], [300, 1]),  # someone wants it to stop there
        ([3, 300], [1, 3]),  # of another tokenizer: a word would end every text
        (300, 1),
        (None, 1),
    ],
)
def test_end_tokens_are_those_of_base_and_tokenizer(
    fresh_llama: Any, tokenizer: Any, known: Any, expected: Any
) -> None:
    assert tokenizer.eos_token_id == 1
    assert 3 in tokenizer.added_tokens_decoder
    assert 300 not in tokenizer.added_tokens_decoder
    fresh_llama.generation_config = GenerationConfig(eos_token_id=known, repetition_penalty=1.3, temperature=0.5)
    settings = settings_of(fresh_llama, tokenizer)
    assert settings is not None
    assert settings.eos_token_id == expected
    assert (settings.repetition_penalty, settings.temperature) == (1.3, 0.5)
    assert settings.pad_token_id == tokenizer.pad_token_id


def test_settings_that_break_a_rule_of_others_are_kept(fresh_llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    # `save_pretrained` refuses a temperature without sampling; published models have it.
    fresh_llama.generation_config = GenerationConfig(temperature=0.9, do_sample=False, eos_token_id=1)
    save_model(fresh_llama, tokenizer, tmp_path / "m")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").generation_config.temperature == 0.9


def test_the_context_is_written_unless_the_tokenizer_knows_a_smaller_one(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    kept = tokenizer.model_max_length
    try:
        for given, written in ((int(1e30), 128), (100, 100), (4096, 128)):  # the model has 128 positions
            tokenizer.model_max_length = given
            save_model(fresh_llama, tokenizer, tmp_path / str(given))
            assert AutoTokenizer.from_pretrained(tmp_path / str(given)).model_max_length == written
    finally:
        tokenizer.model_max_length = kept


@pytest.mark.parametrize("adapted", [False, True])
def test_our_sampling_does_not_take_the_penalty_of_the_base(fresh_llama: Any, tokenizer: Any, adapted: bool) -> None:
    model = attach(fresh_llama, Adapter(r=2), "causal", seed=0) if adapted else fresh_llama
    engine, settings = GenerateEngine(), GenerationSettings(max_new_tokens=12, eos_ids=1, pad_id=0)
    greedy = replace(settings, sampling=Sampling(greedy=True))

    def texts() -> list[Any]:
        beams = beam_search(model, [[5, 6, 7]], settings, beams=2)
        return [engine(model, [[5, 6, 7]], greedy, [0]).responses, beams]

    plain = texts()
    fresh_llama.generation_config.repetition_penalty = 30.0
    fresh_llama.generation_config.no_repeat_ngram_size = 1
    assert texts() == plain
    assert fresh_llama.generation_config.repetition_penalty == 30.0  # and it has it still
    with without_generation_config(model):
        assert fresh_llama.generation_config.repetition_penalty is None


def test_an_adapter_names_its_base_alike_on_every_machine() -> None:
    made = {"ref": "sft", "name": "sft", "kind": "sft", "fingerprint": "9f31c0a1b2c3" + "0" * 52}
    here = ResolvedInput(**made, path="/here/store/sft/9f31c0a1b2c3", manifest={"name": "sft"})
    there = ResolvedInput(**made, path="/there/sft/9f31c0a1b2c3", manifest={"name": "sft"})
    assert base_of_adapter(here) == base_of_adapter(there) == Base("../../sft/9f31c0a1b2c3")
    hub = ResolvedInput(ref="o/m", name="m", kind="external", fingerprint="hub:o/m@abc", path="o/m@abc")
    assert base_of_adapter(hub) == Base("o/m", "abc")
    folder = ResolvedInput(ref="./x/m", name="m", kind="external", fingerprint="0" * 64, path="/x/m")
    assert base_of_adapter(folder) == Base("./m")
