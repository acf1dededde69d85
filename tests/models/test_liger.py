"""Liger's kernels compute what the stages compute without them; `make test-liger` runs this without a GPU.

The kernels themselves run, in Triton's interpreter, which is slow: two steps of a tiny model per kind of stage.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("liger_kernel", reason="Liger is not installed: make test-liger")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton interprets kernels only with TRITON_INTERPRET=1: make test-liger", allow_module_level=True)

import interpreted  # noqa: F401  completes the interpreter

from pipeline.models.load.kernels import apply_liger
from pipeline.training import audit

TRAIN = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "adam_epsilon": 1e-4}
DRAWS = {**TRAIN, "max_new_tokens": 4, "num_generations": 4}
REWARD = """
def letters(completions, **columns):
    return [float(sum(map(ord, str(one))) % 7) for one in completions]
"""
STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("demos", "base", {"train": TRAIN}),
    "sft packed": ("demos", "base", {"train": {**TRAIN, "mode": "packed"}}),
    "sft with an adapter": ("demos", "base", {"adapter": {"r": 4}, "train": TRAIN}),
    "reward": ("pairs", "sft", {"train": TRAIN}),
    "dpo": ("pairs", "sft", {"train": TRAIN}),
    "kto": ("pairs", "sft", {"train": {**TRAIN, "batch_size": 8}}),
    "grpo": ("asks", "sft", {"reward_functions": ["rewards.py:letters"], "train": DRAWS}),
    "rloo": ("asks", "sft", {"reward_functions": ["rewards.py:letters"], "train": DRAWS}),
    "ppo": (
        "asks",
        "sft",
        {
            "reward_functions": ["rewards.py:letters"],
            "train": {"rollout_batch": 4, "iterations": 1, "epochs": 2, "max_new_tokens": 4, "learning_rate": 1e-3},
        },
    ),
}


def _apart(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in its own process, and the kernels launched: Liger changes classes for good."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        from triton.runtime import interpreter

        launched: set[str] = set()
        plain = interpreter.GridExecutor.__call__

        def note(executor: Any, *args: Any, **options: Any) -> Any:
            launched.add(executor.fn.__name__)
            return plain(executor, *args, **options)

        interpreter.GridExecutor.__call__ = note
        theirs.send((work(), launched))

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return pytest.fail("the process broke; its traceback stands above")
    finally:
        process.join()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("case", STAGES)
def test_a_stage_with_liger_takes_the_steps_it_takes_without(
    case: str, chain: Any, as_input: Callable[..., Any], run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    data, parent, config = STAGES[case]
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    given = {"data": {"data": chain.recipe.parent / f"{data}.jsonl"}, "inputs": {"model": as_input(chain[parent])}}

    def ran(switch: str) -> tuple[Path, bool]:
        done = run_stage(case.split()[0], config, **given, compute={"liger": switch}, name=switch)
        return done.out, done.outcome.runtime_report["liger"]

    (off, told_off), none = _apart(lambda: ran("off"))
    (on, told_on), launched = _apart(lambda: ran("on"))
    assert (told_off, told_on, none) == (False, True, set())
    assert {"_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"} <= launched
    plain, kernels, start = _weights(off), _weights(on), _weights(chain[parent].path)
    moved = sum(float((plain[name] - start[name]).square().sum()) for name in plain if name in start) ** 0.5
    apart = sum(float((plain[name] - kernels[name]).square().sum()) for name in plain) ** 0.5
    print(f"{case}: {apart / moved:.1e} of what the steps changed, by {', '.join(sorted(launched))}")
    assert moved > 0
    assert apart < 1e-4 * moved


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_a_model_of_a_family_answers_the_same(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model(family, **sizes, intermediate_size=48, vocab_size=40, head_dim=16)
    ids = torch.arange(24).reshape(2, 12)

    def both() -> tuple[bool, bool, float]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        plain, before = model(input_ids=ids).logits, audit.has_liger(model)
        apply_liger(model)
        return before, audit.has_liger(model), float((model(input_ids=ids).logits - plain).abs().max())

    (before, after, apart), launched = _apart(both)
    assert (before, after) == (False, True)
    assert apart < 1e-5
    assert "_rms_norm_forward_kernel" in launched
