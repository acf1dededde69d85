"""Policy, value function and reference behind one face: the same numbers whichever way they are laid out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from ppo_world import (
    EOS,
    PROMPTS,
    classifier,
    language_model,
    largest_difference,
    lora,
    naive_logp,
    naive_logp_of,
    policy_of,
    prepared,
    reference_of,
    trainer_of,
    weights,
)

from pipeline.errors import PipelineError
from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.adapters import attach
from pipeline.rl.policy.build import build_policy, check_policy
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rollout.episodes import Episode, MicroBatch, Prompt, pack

KINDS = ("full", "separate", "lora", "cut")


def _trained_adapter(seed: int = 3) -> PeftModel:
    """A model with an adapter that already says something."""
    model = attach(language_model(), lora(), "causal", seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def _dropped(episodes: Sequence[Episode]) -> Sequence[Episode]:
    for episode in episodes:
        episode.hidden_TH = None
    return episodes


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", [*KINDS, "trained adapter"])
def test_the_first_step_has_a_ratio_of_one_and_the_start_a_divergence_of_zero(kind: str, temperature: float) -> None:
    if kind == "trained adapter":
        policy = build_policy(_trained_adapter(), temperature=temperature)
    else:
        policy = policy_of(kind, temperature=temperature)
    trainer = trainer_of(policy, epochs=1, temperature=temperature)
    episodes = prepared(trainer)
    for episode in episodes:
        assert float((episode.old_T - episode.reference_T).abs().sum()) <= 1e-6
    metrics = trainer.update(episodes)
    assert metrics["steps"] == 1
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-6)
    assert metrics["clipfrac"] == 0
    assert abs(metrics["approx_kl"]) < 1e-10


def _kept_bytes(policy: Policy, episodes: list[Episode]) -> int:
    """Return the bytes autograd keeps of a forward pass."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.forward(pack(episodes, policy.device))
    return sum(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_computed_again_give_the_same_steps_and_are_not_kept(kind: str) -> None:
    kept, weights = {}, {}
    for recompute in (False, True):
        trainer = trainer_of(policy_of(kind, recompute=recompute), iterations=2, learning_rate=1e-2)
        kept[recompute] = _kept_bytes(trainer.policy, _dropped(prepared(trainer)))
        trainer.iterate()
        trainer.iterate()
        weights[recompute] = {name: one.detach().clone() for name, one in trainer.policy.trained().items()}
        assert not recompute or not any(layer.training for layer in trainer.policy.blocks()[:2])
    assert kept[True] < 0.8 * kept[False]
    for name, one in weights[False].items():
        torch.testing.assert_close(weights[True][name], one, rtol=0, atol=1e-6)


def test_the_ratio_stays_one_when_the_update_packs_other_rows_together() -> None:
    trainer = trainer_of(epochs=1, minibatches=4, token_budget=4096, learning_rate=1e-12)
    episodes = prepared(trainer)
    for alone in episodes:
        logp_N = trainer.policy.forward(pack([alone], trainer.policy.device)).logp_N
        assert float((logp_N.detach() - alone.old_T).abs().max()) <= 1e-5
    assert trainer.update(episodes)["ratio_max"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays_where_it_was_while_the_policy_moves(kind: str) -> None:
    trainer = trainer_of(policy_of(kind), iterations=3, learning_rate=1e-2)
    policy = trainer.policy
    episodes = _dropped(prepared(trainer))
    before, own = reference_of(policy, episodes), naive_logp_of(policy, episodes)
    trainable = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    for _ in range(3):
        trainer.iterate()
    assert torch.equal(reference_of(policy, episodes), before)
    assert (naive_logp_of(policy, episodes) - own).abs().max() > 1e-2
    base = language_model()  # loaded apart
    apart = torch.cat([naive_logp(base, episode) for episode in episodes])
    torch.testing.assert_close(before, apart, atol=1e-5, rtol=0)
    assert {name for name, p in policy.model.named_parameters() if p.requires_grad} == trainable
    if kind in ("full", "separate"):
        assert not any(p.requires_grad for p in policy.reference.parameters())


def test_an_adapter_trained_before_is_trained_on_and_its_start_is_the_reference() -> None:
    model = _trained_adapter()
    start = copy.deepcopy(model)
    policy = build_policy(model)
    assert all(".default." in name or name.startswith("value.") for name in policy.trained())
    trainer = trainer_of(policy, learning_rate=1e-2)
    episodes = prepared(trainer)
    expected = torch.cat([naive_logp(start, episode) for episode in episodes])
    base = torch.cat([naive_logp(start.get_base_model(), e) for e in episodes])  # still with the adapter inside
    with start.disable_adapter():
        bare = torch.cat([naive_logp(start, episode) for episode in episodes])
    torch.testing.assert_close(base, expected)
    torch.testing.assert_close(reference_of(policy, episodes), expected, atol=1e-5, rtol=0)
    assert (bare - expected).abs().max() > 0.1  # switching the adapter off would have been another reference
    for _ in range(3):
        trainer.iterate()
    torch.testing.assert_close(reference_of(policy, episodes), expected, atol=1e-5, rtol=0)
    assert (naive_logp_of(policy, episodes) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "trained adapter"])
def test_being_the_reference_for_a_while_leaves_no_trace_even_after_an_error(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build_policy(_trained_adapter()) if kind == "trained adapter" else policy_of("lora")
    episodes = prepared(trainer_of(policy))
    active = policy.model.active_adapter
    if kind == "trained adapter":  # what peft would switch on again by itself is not enough
        next(p for p in policy.model.parameters() if p.requires_grad).requires_grad_(False)
    trained = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    own = naive_logp_of(policy, episodes)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "_head", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            reference_of(policy, episodes)
    assert policy.model.active_adapter == active
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == trained
    assert torch.equal(naive_logp_of(policy, episodes), own)


def test_cached_lower_layers_give_what_all_layers_give() -> None:
    trainer = trainer_of(policy_of("cut"), learning_rate=1e-2, iterations=3)
    policy = trainer.policy
    assert policy.cut == 1
    for _ in range(2):
        trainer.iterate()  # so that the upper half is no longer the reference
    episodes = prepared(trainer)
    batch = pack(episodes, policy.device)
    assert batch.hidden_BTH is not None
    cached = policy.forward(batch, entropy=True)
    reference = reference_of(policy, episodes)
    assert (reference - cached.logp_N).abs().max() > 1e-3
    plain = pack(_dropped(episodes), policy.device)
    assert plain.hidden_BTH is None
    whole = policy.forward(plain, entropy=True)
    for with_cache, without in zip(cached, whole, strict=True):
        torch.testing.assert_close(with_cache, without, atol=1e-6, rtol=0)
    torch.testing.assert_close(reference, reference_of(policy, episodes), atol=1e-6, rtol=0)
    torch.testing.assert_close(cached.logp_N, naive_logp_of(policy, episodes), atol=1e-5, rtol=0)


def test_training_with_the_cache_takes_the_steps_of_training_without() -> None:
    cached, plain = (trainer_of(policy_of("cut"), seed=4) for _ in range(2))
    plain.policy.cut = None
    for _ in range(3):
        cached.iterate()
        plain.iterate()
    assert largest_difference(weights(cached.policy), weights(plain.policy)) < 1e-5
    assert all(".layers.1." in name for name in cached.policy.trained() if name.startswith("policy."))


def test_a_cache_that_does_not_reproduce_the_model_is_switched_off_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("cut")
    prompts, engine = [Prompt({}, prompt) for prompt in PROMPTS], BatchedEngine()
    settings = GenerationSettings(4, EOS, 0)
    assert check_policy(policy, engine, prompts, settings) == ""
    assert policy.cut == 1
    lower_states = Policy.lower_states
    monkeypatch.setattr(Policy, "lower_states", lambda self, ids: 1.1 * lower_states(self, ids))
    assert "lower layers are not cached" in check_policy(policy, engine, prompts, settings)
    assert policy.cut is None


def test_scoring_that_disagrees_with_sampling_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    head = Policy._head

    def shifted(self: Policy, model: Any, upper: Any, batch: MicroBatch) -> Any:
        return head(
            self, model, upper, MicroBatch(**{**vars(batch), "positions_N": (batch.positions_N - 1).clamp(min=0)})
        )

    monkeypatch.setattr(Policy, "_head", shifted)
    with pytest.raises(PipelineError, match="a greedy response is not what a forward pass finds likeliest"):
        prompts = [Prompt({}, prompt) for prompt in PROMPTS]
        check_policy(policy, BatchedEngine(), prompts, GenerationSettings(4, EOS, 0))


def test_layers_that_cannot_be_halved_and_a_missing_start_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"cannot be run in two halves.*Use adapter.layers: all"):
        build_policy(language_model(layers=1), adapter=lora(layers="top-half"))
    with pytest.raises(PipelineError, match="no start for the value function"):
        build_policy(language_model(), layout="separate")


@pytest.mark.parametrize("kind", ["lora", "trained adapter", "cut"])
def test_sampling_folds_the_adapter_in_and_takes_it_out_bit_for_bit(kind: str) -> None:
    policy = build_policy(_trained_adapter()) if kind == "trained adapter" else policy_of(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.2)
    engine, greedy = BatchedEngine(), GenerationSettings(12, EOS, 0, Sampling(greedy=True))
    unmerged = engine(policy.model, PROMPTS, greedy, range(8))
    kept = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    logits = policy.model(input_ids=torch.tensor([PROMPTS[0]])).logits
    with policy.sampling() as model:
        assert any(not torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
        merged = engine(model, PROMPTS, greedy, range(8))
        assert torch.allclose(model(input_ids=torch.tensor([PROMPTS[0]])).logits, logits, atol=1e-5)
    assert merged == unmerged
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(kept[name], tensor), name
    assert torch.equal(policy.model(input_ids=torch.tensor([PROMPTS[0]])).logits, logits)
    with pytest.raises(RuntimeError, match="engine"), policy.sampling():
        raise RuntimeError("engine")
    assert torch.equal(policy.model(input_ids=torch.tensor([PROMPTS[0]])).logits, logits)


def test_padding_with_the_end_token_changes_nothing() -> None:
    one, other = trainer_of(seed=9), trainer_of(seed=9, pad_id=EOS)
    for trainer in (one, other):
        trainer.iterate()
    assert largest_difference(weights(one.policy), weights(other.policy)) == 0


def test_a_prompt_may_contain_the_end_token_and_any_of_several_ends_a_response() -> None:
    stops = (EOS, 9, 17)
    prompts = [(3, EOS), (9, 4), (17, 17, 5), (EOS, EOS, EOS)]
    trainer = trainer_of(prompts=prompts, eos_ids=stops, rollout_batch=64, max_new_tokens=12, missing_eos_penalty=2.0)
    trainer.scale.see = lambda *arguments: None  # type: ignore[method-assign]
    episodes = prepared(trainer)
    for episode in episodes:
        assert episode.ended == (episode.response_ids[-1] in stops)
        assert not set(episode.response_ids[:-1]) & set(stops)
        assert episode.ended or len(episode.response_ids) == 12
    assert {episode.response_ids[-1] for episode in episodes if episode.ended} == set(stops)
    assert any(not episode.ended for episode in episodes)


def test_dropout_is_off_everywhere() -> None:
    model = language_model()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy = build_policy(model, adapter=lora(dropout=0.5))
    policy.model.train()
    assert not [p for p in policy.model.modules() if isinstance(p, torch.nn.Dropout) and p.p]
    assert policy.model.config.attention_dropout == 0
    trainer = trainer_of(policy, epochs=1)
    assert trainer.update(prepared(trainer))["ratio_max"] == pytest.approx(1, abs=1e-6)


def test_a_value_model_of_its_own_reads_the_position_before_each_token() -> None:
    start = classifier()
    policy = build_policy(language_model(), layout="separate", value_start=start)
    episodes = prepared(trainer_of(policy))
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
        hidden = start.model(input_ids=ids).last_hidden_state[0, len(episode.prompt_ids) - 1 : -1]
        torch.testing.assert_close(episode.values_T, start.score(hidden)[:, 0], atol=1e-5, rtol=0)
