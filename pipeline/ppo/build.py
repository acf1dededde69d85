"""Puts a policy together: from models in memory to one of the layouts of `policy.py`, checked before it is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import PeftModel

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.models.adapter_config import Adapter
from pipeline.models.adapters import attach
from pipeline.ppo.adapters import VALUE, add_adapter, keep_reference_adapter
from pipeline.ppo.episodes import Episode, Prompt, pack
from pipeline.ppo.policy import Policy, ValueHead, ValueModel, can_be_cut
from pipeline.ppo.rollout import Engine
from pipeline.ppo.steppers import TrainEngine

Layout = Literal["shared", "separate"]

_CACHE_ERROR = 1e-4
_LAW_ERROR = 1e-2
_ROUNDINGS = 16
"""Of the largest logit, which sampling and scoring may be apart where both compute in half precision."""


def build_policy(
    model: Any,
    *,
    layout: Layout = "shared",
    adapter: Adapter | None = None,
    value_start: Any | None = None,
    reference: Any | None = None,
    temperature: float = 1.0,
    value_gradient: bool = True,
    value: Literal["head", "adapter"] = "head",
    precision: torch.dtype | None = None,
    recompute: bool = False,
    seed: int = 0,
) -> Policy:
    """Return policy, value function and reference.

    Args:
        model: the policy's start, a causal language model; with an adapter on it, that adapter is trained further and
            its start is kept as the reference.
        layout: `shared` puts a value head on the policy's trunk; `separate` gives the value function a model of its
            own.
        adapter: train an adapter instead of all weights.
        value_start: a sequence classification model the separate value function starts from.
        reference: the start once more, for a policy all of whose weights are trained; a copy when omitted, which one
            that is sharded has none of.
        temperature: of sampling.
        value_gradient: whether a value head's gradient reaches the trunk.
        value: with an adapter and a shared layout, whether the value function has one of its own beside its head.
        precision: of the computation where it is not that of the weights.
        recompute: compute activations again in the backward pass, instead of keeping them.
        seed: of the adapters' random halves.

    Raises:
        PipelineError: layers that cannot be told apart, or no start for a separate value function.
    """
    cut: int | None = None
    if isinstance(model, PeftModel):
        keep_reference_adapter(model)
    elif adapter is not None:
        if adapter.layers == "top-half":
            cut = _half(model)
        model = attach(model, adapter, "causal", seed=seed)
    else:
        reference = copy.deepcopy(model) if reference is None else reference
        model.requires_grad_(True)
    if layout == "separate":
        if value_start is None:
            raise PipelineError(Problem("no start for the value function", "a sequence classification model"))
        critic: ValueHead | ValueModel = ValueModel(value_start)
        critic.requires_grad_(True)
    else:
        critic = ValueHead(model.config.get_text_config().hidden_size)
    own = value == "adapter" and layout == "shared" and isinstance(model, PeftModel)
    if own:
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            add_adapter(model, VALUE, model.peft_config[model.active_adapter], trained=True)
    critic.to(model.device)
    return Policy(model, critic, reference, temperature, cut, value_gradient, own, precision, recompute)


def _half(model: Any) -> int:
    count = int(model.config.get_text_config().num_hidden_layers)
    if count < 2 or not can_be_cut(model):
        raise PipelineError(
            Problem(
                f"the layers of {type(model).__name__} cannot be run in two halves",
                "a decoder with two or more `layers` and a final `norm`",
                "use adapter.layers: all",
            )
        )
    return count // 2


def _rounding(policy: Policy, logits_N: torch.Tensor) -> float:
    """Return by how much logits may differ for being computed in another order in half precision."""
    if policy.precision is None:
        return 0.0
    return _ROUNDINGS * torch.finfo(policy.precision).eps * float(logits_N.abs().max())


@torch.no_grad()
def check_policy(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    eos_ids: Sequence[int],
    stepper: TrainEngine | None = None,
) -> str:
    """Sample a few rows greedily and look whether scoring agrees with sampling, and the cached halves with the whole.

    Returns:
        A note where the cache was switched off because it does not reproduce the model; otherwise nothing.

    Raises:
        PipelineError: the model scores its own greedy choice as unlikely: sampling and scoring differ.
    """
    few = list(prompts)[:4]
    with stepper.sampling() if stepper is not None else policy.sampling() as model:
        responses = engine(model, [p.ids for p in few], seed=0, places=range(len(few)), greedy=True).responses
    episodes = [
        Episode(i, prompt.row, prompt.ids, response, bool(response) and response[-1] in eos_ids, "")
        for i, (prompt, response) in enumerate(zip(few, responses, strict=True))
    ]
    batch = pack(episodes, policy.device)
    logits_NV = policy.run(lambda: policy._head(policy.model, None, batch)[0])
    best_N = logits_NV.max(dim=-1).values
    chosen_N = logits_NV.gather(-1, batch.targets_N[:, None])[:, 0]
    error, rounding = float((best_N - chosen_N).max()), _rounding(policy, best_N)
    if not error < _LAW_ERROR + rounding:
        raise PipelineError(
            Problem(
                f"a greedy response is not what a forward pass finds likeliest (logits differ by {error:.3g})",
                "sampling and scoring to agree",
                "try rollout_engine: generate; if both do this, report the model's architecture",
            ),
            exit_code=ExitCode.FAILED,
        )
    if policy.cut is None:
        return ""
    whole_N = policy.forward(batch, values=False).logp_N
    if policy.in_step:
        policy.cut = None
        return "lower layers are not cached: weights are sharded"
    for episode, hidden_TH in zip(episodes, policy.lower_states(batch.ids_BT), strict=True):
        episode.hidden_TH = hidden_TH[: episode.length]
    halves_N = policy.forward(pack(episodes, policy.device), values=False).logp_N
    error = float((whole_N - halves_N).abs().max())
    if error < _CACHE_ERROR + rounding:
        return ""
    policy.cut = None
    return f"lower layers are not cached: their cached states do not reproduce the model (error {error:.2g})"
