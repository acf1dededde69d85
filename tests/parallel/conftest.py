"""Runs stages of the tiny world through the real runner, from one warm parent for all of a module's runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts import Store
from pipeline.errors import Interrupted, PipelineError
from pipeline.plan import make_plan, survey
from pipeline.preflight import check_plan
from pipeline.recipe import inspect, load
from pipeline.run.runner import run

Weights = dict[str, torch.Tensor]


class Watching:
    """A view of a run that keeps notes, and asks the run to stop once a stage has taken some steps."""

    def __init__(self, stop_after: int | None) -> None:
        self.stop_after, self.notes = stop_after, []
        self.steps = 0

    def stage_event(self, stage: Any, event: Any) -> None:
        if event.kind == "note":
            self.notes.append(event.text)
        if event.kind == "progress" and event.metrics:
            self.steps += 1
            if self.stop_after is not None and self.steps == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


class Spread:
    """The tiny world with stages of its own; runs begin from the finished chain's artifacts, or from nothing."""

    def __init__(self, folder: Path, chain: Any, recipe: Path) -> None:
        self.folder, self.chain, self.recipe = folder, chain, recipe
        self.notes: list[str] = []

    def store(self, name: str) -> Store:
        """Return a store of that name; a new one is a copy of the chain's."""
        root = self.folder / name
        if not root.is_dir() and self.chain is not None:
            shutil.copytree(self.chain.store.root, root, ignore=shutil.ignore_patterns(".runs"))
        return Store(root)

    def branch(self, store: str, other: str, *without: str) -> None:
        """Make another store of what one has, but for some stages: they are trained from the same parents."""
        ignored = shutil.ignore_patterns(".runs", ".work", *without)
        shutil.copytree(self.folder / store, self.folder / other, ignore=ignored)

    def train(self, store: str, stages: Sequence[str], *sets: str, stop_after: int | None = None) -> dict[str, Weights]:
        """Run stages and return their weights; none when the run was stopped, which it must be if asked to."""
        where = self.store(store)
        view = Watching(stop_after)
        seldom = "compute.checkpoint_every_s=1000"  # a stop saves one; `sets` has the last word
        plan = make_plan(load(self.recipe, overrides=(seldom, *sets)), where, only=stages)
        if stop_after is not None:
            with pytest.raises(Interrupted):
                run(plan, where, view)
        else:
            run(plan, where, view)
        self.notes = view.notes
        return {} if stop_after is not None else {name: weights_of(where, name) for name in stages}

    def refusals(self, *sets: str) -> list[str]:
        """Return what `check` refuses the recipe for, a line each."""
        where = self.store("refused")
        recipe, problems = inspect(self.recipe, overrides=sets)
        plan, more = survey(recipe, where)
        with pytest.raises(PipelineError) as error:
            check_plan(plan, where, problems=[*problems, *more])
        return [str(problem) for problem in error.value.problems]

    def start(self, parent: str, like: Weights) -> Weights:
        """Return the weights of a parent that a stage's model has too: a new head has no beginning to be found."""
        known = weights_of(self.chain.store, parent)
        return {name: known[name] for name in like if name in known}

    def history(self, store: str, name: str) -> list[dict[str, float]]:
        """Return the log of a stage's training."""
        text = (self.store(store).artifacts(name)[-1].path / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @staticmethod
    def difference(one: Weights, other: Weights) -> float:
        """Return the norm of the difference over all weights the first has together."""
        return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def weights_of(store: Store, name: str) -> Weights:
    """Return the weights of a stage's newest artifact."""
    folder = store.artifacts(name)[-1].path
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


@pytest.fixture(scope="session")
def spread_world(
    tmp_path_factory: pytest.TempPathFactory, chain: Any, make_tiny_world: Callable[[Path], Path]
) -> Callable[[str], Spread]:
    """Make a tiny world whose recipe has further stages in place of the report."""

    def make(stages: str) -> Spread:
        folder = tmp_path_factory.mktemp("spread")
        recipe = make_tiny_world(folder / "world")
        before, after = recipe.read_text().split("  report:\n")
        recipe.write_text(before.rstrip() + stages + "compute:" + after.split("compute:")[1])
        return Spread(folder, chain, recipe)

    return make


PRETRAIN = """
name: pretrain
seed: 7
data: {corpus: {path: corpus.jsonl}, demos: {path: demos.jsonl}}
stages:
  tokenizer: {kind: tokenizer, data: corpus, vocab_size: 360}
  base:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {type: llama, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 64}
    train: &train {max_steps: 5, batch_size: 16, learning_rate: 1.0e-2, max_grad_norm: 0.5, adam_epsilon: 1.0e-4}
  gpt2:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {type: gpt2, n_embd: 32, n_layer: 3, n_head: 4, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}
    train: *train
  more: {kind: pretrain, data: corpus, init: base, train: *train}
  sft: {kind: sft, data: demos, model: base, train: *train}
compute: {threads: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def pretrain_world(tmp_path_factory: pytest.TempPathFactory, make_tiny_world: Callable[[Path], Path]) -> Spread:
    """A tokenizer and models of three layers, from nothing."""
    folder = tmp_path_factory.mktemp("pretrain")
    recipe = make_tiny_world(folder / "world").with_name("pretrain.yaml")
    recipe.write_text(PRETRAIN)
    return Spread(folder, None, recipe)
