"""GRPO and RLOO on two processes practise on the prompts of one process, in the same order, each on half of them.

Weights cannot be compared: what a process is paid depends on which one it is. Compared is what the rewards see, and
that a group is normalised as a whole when its responses were sampled by two processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("on policy processes")  # what its fixtures train is trained once

# Batches of 16 responses are sampled at a time and learned from in two optimizer steps, two rounds of them.
TRAIN = "max_steps: 4, batch_size: 8, generation_batch_size: 16, max_new_tokens: 4, logging_steps: 1"
TRAIN += ", top_k: 1"  # the likeliest token always: what is sampled can be compared
STAGE = """
  practice:
    kind: {kind}
    data: asks
    model: sft
    reward: {{function: gold.py:of_process}}
    train: {{{train}, num_generations: {group}}}
"""
SEES = """

def of_process(prompts, completions, **columns):
    import json
    import os
    import pathlib

    rank = os.environ.get("RANK", "0")
    asked = [turns[-1]["content"] for turns in prompts]
    said = [turns[-1]["content"] for turns in completions]
    seen = pathlib.Path(__file__).with_name("seen-{ranks}-" + rank)
    is_later = seen.exists()
    with seen.open("a") as file:
        file.write(json.dumps([asked, said]) + "\\n")
    return [float(rank) + i % 2 / 2 * is_later for i in range(len(completions))]
"""


def seen(folder: Path, ranks: str) -> list[list[list[list[str]]]]:
    """Return the prompts each process was given rewards for, and the responses, by process and round."""
    files = sorted(folder.glob(f"seen-{ranks}-*"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def _practised(world: Any, sharding: str) -> list[list[list[list[str]]]]:
    """Train with one process and with two; return what each was given rewards for, the single one's first."""
    gold = world.recipe.parent / "gold.py"
    text = gold.read_text()
    for ranks, sets in (("1", ()), ("2", ("compute.processes=2", f"compute.{sharding}"))):
        gold.write_text(text + SEES.replace("{ranks}", ranks))
        world.train(ranks, ("practice",), "compute.micro_batch=4", *sets)
    return [*seen(gold.parent, "1"), *seen(gold.parent, "2")]


@pytest.mark.parametrize(
    ("kind", "group", "sharding"),
    [
        pytest.param("grpo", 4, "zero=0", marks=pytest.mark.whole),
        ("grpo", 16, "zero=3"),
        pytest.param("rloo", 4, "zero=2", marks=pytest.mark.whole),
        pytest.param("grpo", 16, "fsdp=true", marks=pytest.mark.whole),
        ("rloo", 4, "fsdp=true"),
    ],
)
def test_two_processes_share_the_prompts_of_one(
    kind: str, group: int, sharding: str, spread_world: Callable[[str], Any]
) -> None:
    if sharding in ("zero=2", "zero=3"):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    world = spread_world(STAGE.format(kind=kind, group=group, train=TRAIN))
    alone, first, second = _practised(world, sharding)
    assert [len(asked) for asked, _ in alone] == [16, 16]
    assert all(len(set(asked[i : i + group])) == 1 for asked, _ in alone for i in range(0, 16, group))
    assert [one + other for (one, _), (other, _) in zip(first, second, strict=True)] == [asked for asked, _ in alone]
    assert first[0][1] + second[0][1] == alone[0][1] and any(alone[0][1])  # what the start says to them
    # trl logs rewards once for each round.
    history = [row for row in world.history("2", "practice") if "reward" in row]
    # In the first round the responses of one process are worth 1, of the other nothing: groups of one process do not
    # deviate, a group that both have sampled does. In the second all groups deviate, for a run must teach something.
    assert [row["reward"] for row in history] == pytest.approx([0.5, 0.75])
    assert [row["frac_reward_zero_std"] for row in history] == [0 if group == 16 else 1, 0]


@pytest.mark.parametrize(
    ("kind", "sharding"), [("grpo", "fsdp=true"), pytest.param("rloo", "zero=3", marks=pytest.mark.whole)]
)
def test_two_processes_sample_with_our_own_loop_what_one_does(
    kind: str, sharding: str, spread_world: Callable[[str], Any]
) -> None:
    """At random, not greedily: the random numbers of a response depend on its prompt and its place among all."""
    train = f"{TRAIN.removesuffix(', top_k: 1')}, temperature: 1.5"
    stage = STAGE.format(kind=kind, group=4, train=train).replace(
        "model: sft", "model: sft\n    rollout_engine: batched"
    )
    alone, first, second = _practised(spread_world(stage), sharding)
    assert first[0][1] + second[0][1] == alone[0][1]
    assert len(set(alone[0][1])) > 8  # of 16 responses to 4 prompts


WORDS = """

def words(completions, **columns):
    return [float(len(turns[-1]["content"].split())) for turns in completions]
"""
REFERENCE = """
  full:
    kind: {kind}
    data: asks
    model: sft
    reward: {{function: gold.py:words}}
    train: {{{train}, num_generations: 4, beta: 0.05, learning_rate: 1.0e-2}}
  lora:
    kind: {kind}
    data: asks
    model: sft
    adapter: {{r: 4}}
    reward: {{function: gold.py:words}}
    train: {{{train}, num_generations: 4, beta: 0.05, learning_rate: 1.0e-1}}
"""


@pytest.mark.parametrize("kind", ["grpo", pytest.param("rloo", marks=pytest.mark.whole)])
def test_a_sharded_reference_is_the_start(kind: str, spread_world: Callable[[str], Any]) -> None:
    """Policy and reference are one model before the first step, and two after it."""
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    train = TRAIN.replace("max_steps: 4", "max_steps: 6").replace(", top_k: 1", "")  # answers of a group differ
    world = spread_world(REFERENCE.format(kind=kind, train=train))
    gold = world.recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + WORDS)
    world.train("parts", ("full", "lora"), "compute.micro_batch=4", "compute.processes=2", "compute.zero=3")
    for name in ("full", "lora"):
        kl = [row["kl"] for row in world.history("parts", name) if "kl" in row]
        print(name, kl)
        assert kl[0] == pytest.approx(0, abs=1e-6)
        assert max(kl) > 1e-3
        assert world.store("parts").artifacts(name)[-1].manifest.runtime["ran"]["loaded"] == "sharded"
