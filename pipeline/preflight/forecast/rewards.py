"""The shape of a reward model: one model with a head that gives a score, or the two of an implicit reward."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.estimate.shape import ModelShape


class RewardShape(NamedTuple):
    """The models that score together.

    Attributes:
        models: one model with a head that gives a score; or policy and reference of an implicit reward.
    """

    models: tuple[ModelShape, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the files of all its models."""
        return sum(model.parameters for model in self.models)

    @property
    def loaded(self) -> int:
        """Parameters in memory: a head that gives a score stands in the place of an output layer of its own."""
        if len(self.models) > 1:
            return self.parameters
        return self.parameters - sum(model.vocab * model.hidden for model in self.models if not model.tied)

    @property
    def scalar(self) -> ModelShape | None:
        """The one model with a head that gives a score; None for an implicit reward."""
        return self.models[0] if len(self.models) == 1 else None
