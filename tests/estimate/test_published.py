"""Configurations that come with trueup give the parameters that their publishers name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.estimate.published import FILE, published_config
from pipeline.estimate.shape import shape_of

ENTRIES: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
PUBLISHED = {
    # Model cards and the hub's count of their safetensors; a tied head counts once.
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "HuggingFaceH4/zephyr-7b-beta": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    # Biderman et al. 2023, arXiv:2304.01373, table 1.
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-270m": 268_098_176,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
}


def _parameters(config: dict[str, Any]) -> int:
    """Return the parameters by formula, else of transformers' own modules: all layers are as large as the second."""
    shape = shape_of(config)
    if shape is not None:
        return shape.parameters
    first, both = (_built(config, layers) for layers in (1, 2))
    return first + (int(config["num_hidden_layers"]) - 1) * (both - first)


def _built(config: dict[str, Any], layers: int) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"} | {"num_hidden_layers": layers}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items(), ids=str)
def test_the_shape_has_the_published_parameters(name: str, parameters: int) -> None:
    config = published_config(name.upper())  # the hub takes names in any case
    assert config is not None
    assert _parameters(config) == parameters


def test_every_configuration_is_compared_with_a_published_number() -> None:
    sizes = {
        json.dumps({**config, "max_position_embeddings": 0}) for config in map(published_config, PUBLISHED) if config
    }
    assert {json.dumps({**entry["config"], "max_position_embeddings": 0}) for entry in ENTRIES} == sizes
    names = [name for entry in ENTRIES for name in entry["names"]]
    assert len({name.lower() for name in names}) == len(names)


def test_a_model_that_is_not_known_has_none() -> None:
    assert published_config("nobody/nothing") is None
