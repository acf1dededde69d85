"""A pipeline of two processes takes the steps of one, resumes to the same weights, and is refused where it must be."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.stage import KINDS
from pipeline.training.pipelined_fields import refuse_unused

pytestmark = pytest.mark.xdist_group("sharded")  # two processes at a time


def _recipe(file: Path, compute: dict[str, Any], *, tied: bool = False, steps: int = 5) -> Path:
    recipe = yaml.safe_load(file.read_text())
    base = recipe["stages"]["base"]
    base["model"] |= {"num_hidden_layers": 3, "tie_word_embeddings": tied}
    base["train"] = {"max_steps": steps, "batch_size": 16, "learning_rate": 1e-2, "max_grad_norm": 0.5}
    base["compute"] = compute
    recipe["stages"] = {name: recipe["stages"][name] for name in ("tokenizer", "base")}
    made = file.with_name(f"{compute.get('pipeline_parallel', 1)}-{tied}-{steps}.yaml")
    made.write_text(yaml.safe_dump(recipe))
    return made


def _run(command: Any, recipe: Path, store: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], Path]:
    ended = command("run", recipe, "--store", store, cwd=recipe.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = Store(store).artifacts("base")[-1].path
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / "model.safetensors"), rows, folder


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a tensor relative to its norm."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


PIPELINE = {"processes": 2, "pipeline_parallel": 2, "micro_batch": 4}


@pytest.mark.parametrize("tied", [False, True])
def test_a_pipeline_takes_the_steps_of_one_process(
    tied: bool, tiny_recipe: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    one, rows, _ = _run(command, _recipe(tiny_recipe, {"processes": 1}, tied=tied), tmp_path / "one")
    two, same, folder = _run(command, _recipe(tiny_recipe, PIPELINE, tied=tied), tmp_path / "two")
    assert _difference(one, two) < 1e-4
    for mine, theirs in zip(rows, same, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 3


def test_a_pipeline_that_was_stopped_resumes_to_the_same_weights(
    tiny_recipe: Path, tmp_path: Path, command: Any
) -> None:
    recipe = _recipe(tiny_recipe, {**PIPELINE, "checkpoint_every_s": 0.1}, steps=60)
    whole, rows, _ = _run(command, recipe, tmp_path / "whole")
    process = command.start("run", recipe, "--store", tmp_path / "cut", cwd=recipe.parent)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").rglob("whole.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped as asked" in out + err
    ended = command("run", recipe, "--store", tmp_path / "cut", cwd=recipe.parent)
    assert ended.returncode == 0 and "resumes at step" in ended.stdout + ended.stderr
    again, same, _ = _run(command, recipe, tmp_path / "cut")  # runs nothing, reads the artifact
    assert _difference(whole, again) == 0
    assert rows == same


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"processes": 2, "pipeline_parallel": 3}, "compute.pipeline_parallel is 3"),
        ({"processes": 2, "pipeline_parallel": 2, "zero": 1}, "1 with ZeRO or FSDP"),
        ({"processes": 4, "pipeline_parallel": 4}, "compute.pipeline_parallel 4 for 3 layers"),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused(
    compute: dict[str, Any], said: str, tiny_recipe: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    ended = command("run", _recipe(tiny_recipe, compute), "--store", tmp_path / "s", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert said in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not Store(tmp_path / "s").artifacts("base")


def test_fields_a_pipeline_would_ignore_are_refused() -> None:
    train = KINDS["pretrain"].config.model_fields["train"].annotation
    refuse_unused(train.model_validate({"adam_epsilon": 1e-6}))
    with pytest.raises(PipelineError, match=r"train\.label_smoothing_factor with compute\.pipeline_parallel"):
        refuse_unused(train.model_validate({"label_smoothing_factor": 0.1}))
