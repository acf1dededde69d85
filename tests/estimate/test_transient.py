"""The gradients counted inside an MLP against those autograd holds."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from pipeline.estimate.saved_activations import (
    INNER_GRADIENTS,
    gpt2_saved,
    gpt_neox_saved,
    inner_gradients,
    llama_saved,
)

HIDDEN, INNER, TOKENS = 64, 1024, 512


class Alive(TorchDispatchMode):
    """Count the bytes of the tensors that operators make and nobody has dropped yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())
        return made


@pytest.mark.parametrize(
    ("build", "config", "kept"),
    [
        (LlamaMLP, {"hidden_size": HIDDEN, "intermediate_size": INNER}, llama_saved(HIDDEN, 64, 64, INNER, 1)),
        (GPTNeoXMLP, {"hidden_size": HIDDEN, "intermediate_size": INNER}, gpt_neox_saved(HIDDEN, INNER, 1)),
        (GPT2MLP, {"n_embd": HIDDEN, "resid_pdrop": 0.0}, gpt2_saved(HIDDEN, INNER, 1, attention_dropout=False)),
    ],
    ids=["llama", "gpt_neox", "gpt2"],
)
def test_an_mlp_goes_backward_with_the_inner_gradients_that_are_counted(
    build: type[torch.nn.Module], config: dict[str, Any], kept: Any
) -> None:
    name = {LlamaMLP: "llama", GPTNeoXMLP: "gpt_neox", GPT2MLP: "gpt2"}[build]
    described = AutoConfig.for_model(name, **config)
    mlp = build(INNER, described) if build is GPT2MLP else build(described)
    for weight in mlp.parameters():
        weight.grad = torch.zeros_like(weight)
    out = mlp(torch.randn(TOKENS, HIDDEN, requires_grad=True))
    gradient = torch.ones_like(out)
    with Alive() as alive:
        out.backward(gradient)
    # beyond them no more than gradients of the input and of one layer's weights: 0.3 of an inner width
    assert kept.inner_gradients <= alive.peak / (4 * TOKENS * INNER) < kept.inner_gradients + 0.5


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", INNER_GRADIENTS)
def test_every_activation_is_counted_as_it_goes_backward(activation: str, gated: bool) -> None:
    if activation in ("silu", "swish") and not gated:
        pytest.skip("SiLU without a gate is counted with one: no model has it so, and not every gate is found")
    act = ACT2FN[activation]
    up, gate, down = (torch.nn.Linear(*size) for size in ((HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN)))
    for weight in [p for layer in (up, gate, down) for p in layer.parameters()]:
        weight.grad = torch.zeros_like(weight)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    out = down(act(gate(hidden)) * up(hidden) if gated else act(up(hidden)))
    gradient = torch.ones_like(out)
    with Alive() as alive:
        out.backward(gradient)
    counted = inner_gradients(gated=gated, activation=activation)
    assert counted <= alive.peak / (4 * TOKENS * INNER) < counted + 1
