"""What an engine is: it samples one response per prompt. Knows nothing of text, stages and rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pipeline.models.generate.decode import GenerationSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Sampled(NamedTuple):
    """Responses sampled by an engine.

    Attributes:
        responses: token ids of each response; the end token, if there is one, is the last.
        logps: log-probabilities of the tokens as the engine computed them; None if they equal the model's.
    """

    responses: list[list[int]]
    logps: list[list[float]] | None = None


class Engine(Protocol):
    """Samples one response per prompt."""

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_ids: Sequence[int],
    ) -> Sampled:
        """Sample one response per prompt.

        Args:
            model: model to sample from.
            prompts: token ids of each prompt.
            settings: limits, end tokens, how tokens are chosen, and the seed.
            row_ids: identity of each prompt for its random numbers.
        """
        ...
