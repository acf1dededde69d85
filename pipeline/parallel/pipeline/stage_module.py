"""Module of one pipeline stage: consecutive decoder layers of a causal model.

The first stage also holds the embedding, the last stage the final norm and the output layer. Where input and output
embeddings are tied, both stages hold a copy of the matrix.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.parallel.pipeline.split import MODULE_NAMES, bounds, split_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StageModule(nn.Module):
    """The layers of one rank.

    Attributes:
        inner: the decoder, with only this stage's layers.
        embedding: token embedding on the first stage, otherwise None.
        head: output layer on the last stage, otherwise None.
        first_layer: index, in the full model, of this stage's first layer.
        tied: whether the output layer shares the embedding's weight.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stage: int,
        stages: int,
        *,
        autocast: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        """Cut one stage out of a causal model, which is modified and no longer complete afterwards.

        Args:
            model: the full causal model. Only this stage's modules are kept, so the others' weights may be undefined.
            stage: index of the stage.
            stages: stages per pipeline.
            autocast: autocast dtype; None computes in the dtype of the weights.
            recompute: activation checkpointing: recompute a layer's activations in the backward pass.

        Raises:
            PipelineError: the architecture cannot be split, or has fewer layers than stages.
        """
        super().__init__()
        problem = split_problem(model.config.to_dict(), stages)
        if problem is not None:
            raise PipelineError(problem)
        if recompute:
            older = "gradient_checkpointing_enable"  # its name before transformers 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
            enable({"use_reentrant": False})
        self.anatomy = names = MODULE_NAMES[model.config.model_type]
        self.tied, self.autocast = bool(model.config.tie_word_embeddings), autocast
        inner = getattr(model, names.inner)
        self.first_layer, end = bounds(len(getattr(inner, names.layers)), stages)[stage]
        first, last = stage == 0, stage == stages - 1
        self.embedding = getattr(inner, names.embedding) if first else None
        self.head = getattr(model, names.head) if last else None
        setattr(inner, names.embedding, nn.Identity())
        setattr(inner, names.layers, getattr(inner, names.layers)[self.first_layer : end])
        if not first and names.positions is not None:
            setattr(inner, names.positions, _ZeroPositions())
        if not first and names.dropout is not None:
            setattr(inner, names.dropout, nn.Identity())
        if not last:
            setattr(inner, names.norm, nn.Identity())
        self.inner = inner

    def forward(self, x: Tensor, **places: Tensor) -> Tensor:
        """Return hidden states (batch, tokens, hidden); the last stage returns logits (batch, tokens, vocabulary).

        Args:
            x: token ids (batch, tokens) on the first stage, hidden states on the others.
            places: `position_ids` (batch, tokens) for packed rows.
        """
        with torch.autocast(x.device.type, self.autocast) if self.autocast is not None else nullcontext():
            hidden = x if self.embedding is None else self.embedding(x)
            out: Tensor = self.inner(inputs_embeds=hidden, use_cache=False, **places).last_hidden_state
            return out if self.head is None else self.head(out)

    @property
    def shared(self) -> nn.Parameter | None:
        """The tied embedding matrix, on the first and the last stage; None on the others or if it is not tied."""
        holder = self.embedding if self.embedding is not None else self.head
        return holder.weight if self.tied and holder is not None else None

    def full_names(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in the full model; a tied output layer has the embedding's name."""
        names, parameters = self.anatomy, {}
        for name, parameter in self.named_parameters():
            module, _, rest = name.partition(".")
            if module == "embedding" or (module == "head" and self.tied):
                name = f"{names.inner}.{names.embedding}.{rest}"
            elif module == "head":
                name = f"{names.head}.{rest}"
            elif rest.startswith(f"{names.layers}."):
                _, number, below = rest.split(".", 2)
                name = f"{names.inner}.{names.layers}.{int(number) + self.first_layer}.{below}"
            else:
                name = f"{names.inner}.{rest}"
            parameters[name] = parameter
        return parameters

    def counted(self) -> dict[str, nn.Parameter]:
        """Return `full_names` such that each name belongs to one stage: the tied matrix counts on the first only."""
        named = self.full_names()
        return {name: p for name, p in named.items() if self.embedding is not None or p is not self.shared}


class _ZeroPositions(nn.Module):
    """Replaces the learned position embedding on all stages but the first: adds zero."""

    def forward(self, places: Tensor) -> Tensor:
        return torch.zeros((), device=places.device)
