"""Pipeline parallelism: each process holds consecutive decoder layers, micro-batches flow through them (1F1B).

torch's `torch.distributed.pipelining` moves activations and gradients; here a model of transformers is cut for it. The
first stage embeds, the last one has the final norm and the output layer. Where input and output embeddings are tied,
both stages hold the matrix and sum its gradients, so that both take the same step.

Reference: Narayanan et al. 2021, arXiv:2104.04473 (the 1F1B schedule); Huang et al. 2019, arXiv:1811.06965 (GPipe).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.ranks import Ranks

IGNORE = -100
"""Label of a token that counts for nothing; that of torch's cross entropy."""

_PARTS = ("layers", "norm", "embed_tokens")


class Part(nn.Module):
    """The consecutive layers of one process.

    Attributes:
        inner: the decoder with only this part's layers.
        embedding: of the first part, otherwise None.
        head: output layer of the last part, otherwise None.
        first_layer: number of the first layer in the whole model.
    """

    def __init__(self, model: Any, ranks: Ranks) -> None:
        """Cut.

        Args:
            model: the whole causal model, as every process built it; only this process's part is kept.
            ranks: the processes, one stage each.

        Raises:
            PipelineError: an architecture that is not cut, or fewer layers than processes.
        """
        super().__init__()
        inner = getattr(model, "model", None)
        if inner is None or any(not hasattr(inner, name) for name in _PARTS):
            found = f"compute.pipeline_parallel with a {model.config.model_type} model"
            raise PipelineError(Problem(found, "a decoder built like llama or qwen3", "use compute.zero: 3 instead"))
        kinds = set(getattr(model.config, "layer_types", None) or [])
        if len(kinds) > 1:
            found = f"compute.pipeline_parallel with layers of {len(kinds)} kinds ({', '.join(sorted(kinds))})"
            raise PipelineError(Problem(found, "layers of one kind", "use compute.zero: 3 instead"))
        count = len(inner.layers)
        if count < ranks.count:
            found = f"compute.pipeline_parallel {ranks.count} for {count} layers"
            raise PipelineError(Problem(found, f"at most {count}", f"use {count}"))
        bounds = [count * i // ranks.count for i in range(ranks.count + 1)]
        self.first_layer, end = bounds[ranks.index], bounds[ranks.index + 1]
        first, last = ranks.index == 0, ranks.index == ranks.count - 1
        self.tied = bool(model.config.tie_word_embeddings)
        self.embedding = inner.embed_tokens if first else None
        self.head = model.lm_head if last else None
        inner.embed_tokens = nn.Identity()
        inner.layers = inner.layers[self.first_layer : end]
        if not last:
            inner.norm = nn.Identity()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return hidden states (batch, tokens, hidden), logits (batch, tokens, vocabulary) from the last part."""
        hidden = x if self.embedding is None else self.embedding(x)
        out: Tensor = self.inner(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return out if self.head is None else self.head(out)

    def named_whole(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in the whole model."""
        found = {}
        for name, parameter in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "embedding":
                name = f"model.embed_tokens.{rest}"
            elif part == "head":
                name = f"lm_head.{rest}"
            else:
                name = f"model.{rest}"
                if rest.startswith("layers."):
                    _, number, below = rest.split(".", 2)
                    name = f"model.layers.{int(number) + self.first_layer}.{below}"
            found[name] = parameter
        return found


class Pipeline:
    """A part with its schedule: one call per optimizer step.

    Attributes:
        part: of this process.
        ranks: the processes.
    """

    def __init__(self, part: Part, ranks: Ranks, device: torch.device) -> None:
        self.part, self.ranks, self.device = part, ranks, device
        self._tokens = 1.0
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._ends = dist.new_group([0, ranks.count - 1]) if part.tied else None

    @property
    def _shared(self) -> nn.Parameter | None:
        """The matrix that the first and the last part both hold."""
        if not self.part.tied:
            return None
        holder = self.part.embedding or self.part.head
        return None if holder is None else holder.weight

    def backward(self, ids: Tensor, labels: Tensor, passes: int) -> float:
        """Leave the gradients of a batch in the part; return the mean loss of its tokens, in every process.

        Args:
            ids: (batch, tokens), the whole batch in every process.
            labels: (batch, tokens), not shifted; -100 counts for nothing.
            passes: micro-batches the batch is cut into.
        """
        self._tokens = float(labels[:, 1:].ne(IGNORE).sum())
        schedule = self._schedule((*ids.shape, passes))
        losses: list[Tensor] = []
        given = (ids,) if self.part.embedding is not None else ()
        if self.part.head is not None:
            schedule.step(*given, target=labels, losses=losses)
        else:
            schedule.step(*given)
        shared = self._shared
        if shared is not None:
            dist.all_reduce(shared.grad, group=self._ends)
        return self.ranks.sums(float(sum(losses)))[0]

    def _schedule(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._schedules:  # a stage learns the shapes it sends from its first batch
            stage = PipelineStage(self.part, self.ranks.index, self.ranks.count, self.device)
            self._schedules[shape] = Schedule1F1B(stage, shape[-1], loss_fn=self._loss, scale_grads=False)
        return self._schedules[shape]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return a micro-batch's share of the batch's mean loss per token."""
        flat, target = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(flat, target, ignore_index=IGNORE, reduction="sum") / self._tokens

    def clip(self, most: float) -> float:
        """Scale gradients to a norm of at most ``most`` over all parts; return the norm before."""
        gradients = [p.grad for p in self.part.parameters() if p.grad is not None]
        counted = gradients
        shared = self._shared
        if shared is not None and self.part.embedding is None:  # the first part counts the matrix both hold
            counted = [gradient for gradient in gradients if gradient is not shared.grad]
        squares = sum((float(gradient.double().square().sum()) for gradient in counted), 0.0)
        norm = float(self.ranks.sums(squares)[0] ** 0.5)
        if most and norm > most:
            for gradient in gradients:
                gradient.mul_(most / (norm + 1e-6))
        return norm

    def whole_state(self) -> dict[str, Tensor]:
        """Return the whole model's weights, on the first process; empty on the others. Every process calls it."""
        mine = {name: p.detach().cpu().clone() for name, p in self.part.named_whole().items()}
        found: list[Any] | None = [None] * self.ranks.count if self.ranks.is_first else None
        dist.gather_object(mine, found)
        return {name: tensor for part in found or [] for name, tensor in part.items()}
