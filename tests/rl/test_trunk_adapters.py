"""One trunk for policy, value function, reward and reference: each is what it would be with a trunk of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_world import (
    PROMPTS,
    language_model,
    lora,
    naive_logp_of,
    policy_of,
    prepared,
    reference_of,
    trainer_of,
    weights,
)
from transformers import LlamaForSequenceClassification

from pipeline.models.load.adapters import attach
from pipeline.models.scoring import sequence_scores
from pipeline.rl.policy.adapters import (
    REWARD,
    VALUE,
    TrunkReward,
    reward_on_trunk,
    start_value_from_reward,
    use_adapter,
)
from pipeline.rl.policy.build import build_policy
from pipeline.rl.policy.trunk_scorer import trunk_scorer
from pipeline.rl.rewards.sources import Sample
from pipeline.rl.rollout.episodes import pack


def _bend(model: Any, adapter: str) -> None:
    """Give an adapter an opinion: fresh ones are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def _reward_model(folder: Path, base: Any, *, merge: bool = True, **adapter: Any) -> Any:
    """Train nothing, but leave what a reward stage leaves: whole weights, and the adapter they contain beside them."""
    config = base.config.__class__(**{**base.config.to_dict(), "num_labels": 1})
    whole = LlamaForSequenceClassification(config)
    whole.model.load_state_dict(base.model.state_dict())
    peft = attach(whole, lora(**adapter), "reward", seed=1)
    _bend(peft, "default")
    peft.save_pretrained(folder / "adapter")
    plain = peft.merge_and_unload() if merge else whole
    plain.save_pretrained(folder)
    return plain.eval()


@pytest.mark.parametrize("adapter", [{}, {"r": 8, "alpha": 4}, {"targets": ["q_proj", "down_proj"]}], ids=str)
def test_a_reward_adapter_on_the_trunk_scores_as_the_whole_reward_model(
    adapter: dict[str, Any], tmp_path: Path
) -> None:
    base = language_model()
    whole = _reward_model(tmp_path, base, **adapter)
    policy = build_policy(base, adapter=lora())
    _bend(policy.model, "default")  # the policy has moved: its adapter must stay out of the scores
    episodes = prepared(trainer_of(policy))
    before = naive_logp_of(policy, episodes)
    reward = reward_on_trunk(policy.model, tmp_path)
    assert reward is not None
    samples = [Sample({}, e.prompt_ids, e.response_ids, "") for e in episodes]
    scores = trunk_scorer(policy, reward, 0, token_budget=20)(samples, {})
    rows = [[*e.prompt_ids, *e.response_ids] for e in episodes]
    assert scores == pytest.approx(sequence_scores(whole, rows, 0), abs=1e-4)
    assert max(scores) - min(scores) > 0.1
    # Nothing of the policy knows: what is trained, what it says, what is saved of it.
    assert torch.equal(naive_logp_of(policy, episodes), before)
    assert not any(REWARD in name for name in policy.trained())


def test_a_reward_adapter_of_another_trunk_is_refused(tmp_path: Path) -> None:
    _reward_model(tmp_path, language_model(seed=1))
    assert reward_on_trunk(build_policy(language_model(seed=0), adapter=lora()).model, tmp_path) is None
    assert reward_on_trunk(language_model(seed=1), tmp_path) is None  # full fine-tuning moves the trunk
    assert reward_on_trunk(build_policy(language_model(seed=1), adapter=lora()).model, tmp_path) is not None
    assert reward_on_trunk(build_policy(language_model(seed=1), adapter=lora()).model, tmp_path / "no") is None


