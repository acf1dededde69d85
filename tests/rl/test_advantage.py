"""From scores to advantages: every formula against one written out another way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ppo_world import gradients, largest_difference, policy_of, prepared, trainer_of, weights

from pipeline.parallel.ranks import Ranks
from pipeline.rl.ppo.advantage import gae, kl_estimate, masked_moments, token_rewards, whiten
from pipeline.rl.rollout.episodes import Episode

NAN = math.nan


def _ragged(seed: int, rows: int = 6, width: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,))
    mask = torch.arange(width)[None] < lengths[:, None]
    return torch.randn(rows, width), torch.randn(rows, width), mask


def _gae_by_sums(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float, after: float = 0.0) -> np.ndarray:
    """A_t = sum over k of (γλ)^k δ_{t+k}, each δ from its definition."""
    n = len(rewards)
    following = [*values[1:], after]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return np.array([sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_discounted_sum_of_temporal_differences_on_ragged_rows(gamma: float, lam: float) -> None:
    rewards, values, mask = _ragged(1)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        expected = _gae_by_sums(rewards[row, :n].double().numpy(), values[row, :n].double().numpy(), gamma, lam)
        assert advantages[row, :n].numpy() == pytest.approx(expected, abs=1e-6)
        assert returns[row, :n].numpy() == pytest.approx(expected + values[row, :n].numpy(), abs=1e-6)
        assert not advantages[row, n:].any() and not returns[row, n:].any()


def test_gae_in_closed_form() -> None:
    # Reward 2 at the last of 4 tokens, V = 0.5 everywhere, gamma 1: deltas are 0, 0, 0 and 2 - 0.5.
    rewards, values = torch.tensor([[0.0, 0.0, 0.0, 2.0]]), torch.full((1, 4), 0.5)
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.9)
    assert advantages[0].tolist() == pytest.approx([1.5 * 0.9**3, 1.5 * 0.9**2, 1.5 * 0.9, 1.5], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([a + 0.5 for a in advantages[0].tolist()], abs=1e-6)
    monte_carlo, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert monte_carlo[0].tolist() == pytest.approx([1.5] * 4, abs=1e-6)  # score - V
    one_step, _ = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    assert one_step[0].tolist() == pytest.approx([-0.25, -0.25, -0.25, 1.5], abs=1e-6)  # 0.5 * 0.5 - 0.5


def test_tokens_under_a_false_mask_are_stepped_over_as_if_deleted() -> None:
    rewards, values, _ = _ragged(2, rows=1, width=7)
    mask = torch.tensor([[True, True, False, False, True, False, True]])
    kept = mask[0].nonzero()[:, 0]
    rewards[~mask], values[~mask] = NAN, NAN
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    short = torch.ones(1, len(kept), dtype=torch.bool)
    expected, expected_returns = gae(rewards[:, kept], values[:, kept], short, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages[:, kept], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(returns[:, kept], expected_returns, atol=1e-6, rtol=0)
    assert not advantages[~mask].any() and not returns[~mask].any()


@pytest.mark.parametrize("last", [0, 2, 4])
def test_score_sits_on_the_last_real_token_and_the_sum_is_score_minus_beta_kl(last: int) -> None:
    torch.manual_seed(3)
    kl = torch.randn(2, 5)
    mask = torch.arange(5)[None] <= torch.tensor([last, 4])[:, None]
    kl[~mask] = NAN  # what stands after the end changes nothing
    scores = torch.tensor([3.0, -2.0])
    rewards = token_rewards(scores, kl, mask, 0.1)
    sums = rewards.sum(dim=1)
    assert sums.tolist() == pytest.approx([3.0 - 0.1 * float(kl[0, : last + 1].sum()), -2 - 0.1 * float(kl[1].sum())])
    free = token_rewards(scores, torch.zeros(2, 5), mask, 0.1)
    assert free.nonzero().tolist() == [[0, last], [1, 4]]
    assert [free[0, last].item(), free[1, 4].item()] == [3.0, -2.0]


def test_a_response_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        token_rewards(torch.zeros(2), torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3]), 0.1)


def test_whitened_values_have_mean_zero_and_population_variance_one() -> None:
    x, _, mask = _ragged(4)
    x = 5 * x + 3
    x[~mask] = math.inf
    white = whiten(x, mask, Ranks())
    kept = white[mask].double()
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()
    mean, variance, count = masked_moments(x, mask, Ranks())
    assert mean == pytest.approx(x[mask].double().mean().item(), abs=1e-9)
    assert variance == pytest.approx(x[mask].double().var(correction=0).item(), abs=1e-9)
    assert count == int(mask.sum())
    shifted = whiten(x, mask, Ranks(), shift_mean=False)[mask].double()
    assert shifted.mean().item() == pytest.approx(mean, abs=1e-5)
    assert shifted.var(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("values", [[4.0], [2.5, 2.5, 2.5], []])
def test_values_without_variance_become_zeros(values: list[float]) -> None:
    x = torch.tensor([[*values, NAN]])
    mask = torch.tensor([[True] * len(values) + [False]])
    assert whiten(x, mask, Ranks()).tolist() == [[0.0] * (len(values) + 1)]
    assert whiten(x, mask, Ranks(), shift_mean=False).tolist() == [[*values, 0.0]]


def test_kl_estimates_average_to_the_exact_divergence() -> None:
    torch.manual_seed(5)
    policy, reference = (torch.randn(16).double().log_softmax(0) for _ in range(2))
    exact = float((policy.exp() * (policy - reference)).sum())
    for kind in ("k1", "k3"):
        assert float((policy.exp() * kl_estimate(policy, reference, kind)).sum()) == pytest.approx(exact, abs=1e-9)  # type: ignore[arg-type]
    assert bool((kl_estimate(policy, reference, "k3") >= 0).all())
    assert bool((kl_estimate(policy, reference, "k1") < 0).any())
    halves = (policy - reference).square() / 2
    torch.testing.assert_close(kl_estimate(policy, reference, "k2"), halves)


def _truncated_world(truncation: str, **settings: Any) -> tuple[Any, list[Episode]]:
    """A trainer whose rollout has both ended and cut rows, with a value head that is not zero."""
    policy = policy_of()
    torch.manual_seed(6)
    torch.nn.init.normal_(policy.value.linear.weight)
    trainer = trainer_of(policy, truncation=truncation, max_new_tokens=10, rollout_batch=32, **settings)
    episodes = prepared(trainer)
    ended = [episode.ended for episode in episodes]
    assert any(ended) and not all(ended)
    return trainer, episodes


def test_masked_rows_give_no_gradient_and_are_in_no_denominator() -> None:
    trainer, episodes = _truncated_world("mask", epochs=1, entropy_coef=0.1, max_grad_norm=0)
    advantages = torch.cat([e.advantages_T for e in episodes if e.ended])
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.var(correction=0)) == pytest.approx(1, abs=1e-4)
    start = weights(trainer.policy)
    trainer.update(episodes)
    masked = gradients(trainer)
    # The same step over a rollout that never had the truncated rows.
    trainer.train_engine.load_weights(start)
    trainer._step([episode for episode in episodes if episode.ended], _sums())
    assert largest_difference(masked, gradients(trainer)) < 1e-7


def test_a_rollout_with_every_row_masked_changes_nothing() -> None:
    trainer = trainer_of(truncation="mask", eos_ids=(31,), max_new_tokens=2, rollout_batch=4, prompts=[(3, 4)])
    episodes = prepared(trainer)
    for episode in episodes:
        episode.ended = False
    before = weights(trainer.policy)
    metrics = trainer.estimate(episodes) | trainer.update(episodes)
    assert all(math.isfinite(value) for value in metrics.values())
    assert largest_difference(before, weights(trainer.policy)) == 0
    assert metrics["steps"] == 0


def test_bootstrap_is_terminal_with_the_discounted_value_after_the_end_added_to_the_last_reward() -> None:
    gamma = 0.9
    trainer, episodes = _truncated_world("bootstrap", gamma=gamma, lam=0.8, whiten=False, kl_coef=0.0)
    cut = [episode for episode in episodes if not episode.ended]
    assert all(abs(episode.after) > 1e-3 for episode in cut)
    for episode in episodes:
        # V after the last token, by a plain pass over one row.
        ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
        hidden = trainer.policy.model.model(input_ids=ids).last_hidden_state[0]
        values = trainer.policy.value(hidden[len(episode.prompt_ids) - 1 :]).detach()
        rewards = torch.zeros(len(episode.response_ids))
        rewards[-1] = episode.score - (0.0 if episode.ended else trainer.settings.missing_eos_penalty)
        if not episode.ended:
            rewards[-1] += gamma * values[-1]
        expected = _gae_by_sums(rewards.double().numpy(), values[:-1].double().numpy(), gamma, 0.8)
        assert episode.advantages_T.numpy() == pytest.approx(expected, abs=1e-5)


def _sums() -> Any:
    from pipeline.rl.ppo.measures import UpdateSums

    return UpdateSums()
