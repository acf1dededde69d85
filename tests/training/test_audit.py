"""A stage that would run as something else than what was asked for is refused: each way is broken once.

What is broken is what the stage relies on, in the library or on the way to it, so that the rest goes on as if nothing
were wrong. The same stages, not broken, are trained by `tests/stages/`; what is seen of those is looked at here too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import pipeline.models.load.adapters
import pipeline.models.load.pretrained
import pipeline.training.arguments
import pipeline.training.setup
from pipeline.kind.compute import ComputeSettings
from pipeline.models.forward_probe import ForwardProbe
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.kernels import WITHOUT_MASK
from pipeline.parallel.dims import ParallelDims
from pipeline.stage import StageContext
from pipeline.training.audit import (
    Kernels,
    adapter_problems,
    has_liger,
    kernel_problems,
    kernels_of,
    weight_problems,
)
from pipeline.training.composition import TrainerHooks

SFT = {"train": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3}}
LORA = {**SFT, "adapter": {"r": 4}}
QLORA = {**SFT, "adapter": {"r": 4, "quantize": "4bit"}}
OFF = "the adapter is switched off or folded in"
Patch = pytest.MonkeyPatch


RECOMPUTING = "activation_checkpointing_enable"
if not hasattr(PreTrainedModel, RECOMPUTING):
    RECOMPUTING = "gradient_checkpointing_enable"  # before transformers 5.23


def no_autocast(patch: Patch) -> None:
    patch.setattr("accelerate.accelerator.get_mixed_precision_context_manager", lambda *_: lambda forward: forward)


def told_nothing_of_bf16(patch: Patch) -> None:
    computing = pipeline.training.arguments._computing
    patch.setattr(pipeline.training.arguments, "_computing", lambda ctx: {**computing(ctx), "bf16": False})


def no_checkpointing(patch: Patch) -> None:
    patch.setattr(PreTrainedModel, RECOMPUTING, lambda *_, **__: None)


def unasked_checkpointing(patch: Patch) -> None:
    computing = pipeline.training.arguments._computing
    also = {"gradient_checkpointing": True}
    patch.setattr(pipeline.training.arguments, "_computing", lambda ctx: {**computing(ctx), **also})


def loaded_otherwise(patch: Patch, **changes: Any) -> None:
    load = pipeline.models.load.pretrained.load_causal_lm
    patch.setattr(pipeline.training.setup, "load_causal_lm", lambda *a, **given: load(*a, **{**given, **changes}))


def one_frozen(patch: Patch) -> None:
    load = pipeline.models.load.pretrained.load_causal_lm

    def frozen(*given: Any, **options: Any) -> Any:
        model = load(*given, **options)
        model.model.norm.weight.requires_grad_(False)
        return model

    patch.setattr(pipeline.training.setup, "load_causal_lm", frozen)


def no_adapter(patch: Patch) -> None:
    patch.setattr(pipeline.training.setup, "lora_config", lambda *_: None)


def other_rank(patch: Patch) -> None:
    configured = pipeline.models.load.adapters.lora_config

    def other(*given: Any) -> Any:
        config = configured(*given)
        config.r = 2
        return config

    patch.setattr(pipeline.training.setup, "lora_config", other)


def copies_in_the_optimizer(patch: Patch) -> None:
    create = TrainerHooks.create_optimizer

    def created(self: Any, *given: Any, **options: Any) -> Any:
        optimizer = create(self, *given, **options)
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
        return optimizer

    patch.setattr(TrainerHooks, "create_optimizer", created)


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Patch], None], str]] = {
    "no autocast": (SFT, {"precision": "bf16"}, no_autocast, "layers compute in float32, compute.precision is bf16"),
    "accelerate in fp32": (SFT, {"precision": "bf16"}, told_nothing_of_bf16, "accelerate computes in fp32"),
    "no checkpointing": (
        SFT,
        {"activation_checkpointing": True},
        no_checkpointing,
        "compute.activation_checkpointing is true, 1 pass of a layer kept its activations",
    ),
    "unasked checkpointing": (SFT, {}, unasked_checkpointing, "activations are computed twice"),
    "another attention": (
        SFT,
        {"attention": "eager"},
        lambda patch: loaded_otherwise(patch, attention="sdpa"),
        "compute.attention is eager, and the model runs sdpa",
    ),
    "a frozen weight": (SFT, {}, one_frozen, "1 weight is frozen, the recipe asks for none"),
    "no adapter": (LORA, {}, no_adapter, "no layer carries the adapter of rank 4"),
    "another rank": (LORA, {}, other_rank, "the adapter has rank [2]; expected 4, as adapter.r says"),
    "not quantised": (
        QLORA,
        {},
        lambda patch: loaded_otherwise(patch, quantize=None),
        "adapter.quantize is 4bit, 14 of 14 layers are not quantised",
    ),
    "copies of weights": (SFT, {}, copies_in_the_optimizer, "tensors that are no weights of the model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_as_asked_is_refused(
    case: str, run_stage: Callable[..., Any], chain: Any, as_input: Any, monkeypatch: Patch
) -> None:
    config, compute, broken, said = BROKEN[case]
    if "quantize" in config.get("adapter", {}):
        pytest.importorskip(
            "bitsandbytes", reason="quantised adapters need bitsandbytes: pip install 'trueup[quantize]'"
        )
    broken(monkeypatch)
    data, inputs = {"data": chain.recipe.parent / "demos.jsonl"}, {"model": as_input(chain["base"])}
    ran = run_stage("sft", config, data=data, inputs=inputs, compute=compute, expect="failed")
    (problem,) = ran.outcome.problems
    assert said in str(problem)
    assert problem.expected and problem.remedy and problem.stage == "sft"
    assert ran.outcome.bad_input
    assert not (ran.out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "compute", "seen"),
    [
        (SFT, {}, {"dtype": "float32", "recomputed": False}),
        (SFT, {"precision": "bf16", "activation_checkpointing": True}, {"dtype": "bfloat16", "recomputed": True}),
        (QLORA, {"precision": "bf16"}, {"dtype": "bfloat16", "recomputed": False}),
    ],
)
def test_what_is_as_asked_is_seen(
    config: dict[str, Any], compute: dict[str, Any], seen: dict[str, Any], run_stage: Any, chain: Any, as_input: Any
) -> None:
    if "quantize" in config.get("adapter", {}):
        pytest.importorskip(
            "bitsandbytes", reason="quantised adapters need bitsandbytes: pip install 'trueup[quantize]'"
        )
    data, inputs = {"data": chain.recipe.parent / "demos.jsonl"}, {"model": as_input(chain["base"])}
    ran = run_stage("sft", config, data=data, inputs=inputs, compute=compute)
    assert ran.outcome.runtime_report["seen"] == {"engine": "plain", "weights": 1.0, "optimizer": 1.0, **seen}


def _context(tmp_path: Any, **given: Any) -> StageContext:
    compute, dims = ComputeSettings(**given.pop("compute", {})), ParallelDims(given.pop("ranks", 1))
    nothing: Any = None
    return StageContext("one", 1, tmp_path, tmp_path, {}, nothing, compute, nothing, nothing, dims=dims)


def _tiny() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=50, **sizes))


def test_fewer_processes_than_asked_for_are_told() -> None:
    from pipeline.parallel.sharding_state import holding, sharding_problems

    model = _tiny()
    held = holding(model, torch.optim.SGD(model.parameters()))
    assert (held.engine, held.over, held.weights, held.optimizer) == ("plain", 1, 1.0, 1.0)
    assert not list(sharding_problems(ParallelDims(1), held, joined=1))
    (problem,) = sharding_problems(ParallelDims(2), held, joined=1)
    assert problem.found == "1 process joined"


def test_liger_is_believed_when_a_part_of_the_model_runs_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.arguments.uses_liger", lambda asked, **_: asked != "off")  # as on a GPU
    model = _tiny()
    asked, left = (_context(tmp_path, compute={"liger": switch}) for switch in ("on", "auto"))
    runs = kernels_of(asked, model)
    assert runs == kernels_of(left, model) == Kernels("sdpa", liger=False)
    (problem,) = kernel_problems(asked, model, runs)
    assert "no part of the llama model runs its kernels" in problem.found
    assert not list(kernel_problems(left, model, runs))

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x

    forward.__module__ = "liger_kernel.transformers.rms_norm"  # as Liger binds its functions to parts of a model
    model.model.norm.forward = forward.__get__(model.model.norm)
    assert has_liger(model)
    runs = kernels_of(asked, model)
    assert runs.liger and not list(kernel_problems(asked, model, runs))
    assert not kernels_of(_context(tmp_path, compute={"liger": "off"}), model).liger


def test_attention_asked_for_by_name_is_the_one_that_runs(tmp_path: Any) -> None:
    model = _tiny()
    asked, other = (_context(tmp_path, compute={"attention": name}) for name in ("sdpa", "eager"))
    assert not list(kernel_problems(asked, model, Kernels("sdpa", liger=False)))
    assert not list(kernel_problems(asked, model, Kernels(WITHOUT_MASK, liger=False)))  # the same kernel
    (problem,) = kernel_problems(other, model, Kernels("sdpa", liger=False))
    assert (problem.found, problem.expected) == ("compute.attention is eager, and the model runs sdpa", "eager")


def test_an_adapter_must_train_alone() -> None:
    model = get_peft_model(_tiny(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapter = Adapter(r=4)
    assert not list(adapter_problems(model, adapter))
    with model.disable_adapter():
        assert [problem.found for problem in adapter_problems(model, adapter)] == [OFF]
    model.merge_adapter()
    assert [problem.found for problem in adapter_problems(model, adapter)] == [OFF]
    model.unmerge_adapter()
    model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_(True)
    (problem,) = adapter_problems(model, adapter)
    assert problem.found.endswith("layers.0.self_attn.q_proj.base_layer.weight is trained beneath the adapter")
    (problem,) = adapter_problems(model, None)
    assert problem.found == "an adapter trains, the recipe asks for none"


def test_weights_on_another_device_are_told() -> None:
    model = _tiny()
    optimizer = torch.optim.SGD(model.parameters())
    assert not list(weight_problems(model, optimizer, "cpu"))
    (problem,) = weight_problems(model, optimizer, "cuda")
    assert (problem.found, problem.expected) == ("weights are on cpu", "cuda")


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_a_first_pass_is_watched_whatever_recomputes_it(reentrant: bool | None) -> None:
    model = _tiny().train()
    if reentrant is not None:
        getattr(model, RECOMPUTING)({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    seen = ForwardProbe(model)
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        model(input_ids=ids)
    assert seen.is_blind
    with torch.autocast("cpu", torch.bfloat16) if reentrant else nullcontext():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert seen.dtype == (torch.bfloat16 if reentrant else torch.float32)
    assert (seen.again > 0) is (reentrant is not None)
    seen.end()
    before = seen.passes
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert seen.passes == before
