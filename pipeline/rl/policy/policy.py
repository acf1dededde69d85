"""The models of PPO behind one interface: policy, value function, reference.

Layouts (what is trained, what is shared):

    full       policy: all weights    value: a head on the policy's trunk                    reference: a frozen copy
    separate   policy: all weights    value: a model of its own                              reference: a frozen copy
    LoRA       policy: an adapter     value: a head, or an adapter of its own with a head    reference: no adapter
    cut LoRA   as LoRA, on the layers from `cut` upwards: the hidden states of the frozen layers below are computed
               once per rollout, and shared by policy, value function and reference over all epochs

Only positions that predict a response token go through the output layer.

Shapes: B rows, T positions, N response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models.positions import decoder_of, hidden_at, logits_at
from pipeline.rl.policy.adapters import REFERENCE, REWARD, VALUE, TrunkReward, is_of, tuned_layers, use_adapter
from pipeline.rl.rollout.episodes import MicroBatch

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel


class Outputs(NamedTuple):
    """Outputs of a forward pass for each response token, shape (N,) each; values and entropy are optional."""

    logp_N: Tensor
    values_N: Tensor | None
    entropy_N: Tensor | None


class ValueHead(nn.Module):
    """A linear value function on hidden states; starts at V = 0, so the first advantages ignore the value function."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return values, shape (N,)."""
        values_N: Tensor = self.linear(hidden_NH.to(self.linear.weight.dtype))[:, 0]
        return values_N


class ValueModel(nn.Module):
    """A value function with a trunk of its own: a sequence classification model, evaluated at every position."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = getattr(classifier, classifier.base_model_prefix)
        self.score = classifier.score

    def forward(self, ids_BT: Tensor, positions_N: Tensor) -> Tensor:
        """Return values at the given positions, shape (N,)."""
        values_N: Tensor = self.score(hidden_at(self.trunk, positions_N, input_ids=ids_BT))[:, 0].float()
        return values_N


class PolicyModule(nn.Module):
    """Policy, value function and reference as one module, for engines that shard weights to wrap."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model, self.value = policy.model, policy.value
        if policy.reference is not None:
            self.reference = policy.reference

    def forward(self, run: Callable[[], Any]) -> Any:
        """Call ``run``, which calls these models, inside the engine's forward pass."""
        return run()


