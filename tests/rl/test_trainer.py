"""The trainer: what must not matter does not, what is asked for happens, and it learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from ppo_world import (
    EOS,
    PROMPTS,
    X,
    first_is_x,
    gradients,
    language_model,
    largest_difference,
    naive_logp,
    policy_of,
    prepared,
    trainer_of,
    weights,
    without_seconds,
)

from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Sampled
from pipeline.parallel.ranks import Ranks
from pipeline.rl.policy.policy import Outputs, Policy
from pipeline.rl.ppo.control import KLController, ScoreScale
from pipeline.rl.ppo.loss import policy_loss, value_loss
from pipeline.rl.ppo.measures import UpdateSums, of_engine, of_rollout
from pipeline.rl.rollout.episodes import Episode, MicroBatch, pack
from pipeline.rl.rollout.rollouts import prompt_order


def _gradients_of_a_step(token_budget: int, **settings: Any) -> dict[str, torch.Tensor]:
    trainer = trainer_of(rollout_batch=16, epochs=1, max_grad_norm=0, **settings)
    episodes = prepared(trainer)  # always packed alike, so that only the update differs
    trainer.settings = trainer.settings.model_copy(update={"token_budget": token_budget})
    trainer.update(episodes)
    return gradients(trainer)


def test_how_a_minibatch_is_cut_into_micro_batches_does_not_matter() -> None:
    whole = _gradients_of_a_step(10_000)
    # Rows of 2 to 12 tokens: one alone, a few together, all together.
    assert largest_difference(whole, _gradients_of_a_step(1)) < 1e-6
    assert largest_difference(whole, _gradients_of_a_step(30)) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-2


@pytest.mark.parametrize("columns", [1, 7])
def test_more_padding_other_packing_and_another_order_of_rows_change_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.rl.ppo.trainer as module

    def padded(episodes: Sequence[Episode], device: torch.device, **more: Any) -> MicroBatch:
        batch = pack(episodes, device, **more)
        extra = torch.full((len(episodes), columns), X)  # a real token: nothing may look there
        rows_N = batch.positions_N // batch.ids_BT.shape[1]
        wider = {"ids_BT": torch.cat([batch.ids_BT, extra], dim=1), "positions_N": batch.positions_N + columns * rows_N}
        return MicroBatch(**{**vars(batch), **wider})

    plain = trainer_of(rollout_batch=16, epochs=1, max_grad_norm=0)
    episodes = prepared(plain)
    again = copy.deepcopy(plain)
    plain.update(episodes)
    monkeypatch.setattr(module, "pack", padded)
    again.settings = again.settings.model_copy(update={"token_budget": 25})  # other rows together
    shuffled = episodes[::-1]
    expected = [(e.old_T, e.values_T, e.advantages_T) for e in copy.deepcopy(shuffled)]
    again.measure(shuffled)
    again.estimate(shuffled)
    for episode, was in zip(shuffled, expected, strict=True):
        for now, then in zip((episode.old_T, episode.values_T, episode.advantages_T), was, strict=True):
            torch.testing.assert_close(now, then, atol=1e-5, rtol=0)
    again.update(shuffled)
    assert largest_difference(gradients(plain), gradients(again)) < 1e-5


@pytest.mark.parametrize("token_budget", [1, 20, 10_000])
@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 4), (3, 8)])
def test_optimizer_steps_are_iterations_times_epochs_times_minibatches(
    epochs: int, minibatches: int, token_budget: int
) -> None:
    trainer = trainer_of(
        iterations=2,
        epochs=epochs,
        minibatches=minibatches,
        token_budget=token_budget,
        target_kl=0.0,
        learning_rate=1e-4,
    )
    seen: list[tuple[int, int]] = []
    trainer.on_step = lambda done, total: seen.append((done, total))
    history = list(trainer.iterations())
    assert trainer.steps == 2 * epochs * minibatches
    assert [metrics["steps"] for metrics in history] == [epochs * minibatches] * 2
    moments = trainer.optimizer.state[trainer.policy.policy_parameters[0]]
    assert int(moments["step"]) == trainer.steps
    assert seen == [(i + 1, epochs * minibatches) for i in range(epochs * minibatches)] * 2


def test_every_episode_is_in_one_minibatch_of_each_epoch_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(epochs=3, minibatches=4)
    chosen: list[list[int]] = []

    def remember(episodes: Sequence[Episode], sums: UpdateSums) -> bool:
        chosen.append([episode.place for episode in episodes])
        return True

    monkeypatch.setattr(trainer, "_step", remember)
    trainer.update(prepared(trainer))
    epochs = [[*chain.from_iterable(chosen[start : start + 4])] for start in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 3
    assert all(len(part) == 2 for part in chosen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_gradient_norm_clipped_to_almost_nothing_freezes_the_weights() -> None:
    # AdamW divides by the gradient's own size, so the clipped norm must fall below its epsilon to show.
    frozen, free = (trainer_of(max_grad_norm=norm, adam_epsilon=1e-3, learning_rate=1e-2) for norm in (1e-12, 1.0))
    start = weights(frozen.policy)
    for trainer in (frozen, free):
        trainer.iterate()
    assert largest_difference(start, weights(frozen.policy)) < 1e-8
    assert largest_difference(start, weights(free.policy)) > 1e-3


def test_policy_and_value_gradients_are_clipped_each_to_the_norm() -> None:
    trainer = trainer_of(epochs=1, max_grad_norm=1e-3)
    metrics = trainer.update(prepared(trainer))
    step_gradients = gradients(trainer)
    for part, name in (("policy.", "grad_norm"), ("value.", "value_grad_norm")):
        norm = math.sqrt(sum(float(g.double().square().sum()) for n, g in step_gradients.items() if n.startswith(part)))
        assert norm == pytest.approx(1e-3, rel=1e-3)
        assert metrics[name] > 2e-3  # as it was before clipping


def test_the_score_sits_on_the_last_token_that_was_sampled_and_the_penalty_on_rows_without_an_end() -> None:
    trainer = trainer_of(
        score=lambda episodes: [4.0] * len(episodes),
        kl_coef=0.0,
        lam=0.0,
        whiten=False,
        rollout_batch=32,
        max_new_tokens=8,
        missing_eos_penalty=1.5,
        prompts=[(3, EOS, 4), (EOS,)],
    )
    episodes = prepared(trainer)  # V = 0 at the start and lambda 0: an advantage is its token's own reward
    assert {len(episode.response_ids) for episode in episodes} >= {1, 8}
    for episode in episodes:
        expected = 4.0 if EOS in episode.response_ids else 2.5
        assert episode.advantages_T.tolist() == [0.0] * (len(episode.response_ids) - 1) + [expected]


def test_a_reward_given_token_by_token_sits_where_it_was_earned_and_the_rest_on_the_last_token() -> None:
    def score(episodes: Sequence[Episode]) -> list[float]:  # each token earns its place, and the whole 1 more
        for episode in episodes:
            episode.earned_T = torch.arange(len(episode.response_ids)).float()
        return [float(episode.earned_T.sum()) + 1.0 for episode in episodes]

    def rewards_of(**more: Any) -> tuple[list[Episode], float]:  # V = 0 and lambda 0: an advantage is a token's reward
        settings: dict[str, Any] = {"kl_coef": 0.0, "lam": 0.0, "whiten": False, "missing_eos_penalty": 1.5, **more}
        trainer = trainer_of(score=score, rollout_batch=32, max_new_tokens=8, token_rewards=True, **settings)
        return prepared(trainer), trainer.scale.deviation

    episodes, _ = rewards_of(score_clip=0.0)
    assert {len(episode.response_ids) for episode in episodes} >= {1, 8}
    for episode in episodes:
        length = len(episode.response_ids)
        last = 1.0 if EOS in episode.response_ids else -0.5
        assert episode.advantages_T.tolist() == [*range(length - 1), length - 1 + last]
    scaled, deviation = rewards_of(score_clip=0.0, score_scaling="running")
    for episode, plain in zip(scaled, episodes, strict=True):
        torch.testing.assert_close(episode.advantages_T[:-1], plain.advantages_T[:-1] / deviation)
    clipped, _ = rewards_of(score_clip=3.0)
    longest = [episode for episode in clipped if len(episode.response_ids) == 8]
    assert longest
    for episode in longest:  # 0 + 1 + … + 7 and 1 more are 29, of which 3 are left: 3/29 of what each token earned
        last = 3 / 29 * 8 - (0.0 if EOS in episode.response_ids else 1.5)
        expected = [*(3 / 29 * place for place in range(7)), last]
        assert episode.advantages_T.tolist() == pytest.approx(expected, abs=1e-5)


def test_whitened_rewards_keep_their_mean() -> None:
    settings: dict[str, Any] = {"kl_coef": 0.0, "lam": 0.0, "whiten": False, "score_clip": 0.0}

    def rewards_of(**more: Any) -> torch.Tensor:  # V = 0 and lambda 0: an advantage is its token's own reward
        trainer = trainer_of(score=lambda rows: [3.0 + 2 * row.place for row in rows], **settings, **more)
        return torch.cat([episode.advantages_T for episode in prepared(trainer)])

    plain_N, white_N = rewards_of(), rewards_of(whiten_rewards=True)
    expected_N = (plain_N - plain_N.mean()) / plain_N.std(correction=0) + plain_N.mean()
    assert float(plain_N.mean()) > 0.5
    torch.testing.assert_close(white_N, expected_N, atol=1e-5, rtol=0)


def test_without_end_tokens_no_response_is_cut_off() -> None:
    trainer = trainer_of(
        score=lambda e: [4.0] * len(e),
        kl_coef=0.0,
        lam=0.0,
        whiten=False,
        eos_ids=(),
        truncation="mask",
        max_new_tokens=3,
    )
    episodes = prepared(trainer)
    assert all(episode.advantages_T.tolist() == [0.0, 0.0, 4.0] for episode in episodes)
    assert trainer.update(episodes)["steps"] == 2


def test_the_kl_penalty_is_beta_times_the_difference_of_log_probabilities() -> None:
    trainer = trainer_of(kl_coef=0.3, gamma=1.0, lam=1.0, whiten=False, learning_rate=1e-2, missing_eos_penalty=0.0)
    for _ in range(2):
        trainer.iterate()
    episodes = prepared(trainer)
    for episode in episodes:
        kl = float((episode.old_T - episode.reference_T).sum())
        assert float(episode.returns_T[0]) == pytest.approx(episode.score - 0.3 * kl, abs=1e-5)
    mean = sum(float((e.old_T - e.reference_T).sum()) for e in episodes) / len(episodes)
    assert of_rollout(episodes, Ranks())["kl"] == pytest.approx(mean, abs=1e-5)
    assert mean > 1e-3


def test_the_divergence_may_be_priced_in_the_loss_instead_of_the_reward() -> None:
    def run(price: float, **settings: Any) -> tuple[float, list[Episode]]:
        trainer = trainer_of(kl_coef=price, learning_rate=5e-3, iterations=12, rollout_batch=32, **settings)
        divergences = [metrics["kl"] for metrics in trainer.iterations()]
        return divergences[-1], prepared(trainer)

    cheap, _ = run(1e-6, kl_in_loss=True)
    dear, episodes = run(3.0, kl_in_loss=True)
    assert dear < 0.3 * cheap
    # The reward knows nothing of it: with V near the return, advantages of a constant would be all there is.
    for episode in episodes:
        assert episode.returns_T.max() < 5


def test_without_a_price_the_reference_runs_at_the_start_and_at_evaluations_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    logp = Policy.reference_logp

    def counted(self: Policy, batch: MicroBatch) -> torch.Tensor:
        passes.append(1)
        return logp(self, batch)

    monkeypatch.setattr(Policy, "reference_logp", counted)
    free = trainer_of(kl_coef=0.0, iterations=3)
    free.held_out = free.prompts[:2]
    first, second, third = free.iterations()
    assert len(passes) == 1
    assert "kl" in first and "kl" not in second and "kl" not in third
    assert "eval_kl" in free.evaluate()[0]
    assert len(passes) == 2
    for settings in ({"kl_coef": 0.1}, {"kl_coef": 0.1, "kl_target": 1.0}):
        passes.clear()
        priced = trainer_of(iterations=3, **settings)
        assert all("kl" in metrics for metrics in priced.iterations())
        assert len(passes) == 3


def test_tokens_of_an_engine_with_another_law_are_weighed_by_the_ratio_of_the_two() -> None:
    other = language_model(seed=3)

    def engine(model: Any, prompts: Any, *how: Any) -> Sampled:
        sample = BatchedEngine()(other, prompts, *how)
        rows = [Episode(0, {}, p, r, False, "") for p, r in zip(prompts, sample.responses, strict=True)]
        return Sampled(sample.responses, [naive_logp(other, row).tolist() for row in rows])

    def losses(**settings: Any) -> tuple[dict[str, float], list[Episode]]:
        trainer = trainer_of(epochs=1, whiten=False, value_coef=0.0, **settings)
        trainer.engine = engine
        episodes = prepared(trainer)
        return {**trainer.update(episodes), **of_engine(episodes, Ranks())}, episodes

    weighed, episodes = losses(tis_clip=1.5)
    plain, _ = losses(tis_clip=0.0)
    old = torch.cat([e.old_T for e in episodes])
    sampled = torch.cat([e.sampled_T for e in episodes])
    advantages = torch.cat([e.advantages_T for e in episodes])
    assert weighed["rollout_logprob_gap"] == pytest.approx(float((old - sampled).abs().mean()), abs=1e-5)
    assert plain["policy_loss"] == pytest.approx(-float(advantages.mean()), abs=1e-5)
    expected = -float(((old - sampled).exp().clamp(max=1.5) * advantages).mean())
    assert weighed["policy_loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - plain["policy_loss"]) > 1e-2


def test_scores_are_centred_then_scaled_then_clipped() -> None:
    scale = ScoreScale(center=2.0)
    scale.see([2.0, 4.0], Ranks())
    scale.see([6.0, 8.0, 10.0], Ranks())
    # All five: mean 6, population variance (16 + 4 + 0 + 4 + 16) / 5 = 8.
    assert scale.mean == pytest.approx(6.0)
    assert scale.deviation == pytest.approx(math.sqrt(8))
    assert scale.apply(10.0, scale=True, clip=0.0) == pytest.approx(8 / math.sqrt(8))
    assert scale.apply(10.0, scale=True, clip=2.0) == 2.0
    assert scale.apply(-10.0, scale=False, clip=3.0) == -3.0
    assert ScoreScale().deviation == 1.0


def test_the_center_is_measured_once_on_the_reference_s_own_responses() -> None:
    bonus = iter([5.0, 50.0])

    def score(episodes: Sequence[Episode]) -> list[float]:
        start = next(bonus)
        return [start + episode.place % 2 for episode in episodes]

    trainer = trainer_of(
        score=score, score_center="reference", score_clip=0.0, kl_coef=0, lam=1.0, whiten=False, missing_eos_penalty=0.0
    )
    trainer.iterate()
    assert trainer.scale.center == pytest.approx(5.5)
    episodes = prepared(trainer)
    assert trainer.scale.center == pytest.approx(5.5)
    assert [float(e.returns_T[0]) for e in episodes] == pytest.approx([44.5, 45.5] * 4, abs=1e-4)


def test_the_adaptive_coefficient_follows_its_target_slowly() -> None:
    kl = KLController(0.1, target=2.0, horizon=100)
    kl.update(2.2, 10)  # error 0.1 over a tenth of the horizon
    assert kl.coef == pytest.approx(0.1 * 1.01)
    kl.update(100.0, 10)  # cut to 0.2
    assert kl.coef == pytest.approx(0.1 * 1.01 * 1.02)
    kl.update(0.0, 10)
    assert kl.coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    fixed = KLController(0.1)
    fixed.update(100.0, 10)
    assert fixed.coef == 0.1


def test_prompts_come_in_shuffled_passes_wherever_one_starts() -> None:
    whole = prompt_order(5, 0, 20, seed=3)
    assert all(sorted(whole[start : start + 5]) == list(range(5)) for start in range(0, 20, 5))
    assert whole[:5] != whole[5:10]
    assert prompt_order(5, 7, 6, seed=3) == whole[7:13]


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    trainer = trainer_of(iterations=6, warmup_iterations=2, lr_scheduler_type="linear", learning_rate=3e-3)
    rates = []
    for trainer.iteration in range(6):
        trainer._set_rates()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(5 * rates[-1])
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 2.25e-3, 1.5e-3, 0.75e-3])


@pytest.mark.parametrize("value_gradient", [False, True])
def test_while_the_critic_warms_up_nothing_touches_the_policy(value_gradient: bool) -> None:
    policy = policy_of(value_gradient=value_gradient)
    trainer = trainer_of(policy, critic_warmup=2, weight_decay=0.1, entropy_coef=0.1)
    start = weights(policy)
    for _ in range(2):
        trainer.iterate()
    after = weights(policy)
    assert all(torch.equal(start[name], after[name]) for name in start if name.startswith("policy."))
    assert not torch.equal(start["value.linear.weight"], after["value.linear.weight"])
    assert not [p for p in policy.policy_parameters if p in trainer.optimizer.state]  # Adam counts from its first step
    trainer.iterate()
    assert any(not torch.equal(after[name], t) for name, t in weights(policy).items() if name.startswith("policy."))


def test_the_language_loss_is_added_in_the_same_optimizer_step() -> None:
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    seen: list[int] = []

    def loss(model: Any, step: int) -> torch.Tensor:
        seen.append(step)
        return model(input_ids=ids, labels=ids).loss

    settings: dict[str, Any] = {"epochs": 1, "max_grad_norm": 0}
    plain, mixed = trainer_of(**settings), trainer_of(ptx_coef=2.0, language_loss=loss, **settings)
    naive = language_model()
    (2.0 * naive(input_ids=ids, labels=ids).loss).backward()
    for trainer in (plain, mixed):
        trainer.update(prepared(trainer))
    alone, together = gradients(plain), gradients(mixed)
    for name, parameter in naive.named_parameters():
        expected = alone[f"policy.{name}"] + parameter.grad
        torch.testing.assert_close(together[f"policy.{name}"], expected, atol=1e-5, rtol=0)
    mixed.iteration = 1  # not the start any more
    mixed.iterate()
    assert seen == [0, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": "bootstrap"},
        {"truncation": "mask"},
        {"score_center": "reference", "score_scaling": "running"},
        {"whiten_rewards": True, "entropy_coef": 0.01},
        {"kl_target": 0.5, "dual_clip": 0.0, "value_clip": 0.0, "max_grad_norm": 0.0},
        {"max_new_tokens": 1, "rollout_batch": 1},  # one token in all: nothing to whiten with
        {"temperature": 0.7, "whiten": False, "score_clip": 0.0},
        {"lr_scheduler_type": "cosine", "warmup_iterations": 1, "target_kl": 0.0},
    ],
    ids=str,
)
def test_options_run_with_finite_figures(settings: dict[str, Any]) -> None:
    trainer = trainer_of(iterations=3, **settings)
    for metrics in trainer.iterations():
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        assert metrics["skipped"] == 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(trainer.policy).values())


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    def run(seed: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        trainer = trainer_of(seed=seed, iterations=3, minibatches=2)
        return [without_seconds(metrics) for metrics in trainer.iterations()], weights(trainer.policy)

    (metrics, tensors), (again, tensors_again), (other, _) = run(1), run(1), run(2)
    assert metrics == again
    assert largest_difference(tensors, tensors_again) == 0
    assert metrics != other


def test_an_evaluation_uses_the_same_random_numbers_each_time_and_changes_nothing() -> None:
    trainer = trainer_of(learning_rate=1e-12)
    trainer.held_out = trainer.prompts[:4]
    first, episodes = trainer.evaluate()
    before = weights(trainer.policy)
    trainer.iterate()
    trainer.train_engine.load_weights(before)
    second, again = trainer.evaluate()
    assert first == second
    assert [e.response_ids for e in episodes] == [e.response_ids for e in again]
    assert first["eval_objective"] == pytest.approx(first["eval_reward"] - 0.05 * first["eval_kl"])
    moved = trainer_of(learning_rate=1e-2, kl_coef=0.5, held_out=trainer.held_out)
    moved.iterate()
    third, _ = moved.evaluate()
    assert third["eval_kl"] > 1e-2
    assert third["eval_objective"] == pytest.approx(third["eval_reward"] - 0.5 * third["eval_kl"], abs=1e-9)
    trainer.held_out = ()
    assert trainer.evaluate() == ({}, [])


LEARN = {
    "iterations": 60,
    "rollout_batch": 32,
    "epochs": 4,
    "learning_rate": 3e-3,
    "max_new_tokens": 1,
    "target_kl": 0.0,
}


@pytest.mark.parametrize("kind", ["full", "separate", "lora", "cut"])
def test_a_bandit_is_learnt(kind: str) -> None:
    # An adapter cannot move the output layer: its rows must be long enough for a probability of 0.9.
    policy = policy_of(kind, spread=0.25 if kind in ("lora", "cut") else 0.15)
    trainer = trainer_of(policy, **LEARN, kl_coef=0.01, missing_eos_penalty=0.0)
    ids = torch.tensor([PROMPTS[0]])

    def chance() -> float:
        with torch.no_grad():
            return float(trainer.policy.model(input_ids=ids).logits[0, -1].softmax(-1)[X])

    assert chance() < 0.3
    while chance() < 0.9 and trainer.iteration < 60:
        trainer.iterate()
    assert chance() > 0.9


def test_a_price_on_length_shortens_responses() -> None:
    trainer = trainer_of(
        score=lambda episodes: [-float(len(episode.response_ids)) for episode in episodes],
        iterations=40,
        rollout_batch=32,
        max_new_tokens=8,
        learning_rate=3e-3,
        missing_eos_penalty=0.0,
    )
    lengths = [metrics["length"] for metrics in trainer.iterations()]
    assert lengths[0] > 6
    assert lengths[-1] < 2.5


@pytest.mark.parametrize("constant", [True, False])
def test_a_constant_reward_leaves_the_policy_where_it_is(constant: bool) -> None:
    trainer = trainer_of(
        score=(lambda episodes: [1.0] * len(episodes)) if constant else first_is_x,
        iterations=30,
        rollout_batch=32,
        eos_ids=(),
        max_new_tokens=2,
        learning_rate=1e-4,
        kl_coef=0.1,
        whiten=False,
        critic_warmup=15,  # until V is what there is to expect
        value_learning_rate=5e-2,
        score_center="reference",
    )
    kl = max(metrics["kl_k3"] for metrics in trainer.iterations())
    assert (kl < 1e-3) == constant


def test_the_critic_explains_a_deterministic_reward_while_the_policy_is_frozen() -> None:
    # What is paid depends on the prompt alone: known from the first token on.
    policy = policy_of("separate")
    trainer = trainer_of(
        policy,
        score=lambda episodes: [float(episode.prompt_ids[0] % 5) for episode in episodes],
        iterations=40,
        rollout_batch=32,
        max_new_tokens=3,
        kl_coef=0.0,
        critic_warmup=40,
        value_learning_rate=3e-3,
        missing_eos_penalty=0.0,
    )
    start = weights(policy)
    explained = [metrics["explained_variance"] for metrics in trainer.iterations()]
    assert explained[0] < 0.2
    assert explained[-1] > 0.8
    assert all(torch.equal(start[n], t) for n, t in weights(policy).items() if n.startswith("policy."))


def test_metrics_by_hand() -> None:
    def episode(ids: list[int], score: float, ended: bool, old: float, reference: float) -> Episode:
        made = Episode(0, {}, (3,), ids, ended, "", score)
        made.old_T, made.reference_T = torch.full((len(ids),), old), torch.full((len(ids),), reference)
        made.entropy_T = torch.full((len(ids),), 2.0 * score)
        return made

    rows = [episode([4, 5, 4, 5, 4], 1.0, False, -1.0, -1.5), episode([4, EOS], 3.0, True, -2.0, -2.0)]
    metrics = of_rollout(rows, Ranks())
    assert metrics["reward"] == 2.0
    assert metrics["score_std"] == 1.0
    assert metrics["kl"] == pytest.approx(5 * 0.5 / 2)
    assert metrics["kl_k3"] == pytest.approx(5 * (math.exp(-0.5) - 1 + 0.5) / 2, abs=1e-6)
    assert metrics["entropy"] == pytest.approx((5 * 2 + 2 * 6) / 7)
    assert (metrics["length"], metrics["length_max"], metrics["tokens"]) == (3.5, 5, 7)
    assert metrics["length_corr"] == pytest.approx(-1.0)
    assert metrics["eos_rate"] == 0.5
    assert metrics["distinct_2"] == pytest.approx((2 / 4 + 1) / 2)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_first_step_on_the_pass_that_scored_the_rollout_is_the_step_on_a_pass_of_its_own(minibatches: int) -> None:
    kept, again = (trainer_of(minibatches=minibatches, epochs=1, max_grad_norm=0, seed=3) for _ in range(2))
    again.train_engine.can_reuse_forward = False  # type: ignore[misc]
    for trainer in (kept, again):
        trainer.iterate()
    assert largest_difference(weights(kept.policy), weights(again.policy)) < 1e-6


def test_a_run_without_a_price_of_divergence_gets_one_from_the_guard_that_finds_it_far_away() -> None:
    trainer = trainer_of(kl_coef=0.0)
    assert not trainer.uses_kl_penalty
    trainer.iterate()
    far = {"eval_kl": 60.0, "eval_kl_k3": 60.0, "eval_length": 6.0}
    told = [trainer.guards.look_at_evaluation(far, trainer.kl) for _ in range(3)]
    assert told[:2] == [[], []] and "60 nats per response away" in told[2][0] and "kl_coef is now 0.02" in told[2][0]
    assert trainer.uses_kl_penalty
    metrics = trainer.iterate()  # from now on the reference is measured and its divergence priced
    assert metrics["kl"] != 0 and metrics["kl_coef"] == 0.02
    assert trainer.guards.look_at_evaluation({"eval_reward": 1.0}, trainer.kl) == []


def test_what_is_cut_of_scores_and_the_mean_ratio_are_told() -> None:
    trainer = trainer_of(
        score=lambda episodes: [20.0 if episode.place < 2 else -1.0 for episode in episodes], epochs=1, minibatches=2
    )
    metrics = trainer.iterate()
    assert metrics["score_clipfrac"] == 2 / 8
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0.1)
    sums = UpdateSums()
    logp_N = torch.tensor([0.5, 2.0]).log()
    policy_part = policy_loss(logp_N, torch.zeros(2), torch.ones(2), clip_range=0.2)
    sums.add(policy_part, value_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), clip=0.2))
    update_metrics = sums.metrics(Ranks())
    assert update_metrics["ratio_mean"] == pytest.approx(1.25)
    assert update_metrics["ratio_max"] == pytest.approx(2.0)
    assert update_metrics["clipfrac"] == 0.5  # the ratio of 2 alone


def test_a_response_without_tokens_counts_as_its_end_alone() -> None:
    def engine(model: Any, prompts: Any, settings: Any, places: Any) -> Sampled:
        return Sampled([[] if place % 2 else [5, EOS] for place in places])

    trainer = trainer_of()
    trainer.engine = engine
    episodes = prepared(trainer)
    assert [e.response_ids for e in episodes[:2]] == [[5, EOS], [EOS]]
    assert all(e.ended and e.advantages_T.isfinite().all() for e in episodes)


@pytest.mark.parametrize(("high", "is_clipped"), [(None, True), (0.28, False)])
def test_clip_higher_reaches_the_loss_of_a_step(high: float | None, is_clipped: bool) -> None:
    trainer = trainer_of(clip_range_high=high)
    episodes = prepared(trainer)
    for episode in episodes:
        episode.advantages_T = torch.ones_like(episode.old_T)
    old_N = torch.cat([episode.old_T for episode in episodes])
    raised = Outputs(old_N + math.log(1.25), torch.zeros_like(old_N), None)
    policy_part, _ = trainer._losses(episodes, raised, clip=0.2)
    assert bool(policy_part.clipped_N.all()) == bool(policy_part.clipped_N.any()) == is_clipped
