"""Builds a `Policy` in one of the layouts of `policy.py` from models in memory, and checks it before it is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import torch
from peft import PeftModel

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import attach
from pipeline.rl.policy.adapters import VALUE, add_adapter, keep_reference_adapter
from pipeline.rl.policy.policy import Policy, ValueHead, ValueModel, can_be_cut
from pipeline.rl.rollout.episodes import Episode, Prompt, pack
from pipeline.rl.train_engines.engines import TrainEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["shared", "separate"]

_CACHE_ERROR = 1e-4
_LAW_ERROR = 1e-2
_ROUNDINGS = 16
"""Units of rounding of the largest logit by which sampling and scoring may differ in half precision."""


class PolicyOptions(TypedDict, total=False):
    """How policy and value function share weights, and how they compute.

    Attributes:
        layout: `shared`, the default, puts a value head on the policy's trunk; `separate` gives the value function its
            own model.
        value: `head`, the default; `adapter` gives the value function an adapter of its own, in the shared layout with
            a policy adapter.
        value_gradient: whether a value head's gradient reaches the trunk; true by default.
        temperature: sampling temperature; 1 by default.
        precision: autocast dtype; None, the default, computes in the dtype of the weights.
        recompute: recompute activations in the backward pass instead of saving them; false by default.
    """

    layout: Layout
    value: Literal["head", "adapter"]
    value_gradient: bool
    temperature: float
    precision: torch.dtype | None
    recompute: bool


def build_policy(
    model: PreTrainedModel | PeftModel,
    *,
    adapter: Adapter | None = None,
    value_start: PreTrainedModel | None = None,
    reference: PreTrainedModel | PeftModel | None = None,
    seed: int = 0,
    **options: Unpack[PolicyOptions],
) -> Policy:
    """Build policy, value function and reference.

    Args:
        model: starting model of the policy, a causal language model. If it has an adapter, that adapter is trained
            further, and a frozen copy of it is the reference.
        adapter: adapter to train instead of all weights.
        value_start: a sequence classification model that the separate value function starts from.
        reference: the starting model a second time, if all weights of the policy are trained; a deep copy when
            omitted, which is not possible for a sharded model.
        seed: seed of the adapters' random matrices.
        options: layout and computation, field by field; what is left out is as `PolicyOptions` says.

    Raises:
        PipelineError: the layers cannot be split into halves, or there is no start for a separate value function.
    """
    layout = options.get("layout", "shared")
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
    own = options.get("value") == "adapter" and layout == "shared" and isinstance(model, PeftModel)
    if own:
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            add_adapter(model, VALUE, model.peft_config[model.active_adapter], trained=True)
    critic.to(model.device)
    return Policy(
        model,
        critic,
        reference,
        temperature=options.get("temperature", 1.0),
        cut=cut,
        value_gradient=options.get("value_gradient", True),
        value_adapter=own,
        precision=options.get("precision"),
        recompute=options.get("recompute", False),
    )


def _half(model: PreTrainedModel) -> int:
    """Return the index of the first layer of the upper half."""
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
    """Return by how much logits may differ if half precision computes them in another order; 0 in full precision."""
    if policy.precision is None:
        return 0.0
    return _ROUNDINGS * torch.finfo(policy.precision).eps * float(logits_N.abs().max())


@torch.no_grad()
def check_policy(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    sharded_engine: TrainEngine | None = None,
) -> str:
    """Check on a few greedy responses that scoring agrees with sampling, and cached lower layers with the full model.

    Returns:
        A note if caching the lower layers was disabled; otherwise an empty string.

    Raises:
        PipelineError: scoring does not rank a greedily sampled token first, so sampling and scoring differ.
    """
    few, greedy = list(prompts)[:4], replace(settings, sampling=Sampling(greedy=True), seed=0)
    with sharded_engine.sampling() if sharded_engine is not None else policy.sampling() as model:
        responses = engine(model, [p.ids for p in few], greedy, range(len(few))).responses
    episodes = [
        Episode(i, prompt.row, prompt.ids, response, bool(response) and response[-1] in settings.ends, "")
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
    if policy.is_collective:
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
