"""Part of a pipeline: consecutive decoder layers of a causal model, with the ends if it has them.

The first part embeds, the last one has the final norm and the output layer. Where input and output embeddings are tied,
both hold the matrix.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.parallel.pipeline.split import ANATOMY, bounds, split_problem


class StageModule(nn.Module):
    """The layers of one process.

    Attributes:
        inner: the decoder with only this part's layers.
        embedding: of the first part, otherwise None.
        head: output layer of the last part, otherwise None.
        first_layer: number of the first layer in the whole model.
        tied: whether the output layer is the embedding.
    """

    def __init__(
        self,
        model: Any,
        stage: int,
        stages: int,
        *,
        autocast: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        """Cut.

        Args:
            model: the whole causal model; only this part of it is kept, and need hold numbers.
            stage: number of the part.
            stages: parts in all.
            autocast: format the products are computed in, where it is not that of the weights.
            recompute: compute a layer's activations again in the backward pass, instead of keeping them.

        Raises:
            PipelineError: an architecture that is not cut, or fewer layers than parts.
        """
        super().__init__()
        problem = split_problem(model.config.to_dict(), stages)
        if problem is not None:
            raise PipelineError(problem)
        if recompute:
            older = "gradient_checkpointing_enable"  # its name before transformers 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
            enable({"use_reentrant": False})
        self.anatomy = names = ANATOMY[model.config.model_type]
        self.tied, self.autocast = bool(model.config.tie_word_embeddings), autocast
        inner = getattr(model, names.inner)
        self.first_layer, end = bounds(len(getattr(inner, names.layers)), stages)[stage]
        first, last = stage == 0, stage == stages - 1
        self.embedding = getattr(inner, names.embedding) if first else None
        self.head = getattr(model, names.head) if last else None
        setattr(inner, names.embedding, nn.Identity())
        setattr(inner, names.layers, getattr(inner, names.layers)[self.first_layer : end])
        if not first and names.positions is not None:
            setattr(inner, names.positions, _Nothing())
        if not first and names.dropout is not None:
            setattr(inner, names.dropout, nn.Identity())
        if not last:
            setattr(inner, names.norm, nn.Identity())
        self.inner = inner

    def forward(self, x: Tensor, **places: Tensor) -> Tensor:
        """Return hidden states (batch, tokens, hidden), logits (batch, tokens, vocabulary) from the last part.

        Args:
            x: token ids (batch, tokens) for the first part, hidden states for the others.
            places: `position_ids` (batch, tokens) of rows that hold several sequences.
        """
        with torch.autocast(x.device.type, self.autocast) if self.autocast is not None else nullcontext():
            hidden = x if self.embedding is None else self.embedding(x)
            out: Tensor = self.inner(inputs_embeds=hidden, use_cache=False, **places).last_hidden_state
            return out if self.head is None else self.head(out)

    @property
    def shared(self) -> nn.Parameter | None:
        """The matrix that the first and the last part both hold."""
        holder = self.embedding if self.embedding is not None else self.head
        return holder.weight if self.tied and holder is not None else None

    def named_whole(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in the whole model; a tied output layer has the embedding's."""
        names, found = self.anatomy, {}
        for name, parameter in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "embedding" or (part == "head" and self.tied):
                name = f"{names.inner}.{names.embedding}.{rest}"
            elif part == "head":
                name = f"{names.head}.{rest}"
            elif rest.startswith(f"{names.layers}."):
                _, number, below = rest.split(".", 2)
                name = f"{names.inner}.{names.layers}.{int(number) + self.first_layer}.{below}"
            else:
                name = f"{names.inner}.{rest}"
            found[name] = parameter
        return found

    def counted(self) -> dict[str, nn.Parameter]:
        """Return `named_whole` without what another part has too and counts: each name is one part's."""
        named = self.named_whole()
        return {name: p for name, p in named.items() if self.embedding is not None or p is not self.shared}


class _Nothing(nn.Module):
    """In place of a table of positions that was added before."""

    def forward(self, places: Tensor) -> Tensor:
        return torch.zeros((), device=places.device)
