"""Verifies that a prepared model is tensor-parallel as asked, and that its replicas take the same steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import Problem
from pipeline.parallel.tensor.sharding import TPReplicas, share_of_parameters, size_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TensorShards(NamedTuple):
    """What this rank holds of a tensor-parallel model; the field names are those of the manifest.

    Attributes:
        size: ranks per group.
        copies: groups, each of which holds a replica of the model.
        share_of_parameters: fraction of the parameters that this rank holds.
    """

    size: int
    copies: int
    share_of_parameters: float


def shards_problem(model: PreTrainedModel | PeftModel, asked: int, trainer_size: int) -> Problem | None:
    """Return the problem of a model that is not sharded over as many ranks as asked; None if it is.

    Args:
        model: the trainer's model.
        asked: `compute.tensor_parallel`.
        trainer_size: the tensor-parallel size by which the trainer counts its batches.
    """
    size, share = size_of(model), share_of_parameters(model)
    if size == asked == trainer_size and (asked == 1 or share < 1):
        return None
    statement = f"compute.tensor_parallel is {asked}, the trainer divides by {size}, and this process holds {share:.0%}"
    return Problem(statement, "what was asked for", "see `trueup doctor`")


def shards_of(model: PreTrainedModel | PeftModel) -> TensorShards | None:
    """Measure a rank's shards; None for a model that is not tensor-parallel."""
    size = size_of(model)
    if size == 1:
        return None
    return TensorShards(size, TPReplicas(model).count, round(share_of_parameters(model), 4))


def replicas_problem(model: PreTrainedModel | PeftModel) -> Problem | None:
    """Return the problem of replicas whose gradients differ, so that they would take different steps; None if equal.

    Every rank must call it, after the backward pass of an optimizer step.
    """
    size = size_of(model)
    replicas = TPReplicas(model) if size > 1 else None
    if replicas is None or replicas.count == 1 or replicas.apart(model) == 0:
        return None
    statement = f"{replicas.count} groups of {size} processes train, and their gradients differ"
    return Problem(statement, "gradients averaged over the groups", f"use {size} processes")
