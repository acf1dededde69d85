"""Our own decoding loop as an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.engines.engine import Sampled
from pipeline.models.generate.steps import Say

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BatchedEngine:
    """Our own decoding loop (`decode`), for any causal model of transformers.

    A response depends on its prompt, its row id and the settings only, beyond floating-point rounding.

    Attributes:
        batch_size: rows decoded together.
        say: called once if the model's cache cannot be used.
    """

    batch_size: int = 128
    say: Say | None = None

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_ids: Sequence[int],
    ) -> Sampled:
        """Sample one response per prompt.

        Raises:
            PipelineError: a prompt is empty or fills the context, or an option is out of range.
        """
        return Sampled(
            decode(model, prompts, settings, row_ids=list(row_ids), batch_size=self.batch_size, say=self.say)
        )
