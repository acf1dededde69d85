"""Adapters on one trunk: policy, value function, reward and reference share a model's weights.

    default   the policy's adapter, trained
    value     the value function's own adapter, trained (`value: adapter`); its head is separate
    reward    a reward model's adapter, frozen, if that was trained on the same weights that the policy starts from
    ref       a frozen copy of the policy's starting adapter, if it has one; otherwise the reference uses no adapter

Instead of four models of W bytes there is one of W bytes and a few low-rank matrices. Knows nothing of training.

Reference: peft's multi-adapter models; the idea for RLHF is that of trl's multi-adapter RL (trl#373).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.parallel.zero.zero3 import gather_parameter
from pipeline.plain_data import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALUE, REWARD, REFERENCE = "value", "reward", "ref"


@contextmanager
def use_adapter(model: PreTrainedModel | PeftModel, name: str | None) -> Iterator[None]:
    """Inside the context, activate another adapter, or none.

    `peft`'s own functions for that also change `requires_grad`, and would stop training an adapter that is not active.
    This changes only the choice, so gradients of an earlier pass stay correct.
    """
    layers = tuned_layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter = layer._active_adapter if name is None else [name]
        layer._disable_adapters = name is None
    try:
        yield
    finally:
        for layer, (active, is_disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, is_disabled


def is_of(parameter_name: str, adapter: str) -> bool:
    """Return whether a parameter belongs to an adapter, by its name."""
    return f".{adapter}." in parameter_name


def keep_reference_adapter(model: PeftModel) -> None:
    """Copy the policy's starting adapter into a frozen adapter `ref`, which serves as the reference."""
    active = model.active_adapter
    add_adapter(model, REFERENCE, model.peft_config[active])
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            if is_of(name, active):
                own[name.replace(f".{active}.", f".{REFERENCE}.")].copy_(parameter)


def add_adapter(model: PeftModel, name: str, config: LoraConfig, *, trained: bool = False) -> None:
    """Add an adapter without activating it; `requires_grad` of all other parameters stays as it was."""
    active = model.active_adapter
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    model.add_adapter(name, config)
    model.set_adapter(active)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(before.get(key, trained))


class TrunkReward:
    """A reward model as an adapter on the policy's trunk, with its score head.

    Attributes:
        model: the policy's model, which carries the adapter.
        head: maps a hidden state to a score.
    """

    def __init__(self, model: PeftModel, head: nn.Linear) -> None:
        self.model, self.head = model, head


def reward_on_trunk(model: PreTrainedModel | PeftModel, folder: Path) -> TrunkReward | None:
    """Load a reward model's adapter onto the policy's trunk, if it was trained on the weights of that trunk.

    The artifact holds the merged reward model and its adapter. The adapter fits if trunk and adapter together give the
    merged weights.

    Args:
        model: the policy's model, with its adapter.
        folder: payload of the reward artifact.

    Returns:
        The reward on the trunk; None if there is no adapter on either side, or the adapter does not fit.
    """
    if not isinstance(model, PeftModel) or not (folder / "adapter" / "adapter_config.json").is_file():
        return None
    config = LoraConfig(**_plain_config(folder / "adapter" / "adapter_config.json"))
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    head = next((tensor for name, tensor in tensors.items() if name.endswith("score.weight")), None)
    layers = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    if head is None or not _fits(model, config, layers, folder):
        return None
    add_adapter(model, REWARD, config)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in layers.items():
            own[_with_name(name, REWARD)].copy_(tensor)
    score = nn.Linear(head.shape[1], head.shape[0], bias=False).requires_grad_(False)
    score.weight.data.copy_(head)
    return TrunkReward(model, score.to(model.device))


def start_value_from_reward(model: PeftModel, head: nn.Linear, reward: TrunkReward) -> bool:
    """Initialise the value function from the reward model, if their adapters have the same shapes; return whether so.

    Reference: Huang et al. 2024, arXiv:2403.17031, section 3.2 (value function from the reward model).
    """
    own = dict(model.named_parameters())
    pairs = [(name, name.replace(f".{VALUE}.", f".{REWARD}.")) for name in own if is_of(name, VALUE)]
    if not all(other in own and own[other].shape == own[name].shape for name, other in pairs):
        return False
    with torch.no_grad():
        for name, other in pairs:
            own[name].copy_(own[other])
        head.weight.copy_(reward.head.weight)
    return True


def _plain_config(file: Path) -> JsonObject:
    """Return a reward adapter's configuration for a causal model: without its task type and its trained score head."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    fields = ("r", "lora_alpha", "target_modules", "layers_to_transform", "bias", "use_rslora", "use_dora")
    config = {name: settings[name] for name in fields if settings.get(name) is not None}
    targets = config["target_modules"]
    if not isinstance(targets, str):
        config["target_modules"] = [name for name in targets if name != "score"]
    return {**config, "lora_dropout": 0.0, "task_type": TaskType.CAUSAL_LM}


def _with_name(saved: str, adapter: str) -> str:
    """Insert the adapter's name into a saved tensor's name: ``…lora_A.weight`` to ``…lora_A.reward.weight``."""
    before, _, last = saved.rpartition(".")
    return f"{before}.{adapter}.{last}"


def _fits(model: PeftModel, config: LoraConfig, layers: dict[str, Tensor], folder: Path) -> bool:
    """Return whether trunk plus adapter give the reward artifact's weights, in the first and last adapted layer."""
    own = dict(model.named_parameters())
    downs = [name for name in layers if name.endswith("lora_A.weight")]
    with safe_open(_weights_file(folder), framework="pt") as file:
        saved = set(file.keys())
        for down in (downs[0], downs[-1]):
            base_name = down.replace(".lora_A.weight", ".base_layer.weight")
            plain = down.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            up = layers[down.replace("lora_A", "lora_B")]
            if base_name not in own or plain not in saved or not own[base_name].is_floating_point():
                return False
            saved_weight = file.get_tensor(plain).float()
            scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
            trunk_weight = gather_parameter(own[base_name]).detach().float().cpu()
            rtol = 1e-5 if own[base_name].dtype == torch.float32 else 1e-2
            merged_weight = trunk_weight + scale * up @ layers[down]
            if trunk_weight.shape != saved_weight.shape or not torch.allclose(
                merged_weight, saved_weight, rtol=rtol, atol=1e-5
            ):
                return False
    return True


def _weights_file(folder: Path) -> Path:
    return sorted(folder.glob("model*.safetensors"))[0]


def tuned_layers(model: nn.Module) -> Sequence[BaseTunerLayer]:
    """Return the layers of a model that carry adapters."""
    return [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
