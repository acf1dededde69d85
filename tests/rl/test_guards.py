"""Every known way to fail is noticed, acted upon, and told with its cause and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ppo_world import largest_difference, policy_of, prepared, trainer_of, weights

from pipeline.errors import PipelineError
from pipeline.rl.ppo.control import KLController
from pipeline.rl.ppo.guards import Guards, Stopped
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.rollout.episodes import Episode

HEALTHY = {
    "kl": 0.5,
    "kl_k3": 0.5,
    "length": 10.0,
    "eos_rate": 0.9,
    "distinct_2": 0.9,
    "length_corr": 0.1,
    "reward": 1.0,
    "entropy": 2.0,
    "score_std": 1.0,
    "explained_variance": 0.5,
    "epochs_run": 4.0,
}
START = {**HEALTHY, "kl": 0.0, "kl_k3": 0.0, "reward": 0.0}


def _told(iterations: Sequence[dict[str, float]], **settings: Any) -> list[str]:
    guards, notices = Guards(), []
    for number, metrics in enumerate(iterations):
        notices += guards.look(
            {**START, **metrics} if not number else {**HEALTHY, **metrics}, PPOSettings(**settings), number
        )
    return notices


def test_a_healthy_run_is_told_nothing() -> None:
    assert _told([{}] * 30) == []


@pytest.mark.parametrize(
    ("metrics", "cause", "remedy"),
    [
        ({"eos_rate": 0.1}, "only 10% of responses end by themselves", "raise max_new_tokens"),
        ({"eos_rate": 0.4}, "more than half of the responses run to max_new_tokens", "set overlong_buffer"),
        ({"distinct_2": 0.1}, "responses repeat themselves", "raise kl_coef"),
        (
            {"length": 16.0, "length_corr": 0.8, "reward": 1.0},
            "the reward pays for length",
            "the reward model's report",
        ),
        ({"entropy": 0.19}, "entropy fell below a tenth of its start", "raise entropy_coef"),
        ({"score_std": 6.0}, "scores spread by more than 5", "score_scaling: running"),
        ({"score_std": 0.01}, "scores hardly differ", "score_scaling: running"),
    ],
)
def test_a_notice_names_cause_and_remedy_and_comes_once(metrics: dict[str, float], cause: str, remedy: str) -> None:
    notices = _told([{}, metrics, metrics, {}, metrics])
    assert len(notices) == 1
    assert cause in notices[0] and remedy in notices[0]


def test_what_only_looks_like_a_failure_is_not_told() -> None:
    assert _told([{}, {"length": 16.0, "length_corr": 0.8, "reward": -1.0}]) == []  # longer, but not paid for
    assert _told([{}, {"score_std": 0.01}], score_scaling="running") == []
    assert _told([{}, *[{"explained_variance": -1.0}] * 9]) == []  # the value function has only begun
    late = [{}, *[{"explained_variance": -1.0}] * 10]
    assert "the value function explained nothing in 5 iterations" in _told(late)[0]
    wavering = [{"explained_variance": -1.0 if i % 5 else 0.1} for i in range(40)]
    assert _told([{}, *wavering]) == []
    assert _told(late, critic_warmup=5) == []


def test_a_reference_that_is_not_the_start_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"differ by 0.3 nats before the first update"):
        Guards().check_start({**START, "kl": 0.3}, ends_are_taught=True)
    with pytest.raises(PipelineError, match="before the first update"):
        Guards().check_start({**START, "kl_k3": 0.3}, ends_are_taught=True)
    Guards().check_start(START, ends_are_taught=True)


def test_responses_that_never_end_are_an_error_only_where_the_template_never_taught_it() -> None:
    rare = {**START, "eos_rate": 0.19}
    Guards().check_start(rare, ends_are_taught=True)
    Guards().check_start({**START, "eos_rate": 0.2}, ends_are_taught=False)
    with pytest.raises(PipelineError, match=r"only 19% of responses end by themselves.*Put the end token inside"):
        Guards().check_start(rare, ends_are_taught=False)


def test_a_reference_that_is_not_the_start_is_found_in_the_first_iteration() -> None:
    trainer = trainer_of()
    with torch.no_grad():
        for parameter in trainer.policy.reference.parameters():
            parameter.mul_(1.5)
    before = weights(trainer.policy)
    with pytest.raises(PipelineError, match="before the first update"):
        trainer.iterate()
    assert largest_difference(before, weights(trainer.policy)) == 0


@pytest.mark.parametrize("metrics", [{"kl": 60.0}, {"kl_k3": 6.0}], ids=["per response", "per token"])
def test_a_policy_that_left_its_reference_three_times_in_a_row_is_stopped(metrics: dict[str, float]) -> None:
    with pytest.raises(Stopped) as stopped:
        _told([{}, metrics, metrics, metrics])
    assert "nats per response away from its reference" in stopped.value.problem.found
    assert "lower train.learning_rate, raise train.kl_coef" in stopped.value.problem.remedy
    assert _told([{}, metrics, metrics, {}, metrics, metrics]) == []


def test_a_divergence_that_stays_negative_is_stopped_as_a_disagreement_of_laws() -> None:
    with pytest.raises(Stopped) as stopped:
        _told([{}, *[{"kl": -0.5}] * 5])
    assert "not sampled from the law they are scored with" in stopped.value.problem.found
    assert "train.temperature: 1.0" in stopped.value.problem.remedy
    assert _told([{}, *[{"kl": -0.5}] * 4, {}, *[{"kl": -0.5}] * 4]) == []


def test_rollouts_cut_short_three_times_in_a_row_halve_the_rates() -> None:
    guards = Guards()
    for number in range(7):
        notices = guards.look({**START, "epochs_run": 1.0}, PPOSettings(), number)
        assert bool(notices) == (number in (2, 5))
    assert guards.rate == 0.25
    trainer = trainer_of(learning_rate=4e-3)
    trainer.guards = guards
    trainer._set_rates()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3, 5e-3])


def _poison(trainer: Any, episodes: Sequence[Episode], value: float) -> None:
    """Put one number that is not finite into one micro-batch."""
    episodes[3].advantages_T[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_micro_batch_that_is_not_finite_skips_the_whole_step(kind: str, value: float) -> None:
    # Two minibatches: one is poisoned, the other not.
    trainer = trainer_of(policy_of(kind), epochs=1, minibatches=2, token_budget=1)
    trainer.iterate()  # so that Adam has moments
    episodes = prepared(trainer)
    before, clean = weights(trainer.policy), trainer.steps
    _poison(trainer, episodes, value)
    metrics = trainer.update(episodes)
    assert (metrics["skipped"], metrics["steps"]) == (1, 1)
    assert trainer.steps == clean + 1
    assert all(value == value and abs(value) != float("inf") for value in metrics.values()), metrics
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(trainer.policy).values())
    assert largest_difference(before, weights(trainer.policy)) > 0


def test_a_skipped_step_leaves_weights_and_moments_as_they_were() -> None:
    trainer = trainer_of(epochs=1, token_budget=1)
    trainer.iterate()
    episodes = prepared(trainer)
    _poison(trainer, episodes, float("nan"))
    before = weights(trainer.policy)
    moments = {
        f"{i}{name}": tensor.clone()
        for i, entry in trainer.optimizer.state_dict()["state"].items()
        for name, tensor in entry.items()
    }
    assert trainer.update(episodes)["skipped"] == 1
    assert trainer.guards.skipped == 1
    assert largest_difference(before, weights(trainer.policy)) == 0
    after = {
        f"{i}{name}": tensor
        for i, entry in trainer.optimizer.state_dict()["state"].items()
        for name, tensor in entry.items()
    }
    assert largest_difference(moments, after) == 0
    trainer.iterate()
    assert trainer.guards.skipped == 0  # only those in a row count


def test_a_gradient_that_overflows_is_skipped_though_its_loss_is_finite() -> None:
    trainer = trainer_of(epochs=1)
    episodes, before = prepared(trainer), weights(trainer.policy)
    trainer.policy.policy_parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    assert trainer.update(episodes)["skipped"] == 1
    assert largest_difference(before, weights(trainer.policy)) == 0


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    trainer = trainer_of(epochs=4, max_skipped=3)
    episodes = prepared(trainer)
    _poison(trainer, episodes, float("nan"))
    with pytest.raises(PipelineError, match=r"3 optimizer steps in a row.*Lower train.learning_rate") as raised:
        trainer.update(episodes)
    assert len(str(raised.value).splitlines()) == 1


def test_a_learning_rate_a_hundred_times_too_high_trips_target_kl_and_then_stops() -> None:
    calm = trainer_of(epochs=4, learning_rate=1e-4, rollout_batch=32)
    assert calm.iterate()["epochs_run"] == 4
    wild = trainer_of(epochs=4, learning_rate=3e-2, rollout_batch=32, iterations=30, kl_coef=1e-9, max_ratio=0.0)
    with pytest.raises(Stopped, match="away from its reference") as stopped:
        for metrics in wild.iterations():
            if wild.iteration == 1:
                assert metrics["epochs_run"] < 4
                assert metrics["steps"] < 4
            wild.guards.look(metrics, wild.settings, wild.iteration - 1)
    assert "lower train.learning_rate" in stopped.value.problem.remedy
    assert wild.guards.high_kl == 3


def test_the_update_that_trips_target_kl_is_not_taken() -> None:
    trainer = trainer_of(epochs=4, learning_rate=3e-2, rollout_batch=32)
    after_first: list[dict[str, torch.Tensor]] = []
    trainer.on_step = lambda done, total: after_first.append(weights(trainer.policy))
    metrics = trainer.iterate()
    assert metrics["epochs_run"] == len(after_first) < 4
    assert largest_difference(after_first[-1], weights(trainer.policy)) == 0
    free = trainer_of(epochs=4, learning_rate=3e-2, rollout_batch=32, target_kl=0.0, max_ratio=0.0)
    assert free.iterate()["epochs_run"] == 4


def test_one_wild_ratio_cuts_the_rollout_short_too() -> None:
    wild = trainer_of(epochs=4, learning_rate=3e-2, rollout_batch=32, target_kl=0.0, max_ratio=2.0)
    metrics = wild.iterate()
    assert metrics["epochs_run"] < 4
    assert metrics["ratio_max"] > 2.0  # it was seen, and the step it came with was not taken
    assert metrics["steps"] == metrics["epochs_run"]


def test_the_price_of_divergence_rises_before_the_run_is_stopped_for_it() -> None:
    guards, kl, far = Guards(), KLController(0.1), {**HEALTHY, "kl": 60.0}
    told = [guards.look(far, PPOSettings(), number, kl) for number in range(3)]
    assert told[:2] == [[], []] and "kl_coef is now 0.2" in told[2][0]
    assert kl.coef == pytest.approx(0.2)
    guards.look(far, PPOSettings(), 3, kl)
    guards.look(far, PPOSettings(), 4, kl)
    with pytest.raises(Stopped, match="away from its reference"):
        guards.look(far, PPOSettings(), 5, kl)
    free = KLController(0.0)
    for number in range(3):
        Guards(high_kl=number).look(far, PPOSettings(), number, free)
    assert free.coef == 0.02  # twice nothing would be nothing


def test_a_reward_that_rises_while_what_is_watched_falls_is_told_and_then_stopped() -> None:
    def seen(reward: float, watch: float) -> dict[str, float]:
        return {"eval_reward": reward, "eval_watch": watch, "eval_watch_se": 0.1}

    guards = Guards()
    assert guards.look_at_evaluation({"eval_reward": 1.0}) == []  # nothing is watched
    assert guards.look_at_evaluation(seen(1.0, 2.0)) == []
    assert guards.look_at_evaluation(seen(2.0, 1.85)) == []  # within two standard errors
    assert guards.look_at_evaluation(seen(0.5, 1.0)) == []  # both fell
    (text,) = guards.look_at_evaluation(seen(2.0, 1.7))
    assert "rose from 1 to 2 while what is watched fell from 2 to 1.7" in text and "reward_combine: min" in text
    assert guards.look_at_evaluation(seen(2.0, 1.7)) == []
    with pytest.raises(Stopped, match="the reward is being gamed"):
        guards.look_at_evaluation(seen(2.0, 1.7))


def test_a_skipped_step_hands_over_its_episodes() -> None:
    trainer = trainer_of(epochs=1, minibatches=2)
    dumped: list[list[int]] = []
    trainer.on_skip = lambda episodes: dumped.append([episode.place for episode in episodes])
    episodes = prepared(trainer)
    _poison(trainer, episodes, float("nan"))
    assert trainer.update(episodes)["skipped"] == 1
    assert len(dumped) == 1 and episodes[3].place in dumped[0] and len(dumped[0]) == 4


def test_settings_that_contradict_each_other_are_named() -> None:
    problems = {
        str(problem)
        for fields in (
            {"kl_target": 0.0},
            {"kl_target": 1.0, "kl_coef": 0.0},
            {"rollout_batch": 10, "minibatches": 4},
            {"dual_clip": 1.1},
        )
        for problem in PPOSettings(**fields).check()  # type: ignore[arg-type]
    }
    for part in (
        "train.kl_target is 0; it must be > 0",
        "train.kl_coef is 0 with a kl_target",
        "train.rollout_batch 10 does not divide into 4 minibatches",
        "train.dual_clip is 1.1; expected above 1 + clip_range (1.2)",
    ):
        assert any(part in problem for problem in problems), part
    assert PPOSettings().check() == []
