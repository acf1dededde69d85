"""The losses: where they clip, and that their gradient is that of the objective written out naively."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from ppo_world import gradients, naive_logp, policy_of, prepared, trainer_of, weights

from pipeline.rl.ppo.loss import importance_weights, kl_loss, policy_loss, value_loss
from pipeline.rl.ppo.measures import UpdateSums


def _policy_gradient(ratio: float, advantage: float, dual_clip: float = 0.0) -> tuple[float, float, bool]:
    """Return loss, its gradient by log-probability, and whether it was clipped."""
    logp = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    loss = policy_loss(logp, torch.tensor([-1.0]), torch.tensor([advantage]), clip_range=0.2, dual_clip=dual_clip)
    loss.loss_N.sum().backward()
    assert logp.grad is not None
    return loss.loss_N.item(), logp.grad.item(), bool(loss.clipped_N)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: -rho A; d/dlogp of rho is rho
        (1.3, 2.0, -2.4, 0.0),  # above with A > 0: -1.2 A, flat
        (0.7, 2.0, -1.4, -1.4),  # below with A > 0: the minimum is the unclipped one
        (0.7, -2.0, 1.6, 0.0),  # below with A < 0: -0.8 A, flat
        (1.3, -2.0, 2.6, 2.6),  # above with A < 0: unclipped
    ],
)
def test_the_policy_has_no_gradient_exactly_where_clipping_wins(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    computed_loss, computed_gradient, is_clipped = _policy_gradient(ratio, advantage)
    assert (computed_loss, computed_gradient) == pytest.approx((loss, gradient), abs=1e-5)
    assert is_clipped == (gradient == 0.0)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_alone() -> None:
    assert _policy_gradient(8.0, -2.0)[:2] == pytest.approx((16.0, 16.0), rel=1e-5)
    assert _policy_gradient(8.0, -2.0, dual_clip=3.0)[:2] == pytest.approx((6.0, 0.0), abs=1e-6)  # -3 A
    assert _policy_gradient(2.0, -2.0, dual_clip=3.0)[:2] == pytest.approx((4.0, 4.0), rel=1e-5)  # not reached
    assert _policy_gradient(0.01, 2.0, dual_clip=3.0)[:2] == pytest.approx((-0.02, -0.02), rel=1e-4)


def test_a_huge_log_ratio_stays_finite() -> None:
    logp = torch.tensor([500.0, -500.0], requires_grad=True)
    loss = policy_loss(logp, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip_range=0.2)
    loss.loss_N.sum().backward()
    assert logp.grad is not None
    assert bool(torch.isfinite(loss.loss_N).all()) and bool(torch.isfinite(logp.grad).all())
    assert loss.loss_N[0].item() == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9),  # within 0.2 of the old value: plain, 0.9 squared over 2
        (1.5, 1.0, 2.0, 0.32, 0.0),  # moved 0.5 towards the target: bounded to 1.2, flat
        (0.5, 1.0, 2.0, 1.125, -1.5),  # moved away: the plain error is the larger one
        (1.5, 1.0, 1.0, 0.125, 0.5),  # overshot: plain error larger than that of the bounded value
    ],
)
def test_the_value_has_no_gradient_exactly_where_clipping_wins(
    value: float, old: float, target: float, loss: float, gradient: float
) -> None:
    values = torch.tensor([value], requires_grad=True)
    computed_loss = value_loss(values, torch.tensor([old]), torch.tensor([target]), clip=0.2)
    computed_loss.loss_N.sum().backward()
    assert values.grad is not None
    assert (computed_loss.loss_N.item(), values.grad.item()) == pytest.approx((loss, gradient), abs=1e-6)
    assert bool(computed_loss.clipped_N) == (gradient == 0.0)


def test_a_value_clip_of_zero_does_not_clip() -> None:
    values = torch.tensor([1.5], requires_grad=True)
    loss = value_loss(values, torch.tensor([1.0]), torch.tensor([2.0]), clip=0.0)
    assert loss.loss_N.item() == pytest.approx(0.125)
    assert not bool(loss.clipped_N)


def test_the_value_is_clipped_in_units_of_the_returns_deviation() -> None:
    # Scores of -30 and 30: a fixed bound of 0.2 would freeze the critic.
    trainer = trainer_of(
        score=lambda episodes: [30.0 * (-1) ** e.place for e in episodes], score_clip=0.0, kl_coef=0.0, epochs=1
    )
    episodes = prepared(trainer)
    assert trainer.return_deviation > 20
    for episode in episodes:  # as if the critic had moved by 3: below 0.2 deviations, above 0.2
        episode.values_T = episode.values_T - 3.0 * torch.sign(episode.returns_T)
    assert trainer.update(episodes)["value_clipfrac"] == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_a_step_is_the_naive_policy_gradient(temperature: float) -> None:
    trainer = trainer_of(epochs=1, kl_coef=0.0, value_coef=0.0, max_grad_norm=0, temperature=temperature)
    episodes = prepared(trainer)
    naive = copy.deepcopy(trainer.policy.model)
    trainer.update(episodes)
    # -E[A grad log p]: each row alone, every position through the output layer.
    tokens = sum(len(episode.response_ids) for episode in episodes)
    for episode in episodes:
        (-(naive_logp(naive, episode, temperature) * episode.advantages_T).sum() / tokens).backward()
    step_gradients = gradients(trainer)
    for name, parameter in naive.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(step_gradients[f"policy.{name}"], parameter.grad, atol=1e-6, rtol=0)
    assert max(float(g.abs().max()) for n, g in step_gradients.items() if n.startswith("policy.")) > 1e-3


def test_the_gradient_of_the_value_head_is_the_naive_one_and_stays_out_of_the_trunk() -> None:
    trainer = trainer_of(epochs=1, value_coef=0.3, max_grad_norm=0)
    episodes = prepared(trainer)
    for episode in episodes:
        episode.advantages_T = torch.zeros_like(episode.advantages_T)
    start = copy.deepcopy(trainer.policy)
    trainer.update(episodes)
    tokens = sum(len(episode.response_ids) for episode in episodes)
    head = start.value
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
        hidden = start.model.model(input_ids=ids).last_hidden_state[0, len(episode.prompt_ids) - 1 : -1].detach()
        # V starts at 0 and so do old values: no clipping in the first step.
        (0.3 * (head(hidden) - episode.returns_T).square().sum() / 2 / tokens).backward()
    step_gradients = gradients(trainer)
    torch.testing.assert_close(step_gradients["value.linear.weight"], head.linear.weight.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(step_gradients["value.linear.bias"], head.linear.bias.grad, atol=1e-6, rtol=0)
    assert step_gradients["value.linear.weight"].abs().max() > 1e-3
    assert all(not gradient.any() for name, gradient in step_gradients.items() if name.startswith("policy."))


def test_value_gradient_sends_the_value_loss_into_the_trunk() -> None:
    policy = policy_of(value_gradient=True)
    torch.nn.init.ones_(policy.value.linear.weight)
    trainer = trainer_of(policy, epochs=1, max_grad_norm=0)
    episodes = prepared(trainer)
    for episode in episodes:
        episode.advantages_T = torch.zeros_like(episode.advantages_T)
    trainer.update(episodes)
    assert gradients(trainer)["policy.model.layers.0.mlp.down_proj.weight"].abs().max() > 1e-4


def test_without_advantages_the_policy_stands_still_and_without_value_coef_the_critic() -> None:
    trainer = trainer_of(epochs=2, value_coef=0.0)
    episodes = prepared(trainer)
    before = weights(trainer.policy)
    trainer.update(episodes)
    after = weights(trainer.policy)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("value."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("policy."))

    trainer = trainer_of(epochs=2)
    episodes = prepared(trainer)
    for episode in episodes:
        episode.advantages_T = torch.zeros_like(episode.advantages_T)
    trainer.update(episodes)
    moved = weights(trainer.policy)
    assert all(torch.equal(before[name], moved[name]) for name in before if name.startswith("policy."))
    assert any(not torch.equal(before[name], moved[name]) for name in before if name.startswith("value."))


def test_the_entropy_bonus_is_the_gradient_of_the_entropy() -> None:
    trainer = trainer_of(epochs=1, value_coef=0.0, entropy_coef=0.5, max_grad_norm=0, temperature=0.7)
    episodes = prepared(trainer)
    for episode in episodes:
        episode.advantages_T = torch.zeros_like(episode.advantages_T)
    naive = copy.deepcopy(trainer.policy.model)
    trainer.update(episodes)
    tokens = sum(len(episode.response_ids) for episode in episodes)
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
        law = torch.distributions.Categorical(logits=naive(input_ids=ids).logits[0, :-1] / 0.7)
        entropies = law.entropy()[len(episode.prompt_ids) - 1 :]
        torch.testing.assert_close(entropies.detach(), episode.entropy_T, atol=1e-5, rtol=0)
        (-0.5 * entropies.sum() / tokens).backward()
    step_gradients = gradients(trainer)
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(step_gradients[f"policy.{name}"], parameter.grad, atol=1e-6, rtol=0)


def test_the_divergence_of_an_update_is_k3_of_the_tokens_that_were_sampled() -> None:
    # Sampled from old: rho - 1 - log rho with rho = new / old is unbiased for KL(old || new). With the ratio upside
    # down, one token whose probability fell e-fold ten times over would count 22,000 instead of 9.
    log_ratio = torch.tensor([-10.0, 0.5])
    sums = UpdateSums()
    policy = policy_loss(log_ratio, torch.zeros(2), torch.ones(2), clip_range=0.2)
    sums.add(policy, value_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), clip=0.2))
    expected = sum(math.exp(x) - 1 - x for x in (-10.0, 0.5))
    assert sums.divergence == pytest.approx(expected, rel=1e-5)


def test_clip_higher_leaves_room_above_and_none_below() -> None:
    logp_N = torch.tensor([math.log(1.25), math.log(1.35), math.log(0.75)], requires_grad=True)
    loss = policy_loss(logp_N, torch.zeros(3), torch.tensor([1.0, 1.0, -1.0]), clip_range=0.2, clip_high=0.28)
    # -min(1.25, 1.28), -min(1.35, 1.28), -min(-0.75, -0.8): inside, cut above, cut below.
    torch.testing.assert_close(loss.loss_N.detach(), torch.tensor([-1.25, -1.28, 0.8]), atol=1e-6, rtol=0)
    assert loss.clipped_N.tolist() == [False, True, True]


def test_weights_of_tokens_multiply_their_loss_and_its_gradient() -> None:
    logp_N = torch.zeros(2, requires_grad=True)
    advantages_N, weights_N = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    loss_N = policy_loss(logp_N, torch.zeros(2), advantages_N, clip_range=0.2, weights_N=weights_N).loss_N
    assert loss_N.tolist() == [-0.5, 4.0]
    loss_N.sum().backward()
    assert logp_N.grad is not None and logp_N.grad.tolist() == [-0.5, 4.0]


def test_importance_weights_are_the_ratio_of_the_laws_cut_above() -> None:
    trained_N, sampled_N = torch.tensor([-1.0, -1.0, -1.0, 0.0]), torch.tensor([-1.0, -1.5, -9.0, 90.0])
    weights_N = importance_weights(trained_N, sampled_N, clip=2.0)
    torch.testing.assert_close(weights_N, torch.tensor([1.0, math.exp(0.5), 2.0, math.exp(-20.0)]), atol=1e-6, rtol=0)


def test_the_divergence_in_the_loss_has_the_value_of_k3_and_the_gradient_of_the_exact_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(16, generator=generator, dtype=torch.float64, requires_grad=True)
    reference_V = torch.randn(16, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp_V = logits_V.log_softmax(-1)
    exact = (logp_V.exp() * (logp_V - reference_V)).sum()
    (expected_V,) = torch.autograd.grad(exact, logits_V, retain_graph=True)
    # Every token as often as the policy samples it: the expectation over its law, not differentiated itself.
    loss = (logp_V.detach().exp() * kl_loss(logp_V, reference_V)).sum()
    (found_V,) = torch.autograd.grad(loss, logits_V)
    torch.testing.assert_close(found_V, expected_V, atol=1e-9, rtol=0)
    torch.testing.assert_close(loss.detach(), exact.detach(), atol=1e-9, rtol=0)
