"""Two processes take the steps of one: same responses, advantages, gradients, weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import (
    PROMPTS,
    first_is_x,
    gradients,
    largest_difference,
    policy_of,
    prepared,
    trainer_of,
    weights,
    without_seconds,
)
from ranks import rendezvous

from pipeline.errors import PipelineError
from pipeline.launch.local import warm_up
from pipeline.parallel.ranks import Ranks
from pipeline.rl.rollout.episodes import Episode, Prompt


def by_token(episodes: Sequence[Episode]) -> list[float]:
    """Give each token a share that its id decides, and the whole response 1 more."""
    for episode in episodes:
        episode.earned_T = torch.tensor(episode.response_ids) / 4
    return [float(episode.earned_T.sum()) + 1.0 for episode in episodes]


CASES: dict[str, dict[str, Any]] = {
    # Adam's epsilon keeps it from dividing rounding by rounding where a gradient is zero.
    "minibatches": {"minibatches": 4, "score_scaling": "running", "score_center": "reference", "adam_epsilon": 1e-3},
    # One response in a minibatch: one process has none of it.
    "a process without a share": {"minibatches": 8, "epochs": 1, "adam_epsilon": 1e-3},
    "masked": {"truncation": "mask", "whiten_rewards": True, "kl_target": 0.01, "kl_horizon": 50, "adam_epsilon": 1e-3},
    "token by token": {
        **{"score": by_token, "token_rewards": True, "score_scaling": "running", "score_clip": 1.0},
        **{"minibatches": 4, "adam_epsilon": 1e-3},
    },
    # One held-out prompt: the second process has nothing to evaluate.
    "few held out": {"held_out": 1, "adam_epsilon": 1e-3},
}


def _language_loss(model: Any, step: int) -> torch.Tensor:
    ids = torch.tensor([[3, 4, 5 + step % 3, 6]])
    return model(input_ids=ids, labels=ids).loss


def run(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Run two iterations and return this process's view of them."""
    case = dict(case)
    held_out = [Prompt({"prompt": []}, prompt) for prompt in PROMPTS[: case.pop("held_out", 3)]]
    trainer = trainer_of(
        policy_of("lora"),
        case.pop("score", first_is_x),
        ranks=ranks,
        held_out=held_out,
        language_loss=_language_loss,
        ptx_coef=0.1,
        iterations=2,
        target_kl=0.0,
        **case,
    )
    rolled = []
    metrics = []
    estimate = trainer.estimate

    def remember(episodes: Any) -> Any:
        estimates = estimate(episodes)
        rolled.extend((e.place, list(e.response_ids), e.advantages_T.clone()) for e in episodes)
        return estimates

    trainer.estimate = remember  # type: ignore[method-assign]
    for _ in range(2):
        metrics.append(without_seconds(trainer.iterate()))
        metrics.append(trainer.evaluate()[0])
    return {
        "rolled": rolled,
        "metrics": metrics,
        "weights": weights(trainer.policy),
        "gradients": gradients(trainer),
        "kl": trainer.kl.coef,
        "scale": trainer.scale,
    }


def of_rank(index: int, meeting: dict[str, str], folder: str) -> None:
    """Be one of two processes and leave what it saw in a file."""
    os.environ |= meeting
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=index, world_size=2)
    views: dict[str, Any] = {name: run(case, Ranks.current()) for name, case in CASES.items()}
    with pytest.raises(PipelineError, match=r"rollout_batch is 1 with 2 processes"):
        trainer_of(rollout_batch=1, ranks=Ranks.current())
    drifting = trainer_of(ranks=Ranks.current(), eval_every=2)
    drifting.iterate()
    with torch.no_grad():
        next(iter(drifting.policy.trained().values())).add_(1e-4 * index)
    with pytest.raises(PipelineError, match="the processes hold different weights after iteration 2"):
        drifting.iterate()
    skipping = trainer_of(ranks=Ranks.current(), epochs=1)
    episodes, before = prepared(skipping), weights(skipping.policy)
    if index == 0:
        episodes[0].advantages_T[0] = float("nan")
    assert skipping.update(episodes)["skipped"] == 1  # on both, though one alone saw it
    assert largest_difference(before, weights(skipping.policy)) == 0
    torch.save(views, Path(folder) / f"{index}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    warm_up()
    with rendezvous() as meeting:
        torch.multiprocessing.start_processes(of_rank, (meeting, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, two: list[dict[str, Any]]) -> None:
    one = run(CASES[case], Ranks())
    first, second = two[0][case], two[1][case]
    together = sorted([*first["rolled"][:4], *second["rolled"][:4]], key=lambda row: row[0])
    together += sorted([*first["rolled"][4:], *second["rolled"][4:]], key=lambda row: row[0])
    assert len(one["rolled"]) == len(together) == 16
    for (place, ids, advantages), (other_place, other_ids, other_advantages) in zip(
        one["rolled"], together, strict=True
    ):
        assert (place, ids) == (other_place, other_ids)
        torch.testing.assert_close(advantages, other_advantages, atol=1e-5, rtol=0)
    for part in ("gradients", "weights"):
        assert largest_difference(first[part], second[part]) == 0  # the processes never drift apart
        assert largest_difference(one[part], first[part]) < 1e-5
    for mine, theirs in zip(one["metrics"], first["metrics"], strict=True):
        assert mine.keys() == theirs.keys()
        assert list(mine.values()) == pytest.approx(list(theirs.values()), abs=1e-4)
    assert first["metrics"] == second["metrics"]
    assert first["kl"] == pytest.approx(one["kl"], abs=1e-9)
    assert first["scale"].mean == pytest.approx(one["scale"].mean)
    assert first["scale"].deviation == pytest.approx(one["scale"].deviation)
