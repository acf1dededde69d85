"""A step whose weights, gradients or optimizer states are sharded is a plain step: ZeRO-1, 2, 3 and FSDP2 on gloo.

Two processes each; the plain side is one process. What is saved by one goes on with another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from crossing import crossed, selected
from ppo_world import PROMPTS, first_is_x, largest_difference, policy_of, trainer_of
from ranks import be_rank, run_ranks

from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.zero.config import deepspeed_config
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.ppo.state import load_state, newest_state, save_state
from pipeline.rl.rollout.episodes import Prompt
from pipeline.rl.train_engines.engines import PlainEngine, TrainEngine

pytestmark = pytest.mark.xdist_group("sharded")  # one plain side, and two processes at a time, for all

ITERATIONS = 2
CASES: dict[str, dict[str, Any]] = {
    # Minibatches of two rows in micro-batches of a row or two: processes have different numbers of passes.
    "full": {"minibatches": 4, "token_budget": 12, "max_grad_norm": 0.05},
    "separate": {"minibatches": 2, "score_scaling": "running", "max_grad_norm": 0.05},
    "lora": {"minibatches": 8, "epochs": 1, "ptx_coef": 0.5, "weight_decay": 0.1},
    "warming up": {"minibatches": 2, "critic_warmup": 1, "weight_decay": 0.1, "entropy_coef": 0.01},
}
KINDS = {"zero-1": 1, "zero-2": 2, "zero-3": 3, "fsdp2": 0}
SUITE = {"zero-3": ("full", "lora"), "fsdp2": ("separate", "warming up")}
"""What the suite runs: weights, gradients and optimizer states are sharded. `make test-matrix` runs all with all."""
RESUMED = ("full", "separate")
"""Cases whose state goes on from plain to sharded and back."""
PAIRS = [(kind, case) for kind, cases in SUITE.items() for case in cases]


def _language_loss(model: Any, step: int) -> torch.Tensor:
    ids = torch.tensor([[3, 4, 5 + step % 3, 6]])
    return model(input_ids=ids, labels=ids).loss


def stepper_of(kind: str, policy: Any, settings: PPOSettings, ranks: Ranks) -> TrainEngine:
    if kind == "plain":
        return PlainEngine(policy, settings, ranks)
    from accelerate.state import AcceleratorState

    from pipeline.rl.train_engines.sharded import FsdpEngine, ZeroEngine

    AcceleratorState._reset_state()  # a stage has one trainer; this process has several in turn
    if kind == "fsdp2":
        return FsdpEngine(policy, settings, ranks)
    return ZeroEngine(policy, settings, ranks, deepspeed_config(ParallelDims(zero=KINDS[kind]), "fp32"))


def trainer_with(kind: str, case: str, ranks: Ranks) -> Any:
    again = kind != "plain" and case in ("separate", "lora")  # sharded and computed again, against neither
    which = case if case in ("full", "separate", "lora") else "full"
    policy = policy_of(which, value_gradient=case != "lora", recompute=again)
    # Adam's epsilon keeps it from dividing rounding by rounding where a gradient is zero.
    settings: dict[str, Any] = {"iterations": ITERATIONS, "target_kl": 0.0, "adam_epsilon": 1e-3, "learning_rate": 1e-2}
    settings |= {"max_skipped": 100, **CASES[case]}
    made = trainer_of(
        policy,
        first_is_x,
        ranks=ranks,
        held_out=[Prompt({"prompt": []}, PROMPTS[0])],  # the second process has nothing to evaluate
        language_loss=_language_loss,
        **settings,
    )
    if kind != "plain":
        made.train_engine = stepper_of(kind, made.policy, made.settings, ranks)
    return made


def run(kind: str, case: str, folder: Path, ranks: Ranks, *, resume: Path | None = None) -> dict[str, Any]:
    """Run the iterations, the last one after a resume if there is something to resume; save after the first."""
    trainer = trainer_with(kind, case, ranks)
    if resume is not None:
        load_state(trainer, resume)
    metrics = []
    while trainer.iteration < ITERATIONS:
        iteration_metrics = trainer.iterate()
        metrics.append({name: value for name, value in iteration_metrics.items() if not name.startswith("seconds_")})
        metrics.append(trainer.evaluate()[0])
        if trainer.iteration == 1:
            save_state(trainer, folder / f"{kind}-{case.replace(' ', '-')}", {})

    weights, steps = trainer.train_engine.weights(), trainer.steps
    episodes = trainer.roll_out()
    trainer.measure(episodes)
    trainer.estimate(episodes)
    for episode in episodes:
        episode.advantages_T = episode.advantages_T * float("nan")
    skipped = trainer.update(episodes)["skipped"]
    return {
        "metrics": metrics,
        "weights": weights,
        "moments": trainer.train_engine.moments(),
        "steps": steps,
        "skipped": skipped,
        "after": trainer.train_engine.weights(),
    }


def main(kind: str, folder: str, *cases: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    init_process_group(cpu=True, deepspeed=kind.startswith("zero"))
    ranks = Ranks.current()
    assert ranks.count == 2
    results = {case: run(kind, case, Path(folder), ranks) for case in cases}
    # What one plain process saved goes on here, sharded.
    for case in (one for one in RESUMED if one in cases):
        plain = newest_state(Path(folder) / f"plain-{case}")
        results[f"{case} from plain"] = run(kind, case, Path(folder) / "again", ranks, resume=plain)
    torch.save(results, Path(folder) / f"{kind}-{ranks.index}.pt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    return folder, {case: run("plain", case, folder, Ranks()) for case in CASES}


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest, plain: tuple[Path, dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    if request.param.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    folder, kind = plain[0], request.param
    files = [folder / f"{kind}-{rank}.pt" for rank in (0, 1)]
    if not all(file.is_file() for file in files):
        run_ranks(__file__, kind, str(folder), *selected(request, "case"))
    return kind, [torch.load(file, weights_only=False) for file in files]


@crossed("sharded, case", KINDS, CASES, PAIRS, indirect=["sharded"])
def test_a_sharded_step_is_a_plain_step(
    case: str, plain: tuple[Path, dict[str, Any]], sharded: tuple[str, list[dict[str, Any]]]
) -> None:
    one, (first, second) = plain[1][case], (results[case] for results in sharded[1])
    assert first["steps"] == one["steps"] > 0
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert largest_difference(one["weights"], first["weights"]) < 2e-5
    for mine, theirs in zip(one["metrics"], first["metrics"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    # A step that is not finite leaves weights and moments alone, in every process.
    assert first["skipped"] == one["skipped"] > 0
    assert largest_difference(first["weights"], first["after"]) == 0


@crossed("sharded, case", KINDS, CASES, PAIRS, indirect=["sharded"])
def test_moments_come_back_whole(
    case: str, plain: tuple[Path, dict[str, Any]], sharded: tuple[str, list[dict[str, Any]]]
) -> None:
    one, first = plain[1][case]["moments"], sharded[1][0][case]["moments"]
    assert largest_difference({name: t.float() for name, t in one.items()}, first) < 1e-5


@crossed("sharded, case", KINDS, RESUMED, PAIRS, indirect=["sharded"])
def test_an_unsharded_state_goes_on_sharded_and_back(
    case: str, plain: tuple[Path, dict[str, Any]], sharded: tuple[str, list[dict[str, Any]]]
) -> None:
    folder, wholes = plain
    kind, (first, _) = sharded
    assert largest_difference(wholes[case]["weights"], first[f"{case} from plain"]["weights"]) < 2e-5
    state = newest_state(folder / f"{kind}-{case}")
    assert state is not None and json.loads((state / "state.json").read_text())["iteration"] == 1
    back = run("plain", case, folder / "back", Ranks(), resume=state)
    assert largest_difference(wholes[case]["weights"], back["weights"]) < 2e-5


if __name__ == "__main__":
    be_rank(main)
