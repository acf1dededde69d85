"""A language model of two layers that knows nothing, and trainers on it: what every test of PPO starts from.

A module rather than fixtures, since processes that a test starts need it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.adapter_config import Adapter
from pipeline.rl.policy.build import build_policy
from pipeline.rl.policy.policy import Policy
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.ppo.trainer import PPOTrainer
from pipeline.rl.rollout.episodes import Episode, Prompt, pack

VOCABULARY, EOS, X = 32, 1, 7
PROMPTS = ((3, 4, 5), (6,), (8, 9, 10, 11, 12), (13, 2), (14, 15, 16, 17), (18, 19), (20,), (21, 22, 23, 24, 25, 26))
"""Ragged; one has a single token."""


def _config(spread: float, layers: int, vocabulary: int, hidden: int = 32) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=spread,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
    )


def language_model(
    seed: int = 0, *, spread: float = 0.15, layers: int = 2, vocabulary: int = VOCABULARY, hidden: int = 32
) -> Any:
    """Return a llama with random weights; a larger ``spread`` makes its opinions stronger."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(_config(spread, layers, vocabulary, hidden))


def classifier(seed: int = 5) -> Any:
    """Return a llama with a score head: what a value function of its own starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = _config(0.15, 2, VOCABULARY)
        config.num_labels = 1
        return LlamaForSequenceClassification(config)


def lora(**fields: Any) -> Adapter:
    """Return an adapter of rank 4."""
    return Adapter(**{"r": 4, **fields})


def policy_of(kind: str = "full", *, spread: float = 0.15, **fields: Any) -> Policy:
    """Return a policy of one of the layouts; the value's gradient stays out of its trunk.

    They are full, separate, lora, cut, and the last two with a value function that has an adapter of its own.
    """
    fields = {"value_gradient": False, **fields}
    if kind.endswith(" value"):
        kind, fields = kind.removesuffix(" value"), {**fields, "value": "adapter"}
    adapters = {"lora": lora(), "cut": lora(layers="top-half")}
    model = language_model(spread=spread)
    if kind == "separate":
        return build_policy(model, layout="separate", value_start=classifier(), **fields)
    return build_policy(model, adapter=adapters.get(kind), **fields)


def first_is_x(episodes: Sequence[Episode]) -> list[float]:
    """Pay for a response whose first token is X."""
    return [float(episode.response_ids[0] == X) for episode in episodes]


def trainer_of(
    policy: Policy | None = None,
    score: Callable[[Sequence[Episode]], list[float]] = first_is_x,
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    eos_ids: Sequence[int] = (EOS,),
    pad_id: int = 0,
    seed: int = 11,
    **settings: Any,
) -> PPOTrainer:
    """Return a trainer with small, fast settings; further ones by name, and PPOTrainer's own fields."""
    own = {name: settings.pop(name) for name in ("held_out", "ranks", "language_loss", "on_step") if name in settings}
    chosen = PPOSettings(
        **{
            "iterations": 4,
            "rollout_batch": 8,
            "epochs": 2,
            "max_new_tokens": 6,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            **settings,
        }
    )
    assert not chosen.check()
    return PPOTrainer(
        policy=policy if policy is not None else policy_of(temperature=chosen.temperature),
        settings=chosen,
        prompts=[Prompt({"prompt": []}, tuple(prompt)) for prompt in prompts],
        score=score,
        engine=BatchedEngine(),
        generation=GenerationSettings(
            chosen.max_new_tokens, list(eos_ids), pad_id, Sampling(temperature=chosen.temperature)
        ),
        decode_text=lambda ids, prompt_ids: " ".join(map(str, ids)),
        seed=seed,
        **own,
    )


def prepared(trainer: PPOTrainer) -> list[Episode]:
    """Roll out, score and estimate: everything of an iteration but its update."""
    episodes = trainer.roll_out()
    trainer.measure(episodes)
    trainer.estimate(episodes)
    return episodes


def naive_logp(model: Any, episode: Episode, temperature: float = 1.0) -> torch.Tensor:
    """Return log-probabilities of a response by one plain forward pass of one row, all positions, no padding."""
    ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
    logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float() / temperature, dim=-1)
    return logps.gather(1, ids[0, 1:, None])[len(episode.prompt_ids) - 1 :, 0]


def naive_logp_of(policy: Policy, episodes: Sequence[Episode]) -> torch.Tensor:
    """Return log-probabilities of all responses, row by row, under the policy as it is."""
    return torch.cat([naive_logp(policy.model, episode, policy.temperature) for episode in episodes])


def reference_of(policy: Policy, episodes: Sequence[Episode]) -> torch.Tensor:
    """Return the reference's log-probabilities of all responses."""
    return policy.reference_logp(pack(episodes, policy.device)).clone()


def gradients(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Return copies of the gradients the last optimizer step left behind."""
    named = {f"policy.{n}": p for n, p in trainer.policy.model.named_parameters() if p.requires_grad}
    named |= {f"value.{n}": p for n, p in trainer.policy.value.named_parameters()}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    """Return copies of everything that is trained."""
    return {name: tensor.detach().clone() for name, tensor in policy.trained().items()}


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if not name.startswith("seconds_")}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of tensors with the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) if one[name].numel() else math.inf for name in one)