@dataclass
class Policy:
    """Policy, value function and reference.

    Attributes:
        model: the policy's causal language model, plain or with an adapter.
        value: a head on the policy's trunk, or a model of its own.
        reference: a frozen copy; None if the reference is the policy's model without adapter or with its `ref` adapter.
        temperature: divides the logits of policy and reference.
        cut: the layers below this index are frozen, and their output is cached; None caches nothing.
        value_gradient: whether a value head's gradient reaches the trunk.
        value_adapter: whether the value function has an adapter of its own on the trunk.
        precision: autocast dtype; None computes in the dtype of the weights.
        recompute: activation checkpointing: recompute a layer's activations in the backward pass (Chen et al. 2016,
            arXiv:1604.06174).
    """

    model: PreTrainedModel | PeftModel
    value: ValueHead | ValueModel
    reference: PreTrainedModel | PeftModel | None
    temperature: float = 1.0
    cut: int | None = None
    value_gradient: bool = True
    value_adapter: bool = False
    precision: torch.dtype | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        """Disable dropout, with which the probability ratio would not start at 1; prepare the halves of a cut model."""
        for module in (self.model, self.value, self.reference):
            if module is not None:
                without_dropout(module)
        if self.reference is not None:
            self.reference.requires_grad_(False).eval()
        self._checkpointed = self._recomputing_layers() if self.recompute else []
        self.module = PolicyModule(self)
        self._engine: Any = self.module
        self.is_collective = False
        self._upper: PreTrainedModel | None = None
        self._lower: PreTrainedModel | None = None
        if self.cut is not None:
            plain = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            self._upper = _with_layers(plain, start=self.cut)
            self._lower = _with_layers(plain, stop=self.cut)

    def through(self, engine: nn.Module | FSDPModule) -> None:
        """Route every model call through an engine that wraps `whole`; passes are then collective over all ranks."""
        self._engine = engine
        self.is_collective = True

    def _recomputing_layers(self) -> list[nn.Module]:
        """Enable activation checkpointing in the trained layers; it is active while a layer is in training mode."""
        parts = [*self.model.modules(), *self.value.modules()]
        layers: list[nn.Module] = [part for part in parts if isinstance(part, GradientCheckpointingLayer)]
        for layer in layers:
            layer.gradient_checkpointing = True  # type: ignore[assignment]
            layer.training = False
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
        return layers

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Activate activation checkpointing if gradients are enabled, by setting the layers to training mode.

        Their submodules stay in evaluation mode. In sampling and scoring, a layer in training mode would not use its
        cache.
        """
        for layer in self._checkpointed if torch.is_grad_enabled() else ():
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    def run(self, work: Callable[[], Any]) -> Any:
        """Call ``work``, which calls the models, through the engine and in the compute precision."""
        with self.computing():
            return self._engine(work)

    def computing(self) -> AbstractContextManager[Any]:
        """Return an autocast context for `precision`."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of all decoders, the units that FSDP2 shards and gathers."""
        decoders = [decoder_of(model) for model in (self.model, self.reference) if model is not None]
        decoders += [self.value.trunk] if isinstance(self.value, ValueModel) else []
        return [layer for decoder in decoders for layer in getattr(decoder, "layers", getattr(decoder, "h", []))]

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        device: torch.device = self.model.device
        return device

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        """Trained weights of the policy."""
        return [parameter for name, parameter in self.trained().items() if name.startswith("policy.")]

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        """Trained weights of the value function."""
        return [parameter for name, parameter in self.trained().items() if name.startswith("value.")]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return all trained weights by name, prefixed with `policy.` or `value.`, as in checkpoints."""
        named = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                named[f"{'value' if is_of(name, VALUE) else 'policy'}.{name}"] = parameter
        return named | {f"value.{name}": p for name, p in self.value.named_parameters()}

    def forward(
        self, batch: MicroBatch, *, values: bool = True, entropy: bool = False, entropy_gradient: bool = True
    ) -> Outputs:
        """Run policy and value function over a micro-batch."""
        with self._checkpointing():
            return Outputs(*self.run(lambda: self._forward(batch, values, entropy, entropy_gradient)))

    def _forward(
        self, batch: MicroBatch, values: bool, entropy: bool, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits_NV, hidden_NH = self._head(self.model, self._upper, batch)
        logp_N = log_probabilities(logits_NV, batch.targets_N, self.temperature)
        entropy_N = None
        if entropy:
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                entropy_N = entropy_of(logits_NV, self.temperature)
        return logp_N, self._values(batch, hidden_NH) if values else None, entropy_N

    def nothing(self) -> Tensor:
        """Return a zero whose backward pass gives every trained weight a zero gradient."""
        return torch.stack([parameter.sum() for parameter in self.trained().values()]).sum() * 0.0

    def reference_logp(self, batch: MicroBatch) -> Tensor:
        """Return log-probabilities of the response tokens under the reference, shape (N,)."""
        with torch.no_grad(), self._as_reference():
            model = self.model if self.reference is None else self.reference

            def scored() -> Tensor:
                logits_NV, _ = self._head(model, self._upper, batch)
                return log_probabilities(logits_NV, batch.targets_N, self.temperature)

            logp_N: Tensor = self.run(scored)
            return logp_N

    def lower_states(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden states after the frozen lower layers, shape (B, T, H).

        Raises:
            ValueError: the model is not cut.
        """
        if self._lower is None:
            raise ValueError("the model is not cut")
        decoder = getattr(self._lower, self._lower.base_model_prefix)
        with torch.no_grad(), self.computing():
            hidden_BTH: Tensor = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """Yield the model to sample from; an adapter is merged meanwhile, and the weights are restored bit for bit."""
        if not isinstance(self.model, PeftModel) or getattr(self.model, "is_quantized", False):
            with self.computing():
                yield self.model
            return
        layers = tuned_layers(self.model)
        unmerged = [(layer, layer.get_base_layer().weight.data.clone()) for layer in layers]
        self.model.merge_adapter()
        try:
            with self.computing():
                yield self.model
        finally:
            for layer, weight in unmerged:
                layer.get_base_layer().weight.data.copy_(weight)
                layer.merged_adapters.clear()

    def _values(self, batch: MicroBatch, hidden_NH: Tensor) -> Tensor:
        if isinstance(self.value, ValueModel):
            values_N: Tensor = self.value(batch.ids_BT, batch.positions_N)
        elif self.value_adapter:
            with use_adapter(self.model, VALUE):
                values_N = self.value(self._hidden(batch))
        else:
            values_N = self.value(hidden_NH if self.value_gradient else hidden_NH.detach())
        return values_N.float()

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """Return the trunk's last hidden states at the batch's positions, shape (N, H)."""
        if self._upper is None or batch.hidden_BTH is None:
            return hidden_at(decoder_of(self.model), batch.positions_N, input_ids=batch.ids_BT)
        return hidden_at(decoder_of(self._upper), batch.positions_N, inputs_embeds=batch.hidden_BTH)

    def scores(self, reward: TrunkReward, ids_BT: Tensor, positions_B: Tensor) -> Tensor:
        """Return the scores of a reward adapter on the trunk at one position of each row, shape (B,)."""

        def scored() -> Tensor:
            with torch.no_grad(), use_adapter(self.model, REWARD):
                hidden_BH = hidden_at(decoder_of(self.model), positions_B, input_ids=ids_BT)
                scores_B: Tensor = reward.head(hidden_BH.to(reward.head.weight.dtype)).float().flatten()
                return scores_B

        scores_B: Tensor = self.run(scored)
        return scores_B

    def _head(
        self, model: PreTrainedModel | PeftModel, upper: PreTrainedModel | None, batch: MicroBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and the hidden states before the output layer, at the batch's positions."""
        if upper is None or batch.hidden_BTH is None:
            return logits_at(model, batch.positions_N, input_ids=batch.ids_BT)
        return logits_at(upper, batch.positions_N, inputs_embeds=batch.hidden_BTH)

    def _as_reference(self) -> AbstractContextManager[Any]:
        """Return a context that makes the policy's model the reference: no adapter, or the `ref` adapter."""
        if self.reference is not None or not isinstance(self.model, PeftModel):
            return nullcontext()
        return use_adapter(self.model, REFERENCE if REFERENCE in self.model.peft_config else None)


def log_probabilities(logits_NV: Tensor, tokens_N: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of each token, in float32, shape (N,)."""
    return -nn.functional.cross_entropy(_scaled_logits(logits_NV, temperature), tokens_N, reduction="none")


def entropy_of(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return the entropy of each distribution in nats, float32, shape (N,)."""
    logp_NV = _scaled_logits(logits_NV, temperature).log_softmax(dim=-1)
    return -(logp_NV.exp() * logp_NV).sum(dim=-1)


def _scaled_logits(logits_NV: Tensor, temperature: float) -> Tensor:
    logits_NV = logits_NV.float()
    return logits_NV if temperature == 1 else logits_NV / temperature


def without_dropout(module: nn.Module) -> None:
    """Set every dropout rate of a model to zero, including those in attention and in adapters."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            setattr(part, "attention_dropout", 0.0)  # noqa: B010  (torch types every attribute as a module)
    config = getattr(module, "config", None)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)


def can_be_cut(model: PreTrainedModel) -> bool:
    """Return whether a model's layers can be run in two halves: its decoder has `layers` and `norm` as llama's does."""
    decoder = getattr(model, model.base_model_prefix, None)
    return isinstance(getattr(decoder, "layers", None), nn.ModuleList) and isinstance(
        getattr(decoder, "norm", None), nn.Module
    )


def _with_layers(model: PreTrainedModel, *, start: int = 0, stop: int | None = None) -> PreTrainedModel:
    """Return a view of a causal language model with only the layers from ``start`` to ``stop``; weights are shared.

    The lower half has no final norm, because its output is the input of the next layer.
    """
    causal, decoder = _view(model), _view(getattr(model, model.base_model_prefix))
    layers = list(decoder.layers)[start:stop]
    decoder._modules["layers"] = nn.ModuleList(layers)
    decoder.config = copy.copy(decoder.config)
    decoder.config.num_hidden_layers = len(layers)
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = list(decoder.config.layer_types)[start:stop]
    if stop is not None:
        decoder._modules["norm"] = nn.Identity()
    causal._modules[model.base_model_prefix] = decoder
    return causal


def _view(module: nn.Module) -> Any:
    """Return a shallow copy of a module, whose children can be replaced without changing the original."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view