@pytest.mark.parametrize("kind", ["lora value", "cut value"])
def test_a_value_adapter_and_the_policy_s_own_do_not_touch_one_another(kind: str) -> None:
    policy = policy_of(kind)
    trainer = trainer_of(policy, learning_rate=1e-2, critic_warmup=1)
    start = weights(policy)
    assert any(VALUE in name for name in start if name.startswith("value."))
    assert not any(VALUE in name for name in start if name.startswith("policy."))
    assert len(policy.policy_parameters) == sum(name.startswith("policy.") for name in start)
    trainer.iterate()
    only_value = weights(policy)
    assert all(torch.equal(start[name], only_value[name]) for name in start if name.startswith("policy."))
    assert any(not torch.equal(start[name], only_value[name]) for name in start if ".value.weight" in name)
    # The value function moved, and the policy says what it said: it still is its reference.
    episodes = prepared(trainer)
    torch.testing.assert_close(naive_logp_of(policy, episodes), reference_of(policy, episodes), atol=1e-5, rtol=0)
    # And the other way round: the value of a state does not depend on the policy's adapter.
    values = policy.forward(pack(episodes, policy.device)).values_N
    _bend(policy.model, "default")
    torch.testing.assert_close(policy.forward(pack(episodes, policy.device)).values_N, values, atol=1e-6, rtol=0)


def test_a_value_adapter_learns_what_the_prompt_alone_decides() -> None:
    trainer = trainer_of(
        policy_of("lora value"),
        score=lambda episodes: [float(episode.prompt_ids[0] % 5) for episode in episodes],
        iterations=60,
        rollout_batch=32,
        max_new_tokens=3,
        kl_coef=0.0,
        critic_warmup=60,
        value_learning_rate=1e-2,
        missing_eos_penalty=0.0,
    )
    explained = [metrics["explained_variance"] for metrics in trainer.iterations()]
    assert explained[-1] > 0.8 > 0.2 > explained[0]


def test_the_value_function_starts_as_the_reward_model_where_their_adapters_have_one_form(tmp_path: Path) -> None:
    base = language_model()
    whole = _reward_model(tmp_path, base)
    policy = build_policy(base, adapter=lora(), value="adapter", value_gradient=False)
    reward = reward_on_trunk(policy.model, tmp_path)
    assert reward is not None
    assert start_value_from_reward(policy.model, policy.value.linear, reward)
    episodes = prepared(trainer_of(policy))
    for episode in episodes:  # V before the last token is the reward model's score of what stands there
        row = [*episode.prompt_ids, *episode.response_ids[:-1]]
        assert float(episode.values_T[-1]) == pytest.approx(sequence_scores(whole, [row], -1)[0], abs=1e-4)
    other = build_policy(language_model(), adapter=lora(r=8), value="adapter")
    reward = reward_on_trunk(other.model, tmp_path)
    assert reward is not None and not start_value_from_reward(other.model, other.value.linear, reward)


def test_another_adapter_for_a_while_leaves_no_trace_even_after_an_error() -> None:
    model = get_peft_model(language_model(), LoraConfig(r=2, target_modules="all-linear"))
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.set_adapter("default")
    _bend(model, "other")
    ids = torch.tensor([PROMPTS[0]])
    plain, trained = model(input_ids=ids).logits, {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError), use_adapter(model, "other"):
        assert not torch.allclose(model(input_ids=ids).logits, plain)
        raise RuntimeError
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trained
    assert model.active_adapter == "default"


def _bytes(*modules: Any) -> int:
    """Return the bytes of all weights, those that are shared once."""
    tensors = {t.data_ptr(): t for module in modules for t in module.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_one_trunk_holds_at_most_35_percent_of_the_weights_of_four_models(tmp_path: Path) -> None:
    base = language_model(layers=4, vocabulary=512)
    _reward_model(tmp_path, base, r=2)
    policy = build_policy(base, adapter=lora(r=2), value="adapter")
    reward = reward_on_trunk(policy.model, tmp_path)
    assert isinstance(reward, TrunkReward)
    four = 4 * _bytes(language_model(2, layers=4, vocabulary=512))
    together = _bytes(policy.model, policy.value, reward.head)
    assert together <= 0.35 * four, together / four
